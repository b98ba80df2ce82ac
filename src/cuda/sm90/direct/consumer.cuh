// SPDX-License-Identifier: Apache-2.0
// A warpgroup of the direct kernel that computes, 64 query rows. Between them warpgroups share the tiles and nothing else.
//
// Barriers, each with a parity that flips when it completes:
//   item_written   the items warp arrives; the tiles thread waits. It is written what the item is.
//   item_empty     all threads of the warpgroups and the tiles thread arrive; the items warp waits. The item is done with.
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
#include "cuda/sm90/direct/config.cuh"
#include "cuda/weights/finish.cuh"
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
  using Keys = ptx::Matrix<128>;                  // and queries
  using Values = ptx::Matrix<128, C::key_panel>;  // a product spans their panels
  static constexpr int scores = C::keys / 2;

  // An item as this warpgroup has it.
  struct Work {
    std::uint32_t slot;  // the item's; that of its queries follows from it
    Keys queries;        // its 64 rows
    int tile, end;       // tiles that the warpgroup sees
  };

  const Params& p;
  const typename C::At at;
  const int warpgroup;
  std::uint32_t tiles = 0;  // the next tile's number, among all that have come

  __device__ void run() {
    std::uint32_t round = 0;  // the item's number
#pragma unroll 1
    for (;;) {
      // Wait for an item. The shuffles tell the compiler that all threads of a warp agree.
      round = __shfl_sync(~0u, round, 0), tiles = __shfl_sync(~0u, tiles, 0);
      ptx::barrier_wait(at.query_full(C::Blocks::slot(round)), C::Blocks::parity(round));
      const std::uint32_t slot = C::Items::slot(round), item = at.item(slot);
      const int4 what = ptx::load_int4(item + offsetof(Item, what));
      if (what.x == 0) return;         // there is no more work
      if (warpgroup * 64 >= what.x) {  // it has no rows for this warpgroup
        ptx::barrier_arrive(at.query_empty(C::Blocks::slot(slot)));
        ptx::barrier_arrive(at.item_empty(slot));
        pass_tiles(what.z - what.y);
        ++round;
        continue;
      }

      // Begin it: hand back the tiles before those that the warpgroup sees, write down what its rows see.
      const int2 share = ptx::load_int2(item + offsetof(Item, share) + warpgroup * 16);
      pass_tiles(share.x - what.y);
      const Work work{slot, Keys::at(at.query(C::Blocks::slot(slot)) + warpgroup * 64 * 128), share.x, share.y};
      write_ranges(work);
      Rows<C> rows;
      rows.clear_output();

      // Tiles.
      if (work.tile < work.end)
        attend(work, rows);
      else
        ptx::barrier_arrive(at.query_empty(C::Blocks::slot(slot)));

      // Hand back the tiles behind those that the warpgroup sees.
      pass_tiles(ptx::load_int4(item + offsetof(Item, what)).z - work.end);

      // Sum over the lanes of a row. A piece of an item joins the others; only the warp that finds all pieces done stores rows.
      float rounded[2] = {}, sums[2] = {};
      rows.sums(rounded, sums);
      const int piece = ptx::load_int4(item + offsetof(Item, what)).w;
      if (piece < 0 || join<C>(p, piece, rows, rounded, sums)) finish<C>(p, at, item, rows, sums);

      // Hand it back. Its number is read from it, to save a register until here.
      round = ptx::load_int(item + offsetof(Item, number)) + 1;
      ptx::barrier_arrive(at.item_empty(slot));
    }
  }

  // Writes which keys the warp's rows see. Rows that do not exist see none.
  __device__ __forceinline__ void write_ranges(const Work& work) const {
    const int t = ptx::thread_index_again(), lane = t & 31;
    __syncwarp();  // the item before is read
    if (lane < 16) {
      const int4 place = ptx::load_int4(at.item(work.slot) + offsetof(Item, place));
      const int query = place.z + (t >> 5) * 16 + lane;
      const int2 seen = query < place.w ? range_of(p, place.x, query) : make_int2(0, 0);
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
      keys_done(work, tile + 1 == work.end);
      float factor[2];
      soften(work, tile, s, rows, factor);
      pack(s, weights);

      // A tile's scores beside the products of the tile before with its values.
#pragma unroll 1
      while (++tile < work.end) {
        start_scores(work, s);
        start_values(tiles - 1, weights, rows);
        ptx::wgmma_wait_but<1>(s);
        keys_done(work, tile + 1 == work.end);
        const bool raised = soften(work, tile, s, rows, factor);
        ptx::wgmma_wait(rows.output);
        values_done(tiles - 2);
        if (raised) rescale(rows, factor);
        pack(s, weights);
      }
      start_values(tiles - 1, weights, rows);
      ptx::wgmma_wait(rows.output);
      values_done(tiles - 1);
    } else {
#pragma unroll 1
      for (; tile < work.end; ++tile) {
        start_scores(work, s);
        ptx::wgmma_wait(s);
        keys_done(work, tile + 1 == work.end);
        float factor[2];
        if (soften(work, tile, s, rows, factor)) rescale(rows, factor);
        pack(s, weights);
        start_values(tiles - 1, weights, rows);
        ptx::wgmma_wait(rows.output);
        values_done(tiles - 1);
      }
    }
  }

  // Scores to weights, in place, and their sums. True if a row's reference was raised: then the output so far is to be multiplied by
  // `factor`.
  __device__ __forceinline__ bool soften(const Work& work, int tile, float (&s)[scores], Rows<C>& rows, float (&factor)[2]) {
    // Rows that do not exist must not decide when others are rescaled: their scores count as 0.
    const int row = ptx::thread_index_again() >> 5 << 4 | ptx::thread_index_again() >> 2 & 7;
    const int count = ptx::load_int(at.item(work.slot) + offsetof(Item, what));
    const float factor_of_scores = fmaxf(p.scale * log2_e, 1e-37f);  // a score times this is an exponent of 2
    const float scale[2] = {row < count ? factor_of_scores : 0.f, row + 8 < count ? factor_of_scores : 0.f};
#pragma unroll
    for (int i = 0; i < scores; ++i) s[i] = changed_score(s[i], p.scale, score_place(work, tile, i));
    const int2 whole = ptx::load_int2(at.item(work.slot) + offsetof(Item, share) + warpgroup * 16 + 8);
    if (tile < whole.x || tile >= whole.y) [[unlikely]]
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
    const int4 place = static_cast<const Item*>(__cvta_shared_to_generic(at.item(work.slot)))->place;
    const SequenceLayout s = sequence_layout(p, place.x);
    const int lane = static_cast<int>(threadIdx.x) % 32,
              query = place.z + static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4 + 8 * (i >> 1 & 1),
              key = tile * C::keys + (i >> 2) * 8 + lane % 4 * 2 + (i & 1);
    return {place.y, s.query_positions.first + query * s.query_positions.step, s.key_positions.first + key * s.key_positions.step,
            s.key_positions.step};
  }

  // ---- products

  // s = Q K^T
  __device__ __forceinline__ void start_scores(const Work& work, float (&s)[scores]) const {
    const std::uint32_t slot = C::Tiles::slot(tiles);
    ptx::barrier_wait(at.key_full(slot), C::Tiles::parity(tiles));
    const Keys tile = Keys::at(at.key(slot));
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::dim / 16; ++k) {
      const auto a = work.queries.plus(k / 4 * C::query_panel + k % 4 * 32).descriptor();
      const auto b = tile.plus(k / 4 * C::key_panel + k % 4 * 32).descriptor();
      k ? ptx::scores16<C::input, true>(s, a, b) : ptx::scores16<C::input, false>(s, a, b);
    }
    ptx::wgmma_commit();
  }

  // O += P V, with the values of tile `number` of all that have come.
  __device__ __forceinline__ void start_values(std::uint32_t number, const std::uint32_t (&weights)[scores / 2], Rows<C>& rows) const {
    const std::uint32_t slot = C::Tiles::slot(number);
    ptx::barrier_wait(at.value_full(slot), C::Tiles::parity(number));
    const Values tile = Values::at(at.value(slot));
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::keys / 16; ++k) ptx::weighted16<C::input>(rows.output[0], weights + 4 * k, tile.plus(k * 16 * 128).descriptor());
    ptx::wgmma_commit();
  }

  // ---- the rings

  // Hands a tile's keys back. last: of the item, so that its queries go back as well.
  __device__ __forceinline__ void keys_done(const Work& work, bool last) {
    ptx::barrier_arrive(at.key_empty(C::Tiles::slot(tiles++)));
    if (last) ptx::barrier_arrive(at.query_empty(C::Blocks::slot(work.slot)));
  }
  __device__ __forceinline__ void values_done(std::uint32_t number) const { ptx::barrier_arrive(at.value_empty(C::Tiles::slot(number))); }

  // Hands back tiles of which the warpgroup sees nothing, without reading them.
  __device__ __forceinline__ void pass_tiles(int count) {
#pragma unroll 1
    for (; count > 0; --count) {
      const std::uint32_t slot = C::Tiles::slot(tiles), parity = C::Tiles::parity(tiles++);
      ptx::barrier_wait(at.key_full(slot), parity);
      ptx::barrier_arrive(at.key_empty(slot));
      ptx::barrier_wait(at.value_full(slot), parity);
      ptx::barrier_arrive(at.value_empty(slot));
    }
  }
};

}  // namespace chitu::cuda::sm90::direct
