// SPDX-License-Identifier: Apache-2.0
// Attention on Hopper, of any of the methods' recipes: one CTA a multiprocessor, a warpgroup that produces, others of 64 query rows each.
// docs/kernels/sm90.md draws the schedule and has what was measured.
//
//   item: the block of queries of a head that a CTA takes. The producer takes items from a counter, writes what the warpgroups need of one
//         into shared memory and keeps a ring of tiles full: 128 keys and values each. A flagged tile comes twice, first with its
//         residual plane for values: so the main loop has no branch for it.
//   tile: S = Q K^T, P = round(top 2^(s - reference)) in registers, O += P V. The warpgroups meet only through the ring.
//
// Barriers, each with a parity that flips when it completes:
//   described      the producer's arrival; those of its threads that bring the item wait. What the item is, is written.
//   query_full     the producer's arrival and the copies' bytes; the warpgroups wait. The item is there.
//   query_empty    every thread of the warpgroups and the two that bring it; the producer waits. An item is done with.
//   full           the producer's arrival and bytes; the warpgroups wait. A tile is there.
//   empty          every thread of the warpgroups; the producer waits. (One a warp is no faster, and racecheck does not understand it.)
//   value_full, value_empty   the same for values where keys have barriers of their own (Config::split).
//   block_read     every thread of the warpgroups; the producer waits. Queries that they quantise themselves are read.
//   named 1 ...    the warps of a warpgroup; with quantizes_queries, around the queries that lie where these warps stage what they store.
#pragma once

#include "cuda/launch.h"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/shared.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/sm90/epilogue.cuh"
#include "cuda/sm90/kernels.h"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/queries.cuh"
#include "cuda/sm90/tensor_map.h"
#include "cuda/weights/softmax.cuh"

namespace chitu::cuda::sm90 {

// Integer products with values are sums of unsigned numbers below 2^23, since values have value_offset: read as floats they are the same
// numbers times 2^-149, exactly, and so need no conversion. What the offset adds is a multiple of the row's sum of weights, taken away
// every few tiles, before it costs precision. Outputs are in a unit that keeps such products in fp32's range.
constexpr float integer_unit = 0x1p85f, integer_unit_back = 0x1p64f;  // 2^-149 integer_unit integer_unit_back = 1
constexpr int offset_tiles = 32;

template <class C>
struct Consumer {
  using Item = typename C::Item;
  using Score = std::conditional_t<C::integer_scores, std::uint32_t, float>;
  using Product = std::conditional_t<C::integer_values, std::uint32_t, float>;
  static constexpr Form form = C::form;
  static constexpr int value_panel = tile_tokens * 128;  // bytes of 64 16-bit channels
  using Queries = ptx::Matrix<C::panel>;
  using Values = ptx::Matrix<128, (form.value_bytes == 2 && C::width > 64) ? value_panel : 16>;

  const Params& p;
  const typename C::At at;
  const int warpgroup;
  const float opaque_zero;  // of weigh()
  Ring<C::key_slots, 0> ring;
  Ring<C::value_slots, 0> values;

  // s = q k^T
  __device__ __forceinline__ void scores(Score (&s)[64], Queries query, Queries key) {
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::row_bytes / 32; ++k) {
      const int panel = k * 32 / C::panel, byte = k * 32 % C::panel;
      const auto a = query.plus(panel * form.block_queries * C::panel + byte).descriptor();
      const auto b = key.plus(panel * tile_tokens * C::panel + byte).descriptor();
      k ? ptx::scores<C::score_type, true>(s, a, b) : ptx::scores<C::score_type, false>(s, a, b);
    }
    ptx::wgmma_commit();
  }

  // t (+)= p v over blocks of 32 keys, for the channels of a half.
  template <bool add, class Number, int count>
  __device__ __forceinline__ void weighted(Number (&t)[count], const std::uint32_t (&w)[form.value_bytes * 16], Values v, int first = 0,
                                           int blocks = 4) {
    constexpr int step = form.value_bytes == 2 ? 16 * 128 : 32;
#pragma unroll
    for (int k = first * form.value_bytes; k < (first + blocks) * form.value_bytes; ++k) {
      const auto b = v.plus(k * step).descriptor();
      add || k ? ptx::weighted<C::value_type, true>(t, w + 4 * k, b) : ptx::weighted<C::value_type, false>(t, w + 4 * k, b);
    }
  }

  __device__ __forceinline__ void hand_back(int tiles) {
#pragma unroll 1
    while (tiles > 0) {
      ptx::barrier_wait(at.full(ring.slot()), ring.parity());
      tiles -= form.residuals ? ptx::load_int(at.scales(ring.slot()) + offsetof(PassScales, last)) : 1;
      ptx::barrier_arrive(at.empty(ring.slot()));
      ring.advance();
      if constexpr (C::separate_value_barriers) {
        ptx::barrier_wait(at.value_full(values.slot()), values.parity());
        ptx::barrier_arrive(at.value_empty(values.slot()));
        values.advance();
      }
    }
  }

  // Of two things of the thread's rows, that of the row whose sums of rounded weights it adds up.
  template <class T>
  __device__ static __forceinline__ T mine(T row, T row_8) {
    return threadIdx.x & 1 ? row_8 : row;
  }

  // The thread's two rows: output so far, in units of the reference 2^m.
  struct Rows {
    float o[C::halves][C::width / 2];
    float m[2] = {lowest, lowest}, unrounded[2] = {0, 0};
    // Of only one row, mine(), for the registers: even and odd lanes add up different ones. offset: a share of what value_offset has added
    // to o.
    float rounded = 0, offset = 0;

    __device__ __forceinline__ void rescale(const float (&a)[2]) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        unrounded[r] *= a[r];
      }
      if constexpr (C::integer_values) {
        rounded *= mine(a[0], a[1]);
        offset *= mine(a[0], a[1]);
      }
#pragma unroll
      for (auto& half : o)
#pragma unroll
        for (int i = 0; i < C::width / 2; ++i) half[i] *= a[i >> 1 & 1];
    }
    // A reference for maxima x: the old one, unless it lags too far behind.
    __device__ __forceinline__ void refer(const float (&x)[2]) {
      if (!__any_sync(~0u, (x[0] > m[0] + C::lag) | (x[1] > m[1] + C::lag))) return;
      float a[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float n = fmaxf(m[r], x[r]);
        a[r] = ptx::exp2_approx(m[r] - n);
        m[r] = n;
      }
      rescale(a);
    }
    __device__ __forceinline__ void remove_offset() {
      const float both = offset + __shfl_xor_sync(~0u, offset, 2), other = __shfl_xor_sync(~0u, both, 1);
      const float b[2] = {-mine(both, other), -mine(other, both)};
#pragma unroll
      for (auto& half : o)
#pragma unroll
        for (int i = 0; i < C::width / 2; ++i) half[i] += b[i >> 1 & 1];
      offset = 0;
    }
  };

  __device__ void run() {
    const auto keys = Queries::at(at.key(0));
    const auto first_value = Values::at(at.value(0));
    Ring<C::item_slots, 0> items;
#pragma unroll 1
    for (;; items.advance()) {
      ptx::barrier_wait(at.query_full(items.slot()), items.parity());
      items.keep_uniform();
      ring.keep_uniform();
      const std::uint32_t item = at.item(items.slot());
      const int4 what = ptx::load_int4(item + offsetof(Item, what));
      if (what.x == 0) return;
      if (warpgroup * 64 >= what.x) {  // no rows for this warpgroup
        if constexpr (C::quantizes_queries) ptx::barrier_arrive(at.block_read());
        hand_back(what.z - what.y);
        ptx::barrier_arrive(at.query_empty(items.slot()));
        continue;
      }
      if constexpr (C::quantizes_queries) quantize_queries<C>(p, at, item, warpgroup);
      const int2 share = ptx::load_int2(item + offsetof(Item, share) + warpgroup * 16);
      hand_back(share.x - what.y);
      const auto query = Queries::at(at.query(items.slot(), warpgroup));
      // The softmax is in powers of 2. Read for each tile where there is no register for it.
      const auto query_scales = [&](float(&scale)[2]) {
        scale[0] = scale[1] = fabsf(p.scale) * log2_e;
        if constexpr (C::query_scales) {
          const int t = ptx::thread_index_again();
          const std::uint32_t from = item + offsetof(Item, query_scale) + (t >> 5) * (64 / form.query_scale_rows) + (t >> 2 & 7) * 4;
          scale[0] *= ptx::load_float(from);
          scale[1] = form.query_scale_rows == 2 ? scale[0] : scale[1] * ptx::load_float(from + 32);
        }
      };
      float query_scale[2];
      query_scales(query_scale);
      Rows rows;
#pragma unroll
      for (auto& half : rows.o)
#pragma unroll
        for (float& x : half) x = 0;
      bool ready = share.x < share.y && ptx::barrier_try(at.full(ring.slot()), ring.parity());

#pragma unroll 1
      for (int tile = share.x; tile < share.y;) {
        Score s[64];
        if (!ready) ptx::barrier_wait(at.full(ring.slot()), ring.parity());
        scores(s, query, keys.plus(ring.slot() * C::key_bytes));
        const int used = ring.slot(), used_value = C::separate_value_barriers ? values.slot() : used;
        // Not zero, so that c times an unseen score is minus infinity.
        float c[2] = {query_scale[0], query_scale[1]};
        if constexpr (C::warpgroups == 4) query_scales(c);
        if constexpr (C::key_scales) {
          const float key_scale = ptx::load_float(at.scales(used) + (threadIdx.x & 3) * 4);
          c[0] *= key_scale;
          c[1] *= key_scale;
        }
        c[0] = fmaxf(c[0], 1e-37f);
        c[1] = fmaxf(c[1], 1e-37f);
        const int2 whole = ptx::load_int2(item + offsetof(Item, share) + warpgroup * 16 + 8);
        ptx::wgmma_wait(s);
        const bool masked = tile < whole.x || tile >= whole.y;
        std::uint32_t weights[form.value_bytes * 16];
        float unrounded[2] = {0, 0};
        float x[2];               // the maxima, then what the tile's integer product is multiplied by
        float moved[2];           // what the output so far is multiplied by, with Config::folds
        Product t[C::width / 2];  // of one half of the channels
        const auto value = first_value.plus(used_value * C::value_bytes);
        const auto soften = [&](auto& scores) {
          if (masked) [[unlikely]] {
            mask<Item>(scores, item, tile);
            maxima<true>(scores, c, x);
          } else {
            maxima<false>(scores, c, x);
          }
          x[0] = quad_maximum(x[0]);
          x[1] = quad_maximum(x[1]);
          if constexpr (!C::by_tile && !C::folds) rows.refer(x);
          if constexpr (C::folds) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const float n = fmaxf(rows.m[r], x[r]);
              moved[r] = ptx::exp2_approx(rows.m[r] - n);
              rows.m[r] = n;
            }
          }
          const float(&reference)[2] = C::by_tile ? x : rows.m;
          weigh<C>(scores, c, {C::log2_top - reference[0], C::log2_top - reference[1]}, opaque_zero, weights, unrounded, [&](int block) {
            if constexpr (C::early) {
              ptx::wgmma_fence();
              if constexpr (C::sums_in_place)
                weighted<true>(rows.o[0], weights, value, block, 1);
              else
                weighted<false>(t, weights, value, block, 1);
              ptx::wgmma_commit();
            }
          });
        };
        if constexpr (form.scale_each_key) {
          float scaled[64];
          scale_keys(s, at.key_scale(used), scaled);
          if constexpr (C::separate_value_barriers) ptx::barrier_arrive(at.empty(used));
          soften(scaled);
        } else {
          if constexpr (C::separate_value_barriers) ptx::barrier_arrive(at.empty(used));
          soften(s);
        }
        if constexpr (C::separate_value_barriers) ptx::barrier_wait(at.value_full(used_value), values.parity());

        const auto next = [&] {  // behind the product
          ring.advance();
          if constexpr (C::separate_value_barriers) values.advance();
          ready = ptx::barrier_try(at.full(ring.slot()), ring.parity());
        };
        if constexpr (C::sums_in_place) {
          if constexpr (!C::early) {
            ptx::wgmma_fence();
#pragma unroll
            for (int half = 0; half < C::halves; ++half)
              weighted<true>(rows.o[half], weights, value.plus(half * C::width / 64 * value_panel));
            ptx::wgmma_commit();
          }
          next();
#pragma unroll
          for (int r = 0; r < 2; ++r) rows.unrounded[r] += unrounded[r];
          ++tile;
          ptx::wgmma_wait(rows.o);
          ptx::barrier_arrive(C::separate_value_barriers ? at.value_empty(used_value) : at.empty(used));
        } else {
#pragma unroll
          for (int half = 0; half < C::halves; ++half) {
            if constexpr (!C::early) {
              ptx::wgmma_fence();
              weighted<false>(t, weights, value.plus(half * C::width * tile_tokens));
              ptx::wgmma_commit();
            }
            if (half == 0) {
              next();
              int last = 1;
              if constexpr (form.residuals) last = ptx::load_int(at.scales(used) + offsetof(PassScales, last));
              tile += last;
              if constexpr (C::by_tile) rows.refer(x);
              std::uint32_t rounded = 0;
              if constexpr (C::integer_values) {
                const std::uint32_t sums[2] = {rounded_sum(weights, 0), rounded_sum(weights, 1)};
                rounded = mine(sums[0], sums[1]) + __shfl_xor_sync(~0u, mine(sums[1], sums[0]), 1);
              }
              if constexpr (C::by_tile) {
                float value_scale = integer_unit;
                if constexpr (C::value_scales) value_scale *= ptx::load_float(at.scales(used) + offsetof(PassScales, value));
#pragma unroll
                for (int r = 0; r < 2; ++r) x[r] = ptx::exp2_approx(x[r] - rows.m[r]);
                rows.rounded = fmaf(__uint2float_rn(rounded * last), mine(x[0], x[1]), rows.rounded);
#pragma unroll
                for (int r = 0; r < 2; ++r) x[r] *= value_scale;
              } else {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                  if constexpr (C::unrounded_sums)
                    rows.unrounded[r] = C::folds ? fmaf(rows.unrounded[r], moved[r], unrounded[r]) : rows.unrounded[r] + unrounded[r];
                  x[r] = integer_unit;
                }
                if constexpr (C::integer_values) rows.rounded += __uint2float_rn(rounded);
              }
              if constexpr (C::integer_values) rows.offset = fmaf(__uint_as_float(rounded * value_offset), mine(x[0], x[1]), rows.offset);
            }
            ptx::wgmma_wait(t);
            if (half == C::halves - 1) ptx::barrier_arrive(C::separate_value_barriers ? at.value_empty(used_value) : at.empty(used));
#pragma unroll
            for (int i = 0; i < C::width / 2; ++i) {
              const int r = i >> 1 & 1;
              float& o = rows.o[half][i];
              if constexpr (C::integer_values)
                o = fmaf(__uint_as_float(t[i]), x[r], o);
              else
                o = fmaf(o, moved[r], t[i]);
            }
          }
          if constexpr (C::integer_values)
            if (tile % offset_tiles == 0) rows.remove_offset();
        }
      }
      if constexpr (C::integer_values) rows.remove_offset();

      hand_back(ptx::load_int4(item + offsetof(Item, what)).z - ptx::load_int2(item + offsetof(Item, share) + warpgroup * 16).y);
      float rounded[2] = {}, others[2] = {};
      if constexpr (C::rounded_sums) {
        const float both = rows.rounded + __shfl_xor_sync(~0u, rows.rounded, 2), other = __shfl_xor_sync(~0u, both, 1);
        rounded[0] = mine(both, other);
        rounded[1] = mine(other, both);
      }
      if constexpr (C::unrounded_sums) {
        others[0] = quad_sum(rows.unrounded[0]);
        others[1] = quad_sum(rows.unrounded[1]);
      }
      if constexpr (C::splittable) {
        const int piece = ptx::load_int4(item + offsetof(Item, what)).w;
        if (piece >= 0 && !join<C>(p, piece, rows.o, rows.m, rounded, others)) {  // others are at work on it
          ptx::barrier_arrive(at.query_empty(items.slot()));
          if constexpr (C::quantizes_queries) ptx::named_barrier(1 + warpgroup, 128);
          continue;
        }
      }
      finish<C>(p, at, items.slot(), rows.o, rows.m, C::rounded_output ? rounded : others, C::rounded_lse ? rounded : others,
                C::integer_values ? integer_unit_back : 1.f);
    }
  }
};

struct Launch {
  Params params;
  CUtensorMap queries_as_given;  // with quantizes_queries: [batch][head][token][channel]
  float opaque_zero;             // of weigh() and produce_items()
};

template <class C>
__global__ void __launch_bounds__(C::threads, 1) attention_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const typename C::At at{ptx::shared_address(shared)};
  // Through a shuffle, so that it is known to be uniform: descriptors stay in uniform registers.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::item_slots; ++i) {
      ptx::barrier_init(at.item_written(i), 1);
      ptx::barrier_init(at.query_full(i), 1);
      ptx::barrier_init(at.query_empty(i), C::consumers + 2);
    }
    for (int i = 0; i < C::key_slots; ++i) {
      ptx::barrier_init(at.full(i), 1);
      ptx::barrier_init(at.empty(i), C::consumers);
    }
    for (int i = 0; C::separate_value_barriers && i < C::value_slots; ++i) {
      ptx::barrier_init(at.value_full(i), 1);
      ptx::barrier_init(at.value_empty(i), C::consumers);
    }
    ptx::barrier_init(at.block_read(), C::consumers);
    ptx::barrier_init_fence();
  }
  if constexpr (C::quantizes_queries) write_hadamard<C>(at.hadamard(), threadIdx.x, C::threads);
  __syncthreads();
  if (warpgroup == C::warpgroups) {
    ptx::give_registers<C::producer_registers>();
    if (threadIdx.x == C::consumers) produce_tiles<C>(launch.params, at);
    if (threadIdx.x == C::consumers + 32) produce_items<C>(launch.params, at, launch.opaque_zero);
    if (threadIdx.x == C::consumers + 64) produce_queries<C>(launch.params, launch.queries_as_given, at);
  } else {
    ptx::take_registers<C::registers>();
    Consumer<C>{launch.params, at, warpgroup, launch.opaque_zero}.run();
  }
}

template <class C>
void start(const Params& params, const Tensor& query, int processors, cudaStream_t stream) {
  const std::int64_t items = params.split.whole + std::int64_t{split_item_count(params)} * params.split.pieces;
  launch(attention_kernel<C>,
         {.blocks = static_cast<unsigned>(items < processors ? items : processors),
          .threads = C::threads,
          .shared_bytes = sizeof(typename C::Shared),
          .overlaps = true},
         stream, Launch{params, C::quantizes_queries ? query_map(query, C::form.block_queries) : CUtensorMap{}, 0.f});
}

}  // namespace chitu::cuda::sm90
