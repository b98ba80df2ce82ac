// SPDX-License-Identifier: Apache-2.0
// The chitu recipe's quantiser on Hopper: Q, K and V are read once and written once, in the layout that the attention kernel copies.
// docs/numerics.md, "Quantising", is the specification; docs/kernels/sm90.md has the bound and what was measured.
//
//   - A small kernel makes the keys' centre and λ from the sample. The main kernel starts beside it: all its loads are under way before
//     it waits for them.
//   - The rotation runs on the tensor cores: +-1 times a 16-bit value is exact, sums are fp32. Four channel bits by one mma.m16n8k16, the
//     others by additions in registers. A 16-byte load is an operand as it stands, and the result packs into 16 bytes that stay together.
//   - The centre is subtracted by linearity, one more mma with the centre in every row; q . centre is a third operand. Both are exact
//     because the centre is in the type of the input.
//   - The transposition of V is a choice of the registers that are packed together: a thread has 16 keys of 8 channels.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/limits.h"
#include "common/sample.h"
#include "cuda/launch.h"
#include "cuda/sm90/params.h"
#include "cuda/sm90/places.cuh"
#include "cuda/sm90/ptx.h"

namespace chitu::cuda::sm90 {
namespace {

constexpr int quantise_threads = 256;
constexpr int sample_loads = 8, most_sample_threads = 512;  // loads of a thread: enough for 256 tokens
constexpr float infinity = std::numeric_limits<float>::infinity();

template <class T>
constexpr std::uint32_t one = std::is_same_v<T, __half> ? 0x3c00u : 0x3f80u;

// The two 16-bit numbers of a word.
template <class T>
__device__ __forceinline__ float low(std::uint32_t w) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(w)));
  else
    return __uint_as_float(w << 16);
}
template <class T>
__device__ __forceinline__ float high(std::uint32_t w) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(w >> 16)));
  else
    return __uint_as_float(w & 0xffff0000u);
}

__device__ __forceinline__ std::uint32_t word(const uint4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

// Volatile, so that loads stay where they are written: all of them before the first use. With the rest of the 128-byte line brought to
// L2, which another warp or the next instruction wants.
template <class T>
__device__ __forceinline__ uint4 load_input(const T* p) {
  uint4 r;
  asm volatile("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}
// What the sample kernel, which this one overlaps, has written: not through the read-only path.
__device__ __forceinline__ uint4 load_sampled(const void* p) {
  uint4 r;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}

// Of the warps that share a tile.
__device__ __forceinline__ void tile_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// d = a b (+ d): a [16, 16], b [16, 8], d [16, 8] in fp32.
template <class T, bool add>
__device__ __forceinline__ void mma(float (&d)[4], const uint4& a, const std::uint32_t (&b)[2]) {
  const float c[4] = {add ? d[0] : 0, add ? d[1] : 0, add ? d[2] : 0, add ? d[3] : 0};
  if constexpr (std::is_same_v<T, __half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// a / b rounded to nearest, for 1e-30 <= b <= 8e37: without the branch and the call of `/` for subnormal numbers, which cost registers.
__device__ __forceinline__ float divide(float a, float b) {
  float r = ptx::reciprocal(b);
  r = fmaf(r, fmaf(-b, r, 1), r);
  const float q = a * r;
  return fmaf(r, fmaf(-b, q, a), q);
}

// Where the 16-byte chunk of a row stands: rows of 128 bytes trade their chunks by row % 8, rows of 64 bytes by row / 2 % 4.
template <int row_bytes>
__device__ __forceinline__ int swizzled(int chunk, int row) {
  return row_bytes == 128 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
}

// ---- what is not finite

template <class T>
constexpr std::uint32_t infinity_bits = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u;

// Is one of the eight numbers of four words not finite?
template <class T>
__device__ __forceinline__ bool has_nonfinite(const std::uint32_t (&w)[4]) {
  std::uint32_t largest = 0;
#pragma unroll
  for (std::uint32_t x : w) largest = __vmaxu2(largest, x & 0x7fff7fffu);
  return max(largest & 0xffffu, largest >> 16) >= infinity_bits<T>;
}

// The word with 0 for numbers that are not finite.
template <class T>
__device__ __forceinline__ std::uint32_t finite_part(std::uint32_t w) {
  const std::uint32_t both = infinity_bits<T> | infinity_bits<T> << 16;
  return w & ~__vcmpeq2(w & both, both);
}
template <class T>
__device__ __forceinline__ uint4 finite_part(const uint4& x) {
  return make_uint4(finite_part<T>(x.x), finite_part<T>(x.y), finite_part<T>(x.z), finite_part<T>(x.w));
}

// ---- queries and keys

// B fragments of the signed 16 x 16 Hadamard matrix on channel bits 0, 2, 4, 5; the sign of common/rotation.h goes along for nothing. A
// 16-byte piece is an A operand as it stands: its words are (bit 1, bit 2) = 00, 10, 01, 11, so bit 1 tells row g from row g + 8 of the
// operand and bit 2 is the upper half of k. Input bits: k = (bit 0, quad, bit 2); output bits: n = (bit 0, quad), j.
template <class T>
__device__ __forceinline__ void hadamard(int g, int quad, std::uint32_t (&b)[2][2]) {
  const int both = quad & (g >> 1);
  const std::uint32_t parity = (both ^ (both >> 1) ^ (quad & (quad >> 1))) & 1, flip = static_cast<std::uint32_t>(g & 1) << 31;
  const std::uint32_t plain = (one<T> | one<T> << 16) ^ parity * 0x80008000u;
  b[0][0] = b[1][0] = plain ^ flip;
  b[0][1] = plain ^ flip ^ 0x80000000u;
  b[1][1] = b[0][1] ^ 0x80008000u;
}

// Butterflies over channel bits 1, 3 and (dim 128) 6, which lie in a thread's registers; the first with the sign of bits 1 and 3.
template <int pieces>
__device__ __forceinline__ void butterflies(float (&x)[pieces][2][4]) {
#pragma unroll
  for (int m = 0; m < pieces; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float u = x[m][j][e], w = x[m][j][e + 2];
        x[m][j][e] = m & 1 ? u - w : u + w;
        x[m][j][e + 2] = m & 1 ? u + w : u - w;
      }
#pragma unroll
  for (int bit = 1; bit < pieces; bit *= 2)
#pragma unroll
    for (int m = 0; m < pieces; ++m) {
      if (m & bit) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float &a = x[m][i / 4][i % 4], &b = x[m | bit][i / 4][i % 4];
        const float u = a, w = b;
        a = u + w;
        b = u - w;
      }
    }
}

template <int pieces>
__device__ __forceinline__ float largest_of(const float (&x)[pieces][2][4]) {
  float top[4] = {0, 0, 0, 0};
#pragma unroll
  for (int m = 0; m < pieces; ++m)
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i % 4] = fmaxf(top[i % 4], fabsf(x[m][i / 4][i % 4]));
  return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
}

// A warp has 16 (dim 128) or 32 (dim 64) rows of a tile: `chunks` of 16. Half h of a chunk is its rows 4 h ... 4 h + 3 and those + 8: whole
// scale groups of queries and of keys, so that 32 accumulators are enough.
template <class T, int dim, bool is_key>
__device__ __forceinline__ void rotate(const Params& p, int unit, float* shared) {
  constexpr int pieces = dim / 32, chunks = 128 / dim, tile_warps = 8 / chunks;
  constexpr float rotation_scale = dim == 128 ? 0.08838834764831845f : 0.125f;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, quad = lane % 4, group = warp / tile_warps;
  const int index = unit * chunks + group;
  if (index >= (is_key ? p.key_tiles * p.kv_heads : p.query_tiles * p.heads)) return;
  const TilePlace at = tile_place<!is_key>(p, index);
  const Place sequence = place(p, at.sequence);
  const int begin = is_key ? sequence.key_begin : sequence.query_begin, tokens = is_key ? sequence.keys : sequence.queries;
  const View& in = is_key ? p.key : p.query;
  const int tile_row = warp % tile_warps * 16 * chunks, row0 = at.tile * tile_tokens + tile_row, row_g = (g & 3) + 8 * (g >> 2);
  const T* base = static_cast<const T*>(in.data) + sequence.batch * in.batch + at.head * in.head + begin * in.token + quad * 16;
  uint4 x[2][chunks][pieces];  // piece m has channels 8 (m & 1) + 64 (m >> 1) + 16 quad ...
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const T* from = base + min(row0 + row_g + c * 16 + h * 4, tokens - 1) * in.token;  // rows past the end become zeros below
#pragma unroll
      for (int m = 0; m < pieces; ++m) x[h][c][m] = load_input(from + (m & 1) * 8 + (m >> 1) * 64);
    }
  std::uint32_t b[2][2], minus_b[2][2];
  hadamard<T>(g, quad, b);
#pragma unroll
  for (int i = 0; i < 4; ++i) minus_b[i / 2][i % 2] = b[i / 2][i % 2] ^ 0x80008000u;
  std::uint8_t* out = is_key ? p.tiles + at.index * 2 * tile_tokens * dim : p.queries + at.index * tile_tokens * dim;
  const int kv_head = is_key ? at.head : at.head / (p.heads / p.kv_heads);
  const T* centre_row = static_cast<const T*>(p.centre) + (static_cast<std::int64_t>(at.sequence) * p.kv_heads + kv_head) * dim + quad * 16;
  std::uint8_t* spoilt = (is_key ? p.spoilt_keys : p.spoilt_queries) + at.index;
  ptx::wait_for_previous();  // for the sample

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float y[chunks][pieces][2][4], dot[chunks][4] = {};
#pragma unroll
    for (int m = 0; m < pieces; ++m) {
      const uint4 centre = load_sampled(centre_row + (m & 1) * 8 + (m >> 1) * 64);
      const std::uint32_t dot_b[2] = {g & 1 ? centre.y : centre.x, g & 1 ? centre.w : centre.z};  // even columns: bit 1 clear; odd: set
#pragma unroll
      for (int c = 0; c < chunks; ++c) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if constexpr (is_key) mma<T, false>(y[c][m][j], centre, minus_b[j]);
          mma<T, is_key>(y[c][m][j], x[h][c][m], b[j]);
        }
        if constexpr (!is_key) mma<T, true>(dot[c], x[h][c][m], dot_b);
      }
    }
    float top[chunks];
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      butterflies(y[c]);
      // Every sum has every channel of the row, so that any tells if one is not finite.
      const bool inside = row0 + row_g + c * 16 + h * 4 < tokens, finite = fabsf(y[c][0][0][0]) < infinity;
      if (inside && !finite) *spoilt = 1, *p.spoilt = 1;
      if (!inside || !finite) {  // zero; past the end, where the last row was read, too
        dot[c][0] = dot[c][3] = 0;
#pragma unroll
        for (int m = 0; m < pieces; ++m)
#pragma unroll
          for (int i = 0; i < 8; ++i) y[c][m][i / 4][i % 4] = 0;
      }
      top[c] = largest_of(y[c]);
      top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], 1));
      top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], 2));
      top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], 16));  // rows r and r + 8
    }
    if constexpr (is_key) {  // 32 rows of the tile share a scale: these lanes, all chunks, all warps of the tile
#pragma unroll
      for (int c = 1; c < chunks; ++c) top[0] = fmaxf(top[0], top[c]);
      top[0] = fmaxf(top[0], __shfl_xor_sync(~0u, top[0], 4));
      const int key_group = 2 * h + (g >> 1 & 1);
      float* slot = shared + (group * 4 + key_group) * tile_warps;
      if ((lane & 0x17) == 0) slot[warp % tile_warps] = top[0];
      tile_barrier(1 + group, tile_warps * 32);
#pragma unroll
      for (int i = 0; i < tile_warps; ++i) top[0] = fmaxf(top[0], slot[i]);
#pragma unroll
      for (int c = 1; c < chunks; ++c) top[c] = top[0];
      if (warp % tile_warps == 0 && (lane & 0x17) == 0)
        p.passes[2 * at.index].key[key_group] = p.passes[2 * at.index + 1].key[key_group] =
            divide(fmaxf(top[0] * rotation_scale, smallest_maximum), 127);
    }
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const int row = tile_row + c * 16 + h * 4 + row_g;  // in the tile
      if (!is_key && quad == 0) {
        const std::int64_t token = at.index * tile_tokens + row;
        if (g < 4)
          p.query_scale[(at.index * tile_tokens + tile_row + c * 16) / 2 + h * 4 + g] =
              divide(fmaxf(top[c] * rotation_scale, smallest_maximum), 127);
        p.correction[token] = dot[c][0] + dot[c][3];
      }
      const float inverse = divide(127, fmaxf(top[c], smallest_maximum)), factor = !is_key && p.scale < 0 ? -inverse : inverse;
#pragma unroll
      for (int u = 0; u < pieces; u += 2) {
        std::uint32_t packed[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&r)[4] = y[c][u + (i >> 1)][i & 1];
          packed[i] = ptx::pack_i8(r[0] * factor, r[1] * factor, r[2] * factor, r[3] * factor);
        }
        *reinterpret_cast<uint4*>(out + row * dim + swizzled<dim>(quad + 2 * u, row) * 16) =
            make_uint4(packed[0], packed[1], packed[2], packed[3]);
      }
    }
  }
}

// ---- values

// One step of a sum over lanes that leaves each with half of the results: of a lane whose `bit` is clear the lower.
__device__ __forceinline__ float scatter_sum(float lower, float upper, int column, int bit) {
  return (column & bit ? upper : lower) + __shfl_xor_sync(~0u, column & bit ? lower : upper, bit);
}

// The mean size of the tile's smallest key that is not zero. sizes: of each of the tile's warps, the keys' sums over its channels.
template <int dim>
__device__ __forceinline__ float smallest_key(const float* sizes, int lane) {
  float4 size = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < dim / 32; ++i) {
    const float4 x = *reinterpret_cast<const float4*>(sizes + i * tile_tokens + lane * 4);
    size = make_float4(size.x + x.x, size.y + x.y, size.z + x.z, size.w + x.w);
  }
  const auto real = [&](float x) { return x > 0 ? x : infinity; };
  float least = fminf(fminf(real(size.x), real(size.y)), fminf(real(size.z), real(size.w)));
#pragma unroll
  for (int i = 16; i; i /= 2) least = fminf(least, __shfl_xor_sync(~0u, least, i));
  return least / dim;
}

// A warp has 128 keys x 32 channels of a tile, a thread 16 keys x 8 channels.
template <class T, int dim>
struct ValuePart {
  static constexpr int warps = dim / 32, groups = 8 / warps;  // of a tile; tiles of a CTA
  int lane, block, column, group, warp, channel0;
  bool exists;
  TilePlace at;
  int valid;              // keys of the thread's 16
  const T* from;          // its first key's first channel
  const float* channels;  // λ of its first channel

  __device__ __forceinline__ ValuePart(const Params& p, int unit) {
    lane = threadIdx.x % 32;
    block = lane / 4;
    column = lane % 4;
    group = threadIdx.x / 32 / warps;
    warp = threadIdx.x / 32 % warps;
    channel0 = warp * 32 + column * 8;
    const int index = unit * groups + group;
    exists = index < p.key_tiles * p.kv_heads;
    if (!exists) return;
    at = tile_place<false>(p, index);
    const Place sequence = place(p, at.sequence);
    valid = min(tile_tokens, sequence.keys - at.tile * tile_tokens) - block * 16;
    from = static_cast<const T*>(p.value.data) + sequence.batch * p.value.batch + at.head * p.value.head +
           (sequence.key_begin + at.tile * tile_tokens + block * 16) * p.value.token + channel0;
    channels = p.channels + (static_cast<std::int64_t>(at.sequence) * p.kv_heads + at.head) * dim + channel0;
  }
  // Where its keys' integers of a channel stand in a tile.
  __device__ __forceinline__ int to(int c) const { return (channel0 + c) * tile_tokens + swizzled<128>(block, c) * 16; }
};

// The residual plane of a flagged tile. Rare: the tile is read again, an element at a time, and nothing is kept for it in registers before.
template <class T, int dim>
__device__ __forceinline__ void quantise_residuals(const Params& p, int unit, float scale, float inverse) {
  asm volatile("" : "+r"(unit));  // what it leads to is computed again
  const ValuePart<T, dim> part(p, unit);
  std::int8_t* out = p.residuals + part.at.index * tile_tokens * dim;
#pragma unroll 1
  for (int c = 0; c < 8; ++c) {
    const float f = divide(1, __ldcg(part.channels + c));
    const auto rest = [&](int key) {
      float v = key < part.valid ? static_cast<float>(part.from[key * p.value.token + c]) : 0.f;
      if (!(fabsf(v) < infinity)) v = 0;
      return __fsub_rn(v * f, __fmul_rn(rintf(v * (f * inverse)), scale)) * (residual_parts * inverse);
    };
    std::uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) packed[i] = ptx::pack_i8(rest(2 * i), rest(2 * i + 1), rest(2 * i + 8), rest(2 * i + 9)) ^ value_offsets;
    *reinterpret_cast<uint4*>(out + part.to(c)) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
  }
}

template <class T, int dim>
__device__ __forceinline__ void quantise_values(const Params& p, int unit, float* shared) {
  const ValuePart<T, dim> part(p, unit);
  if (!part.exists) return;
  uint4 x[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] = i < part.valid ? load_input(part.from + i * p.value.token) : make_uint4(0, 0, 0, 0);
  ptx::wait_for_previous();  // for the sample
  float factor[8];
#pragma unroll
  for (int c = 0; c < 8; c += 4) {
    const uint4 l = load_sampled(part.channels + c);
#pragma unroll
    for (int w = 0; w < 4; ++w) factor[c + w] = divide(1, __uint_as_float(word(l, w)));
  }

  // The largest |v / λ| of a channel is that of its largest |v|, which is found among the bits as integers, two at a time.
  std::uint32_t largest[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i)
#pragma unroll
    for (int w = 0; w < 4; ++w) largest[w] = __vmaxu2(largest[w], word(x[i], w) & 0x7fff7fffu);
  if (has_nonfinite<T>(largest)) {
    p.spoilt_values[part.at.index] = 1, *p.spoilt = 1;
#pragma unroll
    for (std::uint32_t& l : largest) l = 0;
#pragma unroll
    for (uint4& key : x) {
      key = finite_part<T>(key);
#pragma unroll
      for (int w = 0; w < 4; ++w) largest[w] = __vmaxu2(largest[w], word(key, w) & 0x7fff7fffu);
    }
  }
  float size[8];
  const auto size_of = [&](const uint4& key) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      sum = fmaf(fabsf(low<T>(word(key, w))), factor[2 * w], sum);
      sum = fmaf(fabsf(high<T>(word(key, w))), factor[2 * w + 1], sum);
    }
    return sum;
  };
  // Over the 4 lanes that share keys: lane `column` ends with those of keys 4 column ... 4 column + 3.
#pragma unroll
  for (int i = 0; i < 8; ++i) size[i] = scatter_sum(size_of(x[i]), size_of(x[i + 8]), part.column, 2);
#pragma unroll
  for (int i = 0; i < 4; ++i) size[i] = scatter_sum(size[i], size[i + 4], part.column, 1);
  float top = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) top = fmaxf(top, fmaxf(low<T>(largest[w]) * factor[2 * w], high<T>(largest[w]) * factor[2 * w + 1]));
  float* sizes = shared + part.group * part.warps * tile_tokens;
  float* tops = shared + 8 * tile_tokens + part.group * part.warps;
  *reinterpret_cast<float4*>(sizes + part.warp * tile_tokens + part.lane * 4) = make_float4(size[0], size[1], size[2], size[3]);
#pragma unroll
  for (int i = 16; i; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
  if (part.lane == 0) tops[part.warp] = top;
  tile_barrier(1 + part.group, part.warps * 32);
#pragma unroll
  for (int i = 0; i < part.warps; ++i) top = fmaxf(top, tops[i]);
  const bool flagged = top > flag_ratio * smallest_key<dim>(sizes, part.lane);
  top = fmaxf(top, smallest_maximum);
  const float scale = divide(top, 127), inverse = divide(127, top);
  if (part.warp == 0 && part.lane == 0) {
    auto* passes = reinterpret_cast<int4*>(p.passes + 2 * part.at.index);  // of both the second half: value, last, flagged, unused
    passes[1] = make_int4(__float_as_int(scale), 1, flagged, 0);
    passes[3] = make_int4(__float_as_int(scale * (1 / residual_parts)), 0, flagged, 0);
  }

  // Order inside 16 keys: 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15, in which the attention kernel's registers hold its weights: word i of a
  // channel has keys 2 i, 2 i + 1, 2 i + 8, 2 i + 9.
#pragma unroll
  for (float& f : factor) f *= inverse;
    // The compiler must not keep fp32 copies from the first time.
#pragma unroll
  for (int i = 0; i < 16; ++i) asm volatile("" : "+r"(x[i].x), "+r"(x[i].y), "+r"(x[i].z), "+r"(x[i].w));
  std::uint8_t* out = p.tiles + (part.at.index * 2 + 1) * tile_tokens * dim;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    std::uint32_t y0[4], y1[4];
    const float f0 = factor[2 * w], f1 = factor[2 * w + 1];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t a = word(x[2 * i], w), b = word(x[2 * i + 1], w), c = word(x[2 * i + 8], w), d = word(x[2 * i + 9], w);
      y0[i] = ptx::pack_i8(low<T>(a) * f0, low<T>(b) * f0, low<T>(c) * f0, low<T>(d) * f0) ^ value_offsets;
      y1[i] = ptx::pack_i8(high<T>(a) * f1, high<T>(b) * f1, high<T>(c) * f1, high<T>(d) * f1) ^ value_offsets;
    }
    *reinterpret_cast<uint4*>(out + part.to(2 * w)) = make_uint4(y0[0], y0[1], y0[2], y0[3]);
    *reinterpret_cast<uint4*>(out + part.to(2 * w + 1)) = make_uint4(y1[0], y1[1], y1[2], y1[3]);
  }
  if (flagged) quantise_residuals<T, dim>(p, unit, scale, inverse);
}

// ---- the two kernels

// CTAs of the main kernel by what they do. Those of values compute most: they are spread among the others.
template <int dim>
struct Units {
  int values, keys, all;
  __host__ __device__ explicit Units(const Params& p) {
    const auto ceiling = [](int a, int b) { return (a + b - 1) / b; };
    const int key_tiles = p.key_tiles * p.kv_heads, query_tiles = p.query_tiles * p.heads;
    values = ceiling(key_tiles, 256 / dim);
    keys = ceiling(key_tiles, 128 / dim);
    all = values + keys + ceiling(query_tiles, 128 / dim);
  }
};

template <class T, int dim>
__global__ void __launch_bounds__(quantise_threads, 2) quantise_kernel(const __grid_constant__ Params p) {
  __shared__ __align__(16) float shared[8 * tile_tokens + 8];
  ptx::let_next_start();
  const Units<dim> units(p);
  const int index = blockIdx.x, every = units.all / max(units.values, 1), value = index / every;  // each `every`th, while there are any
  if (index == value * every && value < units.values) return quantise_values<T, dim>(p, value, shared);
  const int unit = index - min(value + 1, units.values);
  if (unit < units.keys)
    rotate<T, dim, true>(p, unit, shared);
  else
    rotate<T, dim, false>(p, unit - units.keys, shared);
}

// The sum over a CTA's threads of the first `count` (a multiple of 32).
__device__ double total(double x, int count, double* shared) {
#pragma unroll
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < count / 32; ++i) sum += shared[i];
  return sum;
}

// Of a call whose sequences are alike; the others' is found where they are.
struct SampleParams {
  Params params;
  Sample same;
};

// One CTA for the centre of each head's keys and one for the λ of its values; and, shared among all, what the call's other kernels need.
template <class T, int dim>
__global__ void __launch_bounds__(most_sample_threads) sample_kernel(const __grid_constant__ SampleParams all) {
  ptx::let_next_start();
  const Params& p = all.params;
  constexpr int lanes = dim / 8;
  const int rows = blockDim.x / lanes, warps = blockDim.x / 32;
  // No more shared memory than this CTA needs: the kernel that overlaps wants it as L1 cache.
  extern __shared__ double sums[];                               // [warps][dim]
  float* maxima = reinterpret_cast<float*>(sums + warps * dim);  // [warps][dim]
  __shared__ double parts[most_sample_threads / 32];
  __shared__ int left_out;  // keys of the sample
  const int heads = p.sequences * p.kv_heads, row = blockIdx.x % heads, head = row % p.kv_heads;
  const bool is_value = blockIdx.x >= heads;
  const View& in = is_value ? p.value : p.key;
  const Place sequence = place(p, row / p.kv_heads);
  const Sample sample = p.places ? Sample(sequence.keys) : all.same;
  const int lane = threadIdx.x % 32, chunk = threadIdx.x % lanes;
  const T* base = static_cast<const T*>(in.data) + sequence.batch * in.batch + head * in.head + sequence.key_begin * in.token + chunk * 8;
  const auto load_row = [&](int i) {
    const int token = threadIdx.x / lanes + i * rows;
    return token < sample.count ? load_input(base + sample.token(token) * in.token) : make_uint4(0, 0, 0, 0);
  };
  uint4 x[sample_loads];
#pragma unroll
  for (int i = 0; i < sample_loads; ++i) x[i] = load_row(i);
  if (threadIdx.x == 0) left_out = 0;
  __syncthreads();

  float sum[8] = {};
  std::uint32_t largest[4] = {};  // |x|, as integers, two in a word
  const auto add = [&](const uint4& y) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const std::uint32_t size = word(y, w) & 0x7fff7fffu, summand = is_value ? size : word(y, w);
      largest[w] = __vmaxu2(largest[w], size);
      sum[2 * w] += low<T>(summand);
      sum[2 * w + 1] += high<T>(summand);
    }
  };
#pragma unroll
  for (const uint4& y : x) add(y);
  if (__any_sync(~0u, has_nonfinite<T>(largest))) {
#pragma unroll
    for (int c = 0; c < 8; ++c) sum[c] = largest[c / 2] = 0;
#pragma unroll 1
    for (int i = 0; i < sample_loads; ++i) {  // again, of keys without the row, of values without the number
      const uint4 y = load_row(i);
      const std::uint32_t words[4] = {y.x, y.y, y.z, y.w};
      const unsigned spoilt = __ballot_sync(~0u, has_nonfinite<T>(words)) >> lane / lanes * lanes & ((1u << lanes) - 1);
      if (is_value)
        add(finite_part<T>(y));
      else if (!spoilt)
        add(y);
      else if (chunk == 0)
        atomicAdd(&left_out, 1);
    }
  }
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    double whole = sum[c];  // of all tokens in double
    float top = c % 2 ? high<T>(largest[c / 2]) : low<T>(largest[c / 2]);
#pragma unroll
    for (int s = lanes; s < 32; s *= 2) {
      whole += __shfl_xor_sync(~0u, whole, s);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, s));
    }
    if (lane < lanes) {
      sums[threadIdx.x / 32 * dim + chunk * 8 + c] = whole;
      maxima[threadIdx.x / 32 * dim + chunk * 8 + c] = top;
    }
  }
  __syncthreads();
  const int c = threadIdx.x;
  const auto count = static_cast<double>(sample.count - left_out);
  double whole = 0;
  float top = 0, lambda = 0;
  if (c < dim) {
    for (int w = 0; w < warps; ++w) {
      whole += sums[w * dim + c];
      top = fmaxf(top, maxima[w * dim + c]);
    }
    if (count > 0) whole /= count;
    const float mean = static_cast<float>(whole);
    if (!is_value) static_cast<T*>(p.centre)[static_cast<std::int64_t>(row) * dim + c] = static_cast<T>(mean);
    lambda = fminf(top, channel_ceiling * mean);
  }
  if (is_value) {  // as one: the CTA has one kind
    const float mean = static_cast<float>(total(lambda, dim, parts) / dim);
    if (c < dim) p.channels[static_cast<std::int64_t>(row) * dim + c] = mean > smallest_maximum ? fmaxf(lambda, mean * channel_floor) : 1;
  }
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
  prepare(p, thread, threads);
  for (int i = thread; i < p.query_tiles * p.heads; i += threads) p.spoilt_queries[i] = 0;
  for (int i = thread; i < p.key_tiles * p.kv_heads; i += threads) p.spoilt_keys[i] = p.spoilt_values[i] = 0;
}

template <class T, int dim>
void start(const Params& p, cudaStream_t stream) {
  const Sample largest(p.places ? std::int64_t{tile_tokens} * p.key_tiles : p.same.keys);
  const int chunks = static_cast<int>(largest.count) * (dim / 8), warp_chunks = 32 * sample_loads;
  const int threads = std::clamp((chunks + warp_chunks - 1) / warp_chunks * 32, 128, most_sample_threads);
  launch(sample_kernel<T, dim>,
         {.blocks = static_cast<unsigned>(2 * p.sequences * p.kv_heads),
          .threads = static_cast<unsigned>(threads),
          .shared_bytes = static_cast<unsigned>(threads / 32 * dim * (sizeof(double) + sizeof(float)))},
         stream, {p, Sample(p.same.keys)});
  launch(quantise_kernel<T, dim>, {.blocks = static_cast<unsigned>(Units<dim>(p).all), .threads = quantise_threads, .overlaps = true},
         stream, p);
}

}  // namespace

void quantise(const Params& params, bool bf16, cudaStream_t stream) {
  const int dim = params.dim;
  if (bf16)
    dim == 64 ? start<__nv_bfloat16, 64>(params, stream) : start<__nv_bfloat16, 128>(params, stream);
  else
    dim == 64 ? start<__half, 64>(params, stream) : start<__half, 128>(params, stream);
}

}  // namespace chitu::cuda::sm90
