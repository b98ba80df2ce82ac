// SPDX-License-Identifier: Apache-2.0
// A warpgroup of the direct kernel that computes, 64 query rows. Between them warpgroups share the tiles and nothing else.
//
// Barriers, each with a parity that flips when it completes:
//   item_written   the items warp arrives; the tiles thread waits. It is written what the item is.
//   item_empty     all threads of the warpgroups and the tiles thread arrive; the items warp waits. The item is read.
//   query_full     the items warp and its copies' bytes arrive; the warpgroups wait. The item and its queries are there.
//   query_empty    all threads of the warpgroups arrive; the items warp waits. The last scores of the item are computed.
//   key_full, value_full     the tiles thread and its copies' bytes arrive; the warpgroups wait. A tile's keys, or its values, are there.
//   key_empty, value_empty   all threads of the warpgroups arrive; the tiles thread waits. They are multiplied.
#pragma once

#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/shared.h"
#include "cuda/ptx/wgmma16.h"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/direct/config.cuh"
#include "cuda/sm90/direct/finish.cuh"
#include "cuda/weights/join.cuh"
#include "cuda/weights/rows.cuh"
#include "cuda/weights/softmax.cuh"

namespace chitu::cuda::sm90::direct {

// The largest score of one of the thread's rows, in four chains.
template <int count>
__device__ __forceinline__ float largest_of_row(const float (&s)[count], int row) {
  float top[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) top[i] = fmaxf(s[4 * i + 2 * row], s[4 * i + 2 * row + 1]);
#pragma unroll
  for (int i = 4; i < count / 4; ++i) top[i % 4] = fmaxf(fmaxf(top[i % 4], s[4 * i + 2 * row]), s[4 * i + 2 * row + 1]);
  return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
}

template <class C>
struct Consumer {
  using Item = typename C::Item;
  using Keys = ptx::Matrix<128>;                 // and queries
  using Values = ptx::Matrix<128, C::key_panel>;  // a product spans their panels
  static constexpr int scores = C::keys / 2;

  // An item as this warpgroup has it.
  struct Work {
    Keys queries;  // its 64 rows
    float scale;   // a score times this is an exponent of 2
    int tile, end;
    int2 whole;  // the tiles that every row sees in full: the first, and their end
    int count;   // of the warp's 16 rows those that exist, if positive
    int piece;
    int sequence, head, row;
  };

  const Params& p;
  const typename C::At at;
  const int warpgroup;
  Ring<2, 0> items;
  Ring<C::query_slots, 0> blocks;
  Ring<C::slots, 0> keys, values;

  __device__ void run() {
#pragma unroll 1
    for (;; items.advance(), blocks.advance()) {
      // Wait for an item.
      ptx::barrier_wait(at.query_full(blocks.slot()), blocks.parity());
      items.keep_uniform(), blocks.keep_uniform(), keys.keep_uniform(), values.keep_uniform();
      const std::uint32_t item = at.item(items.slot());
      const int4 what = ptx::load_int4(item + offsetof(Item, what));
      if (what.x == 0) return;  // there is no more work
      const int4 place = ptx::load_int4(item + offsetof(Item, place));
      const int4 share = ptx::load_int4(item + offsetof(Item, share) + warpgroup * 16);
      ptx::barrier_arrive(at.item_empty(items.slot()));
      if (warpgroup * 64 >= what.x) {  // it has no rows for this warpgroup
        ptx::barrier_arrive(at.query_empty(blocks.slot()));
        pass_tiles(what.z - what.y);
        continue;
      }

      // Begin it: hand back the tiles before those that the warpgroup sees, write down what its rows see.
      pass_tiles(share.x - what.y);
      const int warp = static_cast<int>(threadIdx.x) / 32;
      const Work work{Keys::at(at.query(blocks.slot()) + warpgroup * 64 * 128), fmaxf(p.scale * log2_e, 1e-37f), share.x, share.y,
                      make_int2(share.z, share.w), what.x - warp * 16, what.w, place.x, place.y, place.z + warp * 16};
      write_ranges(work);
      Rows<C> rows;
      rows.clear_output();

      // Tiles.
      if (work.tile < work.end)
        attend(work, rows);
      else
        ptx::barrier_arrive(at.query_empty(blocks.slot()));

      // Hand back the tiles behind those that the warpgroup sees.
      pass_tiles(what.z - share.y);

      // Sum over the lanes of a row. A piece of an item joins the others; only the warp that finds all pieces done stores rows.
      float rounded[2] = {}, sums[2] = {};
      rows.sums(rounded, sums);
      if (work.piece >= 0 && !join<C>(p, work.piece, rows, rounded, sums)) continue;
      finish<C>(p, at, work, rows, sums);
    }
  }

  // Writes which keys the warp's rows see. Rows that do not exist see none.
  __device__ __forceinline__ void write_ranges(const Work& work) const {
    const int t = ptx::thread_index_again(), lane = t & 31;
    __syncwarp();  // the item before is read
    if (lane < 16) {
      const int2 seen = lane < work.count ? range_of(p, work.sequence, work.row + lane) : make_int2(0, 0);
      ptx::store_int2(at.range() + ((t >> 5) * 16 + lane) * 8, seen.x, seen.y);
    }
    __syncwarp();
  }

  // ---- tiles

  __device__ __forceinline__ void attend(const Work& work, Rows<C>& rows) {
    float s[scores];
    std::uint32_t weights[scores / 2];
    int tile = work.tile;
    if constexpr (C::overlaps) {
      // The first tile's weights.
      start_scores(work, s);
      ptx::wgmma_wait(s);
      keys_done(tile + 1 == work.end);
      float factor[2];
      soften(work, tile, s, rows, factor);
      pack(s, weights);

      // A tile's scores beside the products of the tile before with its values.
#pragma unroll 1
      while (++tile < work.end) {
        start_scores(work, s);
        start_values(weights, rows);
        ptx::wgmma_wait_but<1>(s);
        keys_done(tile + 1 == work.end);
        const bool raised = soften(work, tile, s, rows, factor);
        ptx::wgmma_wait(rows.output);
        values_done();
        if (raised) rescale(rows, factor);
        pack(s, weights);
      }
      start_values(weights, rows);
      ptx::wgmma_wait(rows.output);
      values_done();
    } else {
#pragma unroll 1
      for (; tile < work.end; ++tile) {
        start_scores(work, s);
        ptx::wgmma_wait(s);
        keys_done(tile + 1 == work.end);
        float factor[2];
        if (soften(work, tile, s, rows, factor)) rescale(rows, factor);
        pack(s, weights);
        start_values(weights, rows);
        ptx::wgmma_wait(rows.output);
        values_done();
      }
    }
  }

  // Scores to weights, in place, and their sums. True if a row's reference was raised: then the output so far is to be multiplied by
  // `factor`.
  __device__ __forceinline__ bool soften(const Work& work, int tile, float (&s)[scores], Rows<C>& rows, float (&factor)[2]) {
    // Rows that do not exist must not decide when others are rescaled: their scores count as 0.
    const int row = static_cast<int>(threadIdx.x) % 32 / 4;
    const float scale[2] = {row < work.count ? work.scale : 0.f, row + 8 < work.count ? work.scale : 0.f};
#pragma unroll
    for (int i = 0; i < scores; ++i) s[i] = changed_score(s[i], p.scale, score_place(work, tile, i));
    if (tile < work.whole.x || tile >= work.whole.y) [[unlikely]]
      mask<false>(s, at.range(), tile, 0);

    // References.
    const float maximum[2] = {quad_maximum(largest_of_row(s, 0) * scale[0]), quad_maximum(largest_of_row(s, 1) * scale[1])};
    const bool raised = __any_sync(~0u, (maximum[0] > rows.reference[0] + C::lag) | (maximum[1] > rows.reference[1] + C::lag));
    if (raised) {
      rows.raise(maximum, factor);
      rows.unrounded[0] *= factor[0];
      rows.unrounded[1] *= factor[1];
    }

    // Weights.
    float sums[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < scores; ++i) {
      const int r = i >> 1 & 1;
      s[i] = ptx::exp2_approx(fmaf(s[i], scale[r], -rows.reference[r]));
      sums[r] += s[i];
    }
    rows.unrounded[0] += sums[0];
    rows.unrounded[1] += sums[1];
    return raised;
  }

  __device__ __forceinline__ void rescale(Rows<C>& rows, const float (&factor)[2]) const {
#pragma unroll
    for (int i = 0; i < C::dim / 2; ++i) rows.output[0][i] *= factor[i >> 1 & 1];
  }

  // Weights in the layout of the next product's operand.
  __device__ __forceinline__ void pack(const float (&s)[scores], std::uint32_t (&weights)[scores / 2]) const {
#pragma unroll
    for (int i = 0; i < scores / 2; ++i)
      weights[i] = C::input == DType::f16 ? ptx::pack_f16(s[2 * i], s[2 * i + 1]) : ptx::pack_bf16(s[2 * i], s[2 * i + 1]);
  }

  // The head and the positions of one of the thread's scores. It costs nothing while changed_score() needs none of them.
  __device__ __forceinline__ ScorePlace score_place(const Work& work, int tile, int i) const {
    const SequenceLayout s = sequence_layout(p, work.sequence);
    const int lane = static_cast<int>(threadIdx.x) % 32, query = work.row + lane / 4 + 8 * (i >> 1 & 1),
              key = tile * C::keys + (i >> 2) * 8 + lane % 4 * 2 + (i & 1);
    return {work.head, s.query_positions.first + query * s.query_positions.step, s.key_positions.first + key * s.key_positions.step,
            s.key_positions.step};
  }

  // ---- products

  // s = Q K^T
  __device__ __forceinline__ void start_scores(const Work& work, float (&s)[scores]) const {
    ptx::barrier_wait(at.key_full(keys.slot()), keys.parity());
    const Keys tile = Keys::at(at.key(keys.slot()));
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::dim / 16; ++k) {
      const auto a = work.queries.plus(k / 4 * C::query_panel + k % 4 * 32).descriptor();
      const auto b = tile.plus(k / 4 * C::key_panel + k % 4 * 32).descriptor();
      k ? ptx::scores16<C::input, true>(s, a, b) : ptx::scores16<C::input, false>(s, a, b);
    }
    ptx::wgmma_commit();
  }

  // O += P V
  __device__ __forceinline__ void start_values(const std::uint32_t (&weights)[scores / 2], Rows<C>& rows) const {
    ptx::barrier_wait(at.value_full(values.slot()), values.parity());
    const Values tile = Values::at(at.value(values.slot()));
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::keys / 16; ++k)
      ptx::weighted16<C::input>(rows.output[0], weights + 4 * k, tile.plus(k * 16 * 128).descriptor());
    ptx::wgmma_commit();
  }

  // ---- the rings

  // Hands a tile's keys back. last: of the item, so that its queries go back as well.
  __device__ __forceinline__ void keys_done(bool last) {
    ptx::barrier_arrive(at.key_empty(keys.slot()));
    keys.advance();
    if (last) ptx::barrier_arrive(at.query_empty(blocks.slot()));
  }
  __device__ __forceinline__ void values_done() {
    ptx::barrier_arrive(at.value_empty(values.slot()));
    values.advance();
  }

  // Hands back tiles of which the warpgroup sees nothing, without reading them.
  __device__ __forceinline__ void pass_tiles(int count) {
#pragma unroll 1
    for (; count > 0; --count) {
      ptx::barrier_wait(at.key_full(keys.slot()), keys.parity());
      ptx::barrier_arrive(at.key_empty(keys.slot()));
      keys.advance();
      ptx::barrier_wait(at.value_full(values.slot()), values.parity());
      values_done();
    }
  }
};

}  // namespace chitu::cuda::sm90::direct
