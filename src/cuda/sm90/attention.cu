// SPDX-License-Identifier: Apache-2.0
// The chitu recipe's attention on Hopper: one CTA a multiprocessor, a producer warp and three warpgroups of 64 query rows each.
// docs/kernels/sm90.md draws the schedule and has what was measured.
//
//   item: 192 queries of one head. The producer takes items from a counter, writes what the warpgroups need of one into shared memory
//         (two buffers) and keeps a ring of tiles full: 128 keys and values each. A flagged tile comes twice, first with its
//         residual plane for values: so the main loop has no branch for it.
//   tile: S = Q K^T (s8 x s8), P = round(255 2^(s - tile maximum)) as u8 in registers, T = P V (u8 x s8), O += w T, where w is the tile's
//   scale
//         times 2^(tile maximum - reference). The warpgroups meet only through the ring.
//
// Barriers, each with a parity that flips when it completes:
//   query_full[2]    completes with the producer's arrival and the copies' bytes; the warpgroups wait. An item is there.
//   query_empty[2]   384 arrivals, every thread of the warpgroups; the producer waits. An item is done with.
//   full[stages]     the producer's arrival and bytes; the warpgroups wait. A tile is there.
//   empty[stages]    384 arrivals; the producer waits. (12, one a warp, are no faster, and racecheck does not understand them.)
#include <cstddef>

#include "cuda/launch.h"
#include "cuda/sm90/params.h"
#include "cuda/sm90/ptx.h"

namespace chitu::cuda::sm90 {
namespace {

constexpr int warpgroups = 3, warps = 4 * warpgroups, consumers = 32 * warps, threads = consumers + 128;
constexpr float log2_top = 7.9943534f;  // log2(255)
constexpr float log2_e = 1.44269504f, ln_2 = 0.69314718f;
constexpr float lowest = -1e30f;  // a maximum over no keys
constexpr float lag = 8;          // the reference may lag this many powers of two behind the maximum: fp32 has the range
// as_float(magic_bits + i) = magic + i for |i| <= 2^22
constexpr float magic = 12582912;
constexpr std::uint32_t magic_bits = 0x4b400000;
// A score that is not seen: below every other, and -inf as a float once magic_bits is added.
constexpr std::uint32_t unseen = 0xff800000u - magic_bits;

template <int dim>
struct Item {
  float query_scale[block_queries / 2];
  float channels[dim];
  float correction[block_queries];
  int2 range[block_queries];
  int4 share[warpgroups];  // tiles of a warpgroup: first, end, first that every row sees in full, end of these
  int4 what;               // head of batch * heads (-1: no more work), first row, first tile, end
};

template <int dim>
struct Stage {
  std::int8_t key[tile_tokens * dim], value[tile_tokens * dim];
};

template <int dim>
struct Shared {
  static constexpr int stages = dim == 128 ? 4 : 6;

  alignas(1024) std::int8_t query[2][block_queries * dim];
  alignas(1024) Stage<dim> stage[stages];
  alignas(1024) std::uint16_t out[warps][16 * 64];  // 64 channels of a warp's rows, on their way to memory
  PassScales scales[stages];
  Item<dim> item[2];
  std::uint64_t query_full[2], query_empty[2], full[stages], empty[stages];
};

// The same as addresses.
template <int dim>
struct At {
  using S = Shared<dim>;
  std::uint32_t base;
  __device__ std::uint32_t query(int i) const { return base + offsetof(S, query) + i * sizeof(S::query[0]); }
  __device__ std::uint32_t stage(int i) const { return base + offsetof(S, stage) + i * sizeof(Stage<dim>); }
  __device__ std::uint32_t value(int i) const { return stage(i) + sizeof(Stage<dim>::key); }
  __device__ std::uint32_t scales(int i) const { return base + offsetof(S, scales) + i * sizeof(PassScales); }
  __device__ std::uint32_t item(int i) const { return base + offsetof(S, item) + i * sizeof(Item<dim>); }
  __device__ std::uint32_t query_full(int i) const { return base + offsetof(S, query_full) + i * 8; }
  __device__ std::uint32_t query_empty(int i) const { return base + offsetof(S, query_empty) + i * 8; }
  __device__ std::uint32_t full(int i) const { return base + offsetof(S, full) + i * 8; }
  __device__ std::uint32_t empty(int i) const { return base + offsetof(S, empty) + i * 8; }
};

// A place in a ring and the parity its barriers are waited for with.
template <int places>
struct Ring {
  int place = 0;
  std::uint32_t parity;
  __device__ void advance() {
    if (++place == places) {
      place = 0;
      parity ^= 1;
    }
  }
};

// ---- producer

__device__ int items_of(const Params& p) { return (p.queries + block_queries - 1) / block_queries * p.batch * p.heads; }

// Heads one after another, so that CTAs at work share keys and values in the L2 cache; in each the last rows first, which see most keys
// under a causal mask. A head's partial last block is an item that leaves warpgroups idle: with the longest ones under a causal mask they
// come first, else last, where short items fill the end.
__device__ int2 block_of(const Params& p, int item) {
  const int heads = p.batch * p.heads, full_blocks = p.queries / block_queries, full_items = full_blocks * heads;
  const int partial = p.queries % block_queries ? heads : 0, first_full = p.window.right < p.keys ? partial : 0;
  const int i = item - first_full;
  if (i < 0) return {item, full_blocks * block_queries};
  if (i >= full_items) return {i - full_items, full_blocks * block_queries};
  const int head = i / full_blocks;
  return {head, (full_blocks - 1 - (i - head * full_blocks)) * block_queries};
}

// Writes Item::share and Item::what; returns first tile and end.
template <int dim>
__device__ int2 describe(const Params& p, std::uint32_t item, int head, int row) {
  const auto range = [&](int r) { return p.ranges[min(r, p.queries - 1)]; };
  const auto ceiling = [](int keys) { return (keys + tile_tokens - 1) / tile_tokens; };
  const int first = range(row).x / tile_tokens, end = max(first, ceiling(range(row + block_queries - 1).y));
#pragma unroll
  for (int w = 0; w < warpgroups; ++w) {
    const int2 top = range(row + w * 64), bottom = range(row + w * 64 + 63);
    const bool none = top.x >= bottom.y;
    ptx::store_int4(item + offsetof(Item<dim>, share) + w * 16, none ? end : top.x / tile_tokens, none ? end : ceiling(bottom.y),
                    ceiling(bottom.x), top.y / tile_tokens);
  }
  ptx::store_int4(item + offsetof(Item<dim>, what), head, row, first, end);
  return {first, end};
}

template <int dim>
__device__ void produce(const Params& p, const At<dim> at) {
  using S = Shared<dim>;
  using I = Item<dim>;
  Ring<S::stages> ring{.parity = 1};
  Ring<2> items{.parity = 1};
  const int count = items_of(p);
  ptx::wait_for_previous();
  for (int item = blockIdx.x, next;; item = next, items.advance()) {
    const std::uint32_t to = at.item(items.place), barrier = at.query_full(items.place);
    ptx::barrier_wait(at.query_empty(items.place), items.parity);
    if (item >= count) {
      ptx::store_int4(to + offsetof(I, what), -1, 0, 0, 0);
      ptx::barrier_arrive(barrier);
      return;
    }
    next = gridDim.x + atomicAdd(p.items_taken, 1);  // while the warpgroups still have tiles of the item before
    const auto [head, row] = block_of(p, item);
    const auto [first, end] = describe<dim>(p, to, head, row);

    const int padded = p.query_tiles * tile_tokens, rows = min(block_queries, padded - row);
    const std::int64_t from = static_cast<std::int64_t>(head) * padded + row;
    const int kv = head / p.heads * p.kv_heads + head % p.heads / (p.heads / p.kv_heads);
    ptx::barrier_expect(barrier, rows * (dim + 2 + 4 + 8) + dim * 4);
    ptx::bulk_copy(at.query(items.place), p.query8 + from * dim, rows * dim, barrier);
    ptx::bulk_copy(to + offsetof(I, query_scale), p.query_scale + from / 2, rows * 2, barrier);
    ptx::bulk_copy(to + offsetof(I, channels), p.channels + static_cast<std::int64_t>(kv) * dim, dim * 4, barrier);
    ptx::bulk_copy(to + offsetof(I, correction), p.correction + from, rows * 4, barrier);
    ptx::bulk_copy(to + offsetof(I, range), p.ranges + row, rows * 8, barrier);

    std::int64_t tile = static_cast<std::int64_t>(kv) * p.key_tiles + first;
    for (const std::int64_t last = tile + end - first; tile < last; ++tile) {
      constexpr int half = sizeof(Stage<dim>::key);
      int residual = p.passes[2 * tile].flagged;  // on its way while the place is waited for
#pragma unroll 1
      do {
        const std::uint32_t full = at.full(ring.place);
        ptx::barrier_wait(at.empty(ring.place), ring.parity);
        ptx::barrier_expect(full, 2 * half + sizeof(PassScales));
        ptx::bulk_copy(at.stage(ring.place), p.tiles + 2 * tile * half, half, full);
        ptx::bulk_copy(at.value(ring.place), residual ? p.residuals + tile * half : p.tiles + (2 * tile + 1) * half, half, full);
        ptx::bulk_copy(at.scales(ring.place), p.passes + 2 * tile + residual, sizeof(PassScales), full);
        ring.advance();
      } while (residual-- > 0);
    }
  }
}

// ---- consumers

// In the accumulator of 64 rows and N columns a thread holds, of rows r and r + 8 (r = lane / 4), columns 8 i + 2 (lane % 4) and the next:
// element 4 i + 2 (row of the two) + (column of the two).

// The largest score of one of the thread's rows: 3-input maxima in two chains.
__device__ __forceinline__ int row_maximum(const std::uint32_t (&s)[64], int row) {
  const auto score = [&](int i) { return static_cast<int>(s[i + 2 * row]); };
  int a = max(max(score(0), score(1)), score(4)), b = max(max(score(32), score(33)), score(36));
  a = max(a, max(score(5), score(37)));
#pragma unroll
  for (int i = 8; i < 32; i += 4) {
    a = max(max(a, score(i)), score(i + 1));
    b = max(max(b, score(i + 32)), score(i + 33));
  }
  return max(a, b);
}

__device__ __forceinline__ float quad_maximum(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Only in tiles at the edge of some row's range.
template <int dim>
__device__ __forceinline__ void mask(std::uint32_t (&s)[64], std::uint32_t item, int tile) {
  const int t = ptx::thread_again(), row = (t >> 5) * 16 + (t >> 2 & 7), key = tile * tile_tokens + 2 * (t & 3);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int2 range = ptx::load_int2(item + offsetof(Item<dim>, range) + (row + 8 * r) * 8);
    const int begin = range.x - key, end = range.y - key;
#pragma unroll
    for (int i = 0; i < 16; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (8 * i + e < begin || 8 * i + e >= end) s[4 * i + 2 * r + e] = unseen;
  }
}

// P = round(255 2^(s - maximum)), straight into the layout of a wgmma operand (values stand in the matching order), and its row sums. The
// integer becomes a float by an integer addition of the magic constant, whose offset disappears in f: the compiler spreads these additions
// over two pipes, where I2FP would all go to the one that suffers most beside wgmma. Each group of 8 gets f through a false
// dependency on the group before, by a zero the compiler cannot see: without it come all FFMA, then all MUFU, then all F2IP.
__device__ __forceinline__ void weigh(const std::uint32_t (&s)[64], float c, float f0, float f1, float zero, std::uint32_t (&p)[16],
                                      std::uint32_t& sum0, std::uint32_t& sum1) {
  sum0 = sum1 = 0;
  float before = 0;
#pragma unroll
  for (int group = 0; group < 8; ++group) {
    const int block = group >> 1, r = group & 1;  // 32 keys; row
    const float f = group ? fmaf(before, zero, r ? f1 : f0) : f0;
    float e[8];
#pragma unroll
    for (int u = 0; u < 8; ++u)
      e[u] = ptx::exp2_approx(fmaf(__uint_as_float(s[16 * block + 4 * (u >> 1) + (u & 1) + 2 * r] + magic_bits), c, f));
    before = e[0];
    p[4 * block + r] = ptx::pack_u8(e[0], e[1], e[2], e[3]);
    p[4 * block + r + 2] = ptx::pack_u8(e[4], e[5], e[6], e[7]);
    std::uint32_t& sum = r ? sum1 : sum0;
    sum = __dp4a(p[4 * block + r], 0x01010101u, sum);
    sum = __dp4a(p[4 * block + r + 2], 0x01010101u, sum);
  }
}

// t = p v for values or their residual plane.
template <int count>
__device__ __forceinline__ void product(std::uint32_t (&t)[count], const std::uint32_t (&p)[16], ptx::Matrix<128> v) {
  ptx::wgmma_fence();
  ptx::wgmma_u8s8<false>(t, p, v.descriptor());
#pragma unroll
  for (int k = 1; k < 4; ++k) ptx::wgmma_u8s8<true>(t, p + 4 * k, v.plus(32 * k).descriptor());
  ptx::wgmma_commit();
}

template <int count>
__device__ __forceinline__ void add(float (&o)[count], const std::uint32_t (&t)[count], float w0, float w1) {
#pragma unroll
  for (int i = 0; i < count; ++i) o[i] = fmaf(__int2float_rn(static_cast<int>(t[i])), i & 2 ? w1 : w0, o[i]);
}

// Each warp on its own: normalises its 16 rows and stores them, 64 channels at a time, through its 2 KB of shared memory. Whatever has to
// be read is read before anything is stored.
template <int dim>
__device__ __forceinline__ void finish(const Params& p, const At<dim> at, int buffer, const float (&o)[dim / 2], float m0, float m1,
                                       float l0, float l1) {
  using I = Item<dim>;
  const int t = ptx::thread_again(), lane = t & 31, warp = t >> 5, quad = t & 3;
  const std::uint32_t item = at.item(buffer), out = at.base + offsetof(Shared<dim>, out) + warp * 2048;
  const int4 what = ptx::load_int4(item + offsetof(I, what));
  const int b = what.x / p.heads, h = what.x - b * p.heads, row = what.y + warp * 16;
  if (p.lse.data && quad == 0) {
    float* lse = static_cast<float*>(p.lse.data) + b * p.lse.batch + h * p.lse.head;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = (lane >> 2) + 8 * r;
      const float correction = ptx::load_float(item + offsetof(I, correction) + (warp * 16 + i) * 4), l = r ? l1 : l0;
      const float value = ln_2 * ((r ? m1 : m0) + (__log2f(l) - log2_top)) + p.scale * correction;
      if (row + i < p.queries) lse[(row + i) * p.lse.token] = l > 0 ? value : __int_as_float(0xff800000);
    }
  }
  const float i0 = l0 > 0 ? ptx::reciprocal(l0) : 0.f, i1 = l1 > 0 ? ptx::reciprocal(l1) : 0.f;
  std::uint32_t packed[dim / 4];  // [2 i]: row r, channels 8 i + 2 quad and the next; [2 i + 1]: row r + 8
#pragma unroll
  for (int i = 0; i < dim / 8; ++i) {
    const float2 channel = ptx::load_float2(item + offsetof(I, channels) + i * 32 + quad * 8);
    const float x[4] = {o[4 * i] * i0 * channel.x, o[4 * i + 1] * i0 * channel.y, o[4 * i + 2] * i1 * channel.x,
                        o[4 * i + 3] * i1 * channel.y};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      std::uint32_t& to = packed[2 * i + r];
      if (p.out_bf16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(to) : "f"(x[2 * r + 1]), "f"(x[2 * r]));
      else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(to) : "f"(x[2 * r + 1]), "f"(x[2 * r]));
    }
  }
  ptx::barrier_arrive(at.query_empty(buffer));
  auto* to = static_cast<std::uint16_t*>(p.out.data) + b * p.out.batch + h * p.out.head;
#pragma unroll
  for (int half = 0; half < dim / 64; ++half) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const std::uint32_t* x = packed + half * 16 + 2 * i;
      ptx::store_matrix(out + (lane & 15) * 128 + ((i + (lane >> 4)) ^ (lane & 7)) * 16, x[0], x[1], x[2], x[3]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i * 4 + (lane >> 3), chunk = lane & 7;
      const int4 x = ptx::load_int4(out + r * 128 + (chunk ^ (r & 7)) * 16);
      if (row + r < p.queries) *reinterpret_cast<int4*>(to + (row + r) * p.out.token + half * 64 + chunk * 8) = x;
    }
  }
}

template <int dim>
__device__ void consume(const Params& p, const At<dim> at, int warpgroup, float zero) {
  using S = Shared<dim>;
  using I = Item<dim>;
  const int lane = threadIdx.x & 31, quad = lane & 3;
  const auto keys = ptx::Matrix<dim>::at(at.stage(0));
  const auto values = ptx::Matrix<128>::at(at.value(0));
  Ring<S::stages> ring{.parity = 0};
  Ring<2> items{.parity = 0};

  const auto hand_back = [&](int tiles) {
#pragma unroll 1
    while (tiles > 0) {
      ptx::barrier_wait(at.full(ring.place), ring.parity);
      tiles -= ptx::load_int(at.scales(ring.place) + offsetof(PassScales, last));
      ptx::barrier_arrive(at.empty(ring.place));
      ring.advance();
    }
  };

#pragma unroll 1
  for (;; items.advance()) {
    ptx::barrier_wait(at.query_full(items.place), items.parity);
    const std::uint32_t item = at.item(items.place);
    const int4 what = ptx::load_int4(item + offsetof(I, what));
    if (what.x < 0) return;
    if (what.y + warpgroup * 64 >= p.queries) {  // no rows for this warpgroup
      hand_back(what.w - what.z);
      ptx::barrier_arrive(at.query_empty(items.place));
      continue;
    }
    const int2 share = ptx::load_int2(item + offsetof(I, share) + warpgroup * 16);
    hand_back(share.x - what.z);
    const auto query = ptx::Matrix<dim>::at(at.query(items.place) + warpgroup * 64 * dim);
    // Of both the thread's rows: r and r + 8 share a scale. The softmax is in powers of 2.
    const float query_scale =
        fabsf(p.scale) * log2_e *
        ptx::load_float(item + offsetof(I, query_scale) + (ptx::thread_again() >> 5) * 32 + (ptx::thread_again() >> 2 & 7) * 4);
    float o[dim / 2];
#pragma unroll
    for (float& x : o) x = 0;
    float m0 = lowest, m1 = lowest, l0 = 0, l1 = 0;
    bool ready = share.x < share.y && ptx::barrier_try(at.full(ring.place), ring.parity);

#pragma unroll 1
    for (int tile = share.x; tile < share.y;) {
      std::uint32_t s[64], t[dim / 2], weights[16];
      if (!ready) ptx::barrier_wait(at.full(ring.place), ring.parity);
      const int offset = ring.place * static_cast<int>(sizeof(Stage<dim>));
      const auto key = keys.plus(offset);
      ptx::wgmma_fence();
      ptx::wgmma_s8s8_n128<false>(s, query.descriptor(), key.descriptor());
#pragma unroll
      for (int k = 1; k < dim / 32; ++k) ptx::wgmma_s8s8_n128<true>(s, query.plus(32 * k).descriptor(), key.plus(32 * k).descriptor());
      ptx::wgmma_commit();
      // Not zero, so that c times an unseen score is minus infinity.
      const float c = fmaxf(query_scale * ptx::load_float(at.scales(ring.place) + quad * 4), 1e-37f);
      const int2 whole = ptx::load_int2(item + offsetof(I, share) + warpgroup * 16 + 8);
      ptx::wgmma_wait();
      float x0, x1;  // the tile's maxima
      if (tile < whole.x || tile >= whole.y) [[unlikely]] {
        mask<dim>(s, item, tile);
        const int top0 = row_maximum(s, 0), top1 = row_maximum(s, 1);
        x0 = top0 == static_cast<int>(unseen) ? lowest : __int2float_rn(top0) * c;
        x1 = top1 == static_cast<int>(unseen) ? lowest : __int2float_rn(top1) * c;
      } else {
        x0 = __int2float_rn(row_maximum(s, 0)) * c;
        x1 = __int2float_rn(row_maximum(s, 1)) * c;
      }
      x0 = quad_maximum(x0);
      x1 = quad_maximum(x1);
      std::uint32_t sum0, sum1;
      weigh(s, c, fmaf(-magic, c, log2_top - x0), fmaf(-magic, c, log2_top - x1), zero, weights, sum0, sum1);

      product(t, weights, values.plus(offset));
      // Behind it: the next tile's barrier, the reference, row sums, weights.
      const int used = ring.place;
      ring.advance();
      ready = ptx::barrier_try(at.full(ring.place), ring.parity);
      if (__any_sync(~0u, (x0 > m0 + lag) | (x1 > m1 + lag))) {
        const float n0 = fmaxf(m0, x0), n1 = fmaxf(m1, x1), a0 = ptx::exp2_approx(m0 - n0), a1 = ptx::exp2_approx(m1 - n1);
        m0 = n0;
        m1 = n1;
        l0 *= a0;
        l1 *= a1;
#pragma unroll
        for (int i = 0; i < dim / 2; ++i) o[i] *= i & 2 ? a1 : a0;
      }
      const float w0 = ptx::exp2_approx(x0 - m0), w1 = ptx::exp2_approx(x1 - m1);
      const float value_scale = ptx::load_float(at.scales(used) + offsetof(PassScales, value));
      const int last = ptx::load_int(at.scales(used) + offsetof(PassScales, last));
      l0 = fmaf(__uint2float_rn(sum0 * last), w0, l0);
      l1 = fmaf(__uint2float_rn(sum1 * last), w1, l1);
      tile += last;
      ptx::wgmma_wait();
      add(o, t, w0 * value_scale, w1 * value_scale);
      ptx::barrier_arrive(at.empty(used));
    }

    hand_back(ptx::load_int4(item + offsetof(I, what)).w - ptx::load_int2(item + offsetof(I, share) + warpgroup * 16).y);
    finish<dim>(p, at, items.place, o, m0, m1, quad_sum(l0), quad_sum(l1));
  }
}

struct Launch {
  Params params;
  float zero;  // of weigh()
};

template <int dim>
__global__ void __launch_bounds__(threads, 1) attention_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const At<dim> at{ptx::shared_address(shared)};
  using S = Shared<dim>;
  // Through a shuffle, so that it is known to be uniform: descriptors stay in uniform registers.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      ptx::barrier_init(at.query_full(i), 1);
      ptx::barrier_init(at.query_empty(i), consumers);
    }
    for (int i = 0; i < S::stages; ++i) {
      ptx::barrier_init(at.full(i), 1);
      ptx::barrier_init(at.empty(i), consumers);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  if (warpgroup == warpgroups) {
    ptx::give_registers<32>();
    if (threadIdx.x == warpgroups * 128) produce<dim>(launch.params, at);
  } else {
    ptx::take_registers<160>();
    consume<dim>(launch.params, at, warpgroup, launch.zero);
  }
}

template <int dim>
void start(const Params& params, int processors, cudaStream_t stream) {
  static_assert(sizeof(Shared<dim>) <= 232448, "more than a CTA may have");
  const std::int64_t items = static_cast<std::int64_t>((params.queries + block_queries - 1) / block_queries) * params.batch * params.heads;
  launch(attention_kernel<dim>,
         {.blocks = static_cast<unsigned>(items < processors ? items : processors),
          .threads = threads,
          .shared_bytes = sizeof(Shared<dim>),
          .overlaps = true},
         stream, Launch{params, 0.f});
}

}  // namespace

void attend(const Params& params, int dim, int processors, cudaStream_t stream) {
  dim == 64 ? start<64>(params, processors, stream) : start<128>(params, processors, stream);
}

}  // namespace chitu::cuda::sm90
