// SPDX-License-Identifier: Apache-2.0
// Attention on Hopper for the recipes of all methods. A multiprocessor has one CTA: one warpgroup produces, the others compute, 64 query
// rows each. docs/kernels/sm90.md draws the schedule, sm90-log.md has what was measured.
//
//   item: a block of queries of a head, as one CTA takes it. The producer takes items from a counter and writes into shared memory what the
//         warpgroups have to know of each. It keeps a ring of tiles full, 128 keys and values each. A flagged tile comes twice, the first
//         time with its residual plane in place of the values. So the main loop has no branch for it.
//   tile: S = Q K^T, P = round(top 2^(s - reference)) in registers, O += P V. The warpgroups meet only through the ring.
//
// Barriers, each with a parity that flips when it completes:
//   item_written   the thread that takes items arrives; those that bring queries and tiles wait. Shared memory says what the item is.
//   query_full     the thread that brings queries and its copies' bytes arrive; the warpgroups wait. The item is there.
//   query_empty    all threads of the warpgroups arrive, and the two that bring queries and tiles; the thread that takes items waits. An
//                  item is done with.
//   full           the thread that brings tiles and its copies' bytes arrive; the warpgroups wait. A tile is there.
//   empty          all threads of the warpgroups arrive; the thread that brings tiles waits. A tile is done with. (One arrival a warp is no
//                  faster, and racecheck does not understand it.)
//   value_full, value_empty   the same two for values, where keys have barriers of their own (Config::separate_value_barriers).
//   block_read     all threads of the warpgroups arrive; the thread that brings queries waits. The warpgroups have read the queries that
//                  they quantise themselves.
//   named 1 ...    the warps of a warpgroup meet here with quantizes_queries: before and after they write its queries, and after they have
//                  read them. The queries lie where these warps later stage the output.
#pragma once

#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/order.h"
#include "cuda/ptx/shared.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/sm90/epilogue.cuh"
#include "cuda/sm90/queries.cuh"
#include "cuda/weights/join.cuh"
#include "cuda/weights/rows.cuh"
#include "cuda/weights/softmax.cuh"

namespace chitu::cuda::sm90 {

// A warpgroup that computes. run() is the loop over items and tiles. It calls the phases, which stand below it in their order. All of them
// are inlined, so what they hand to each other stays in registers. How they are written matters: ptxas gives out registers in the order in
// which it meets variables. tools/same_sass.py shows what a change does.
template <class C>
struct Consumer {
  using Item = typename C::Item;
  using Score = std::conditional_t<C::integer_scores, std::uint32_t, float>;
  using Product = std::conditional_t<C::integer_values, std::uint32_t, float>;
  static constexpr Form form = C::form;
  static constexpr int value_panel = tile_tokens * 128;  // bytes of 64 16-bit channels
  using Keys = ptx::Matrix<C::panel>;                    // and queries
  using Values = ptx::Matrix<128, (form.value_bytes == 2 && C::width > 64) ? value_panel : 16>;

  // An item as this warpgroup has it.
  struct Work {
    std::uint32_t item;    // the Item in shared memory
    Keys queries;          // its 64 rows
    float query_scale[2];  // of the thread's rows: query_scales()
    int tile, end;         // the next tile, and the end of those that the warpgroup sees
  };

  // The slots of a tile's keys and of its values. They are the same, unless values have a ring of their own.
  struct Slots {
    int keys, values;
  };

  // What the phases hand to each other while they process a tile. Arrays of two are for the thread's two rows.
  struct Tile {
    float scale[2];                                // a score times this is an exponent of 2
    float maximum[2];                              // the largest exponent
    float moved[2];                                // with Config::folds: the factor that brings the output so far to its new reference
    std::uint32_t weights[form.value_bytes * 16];  // P, as the operand of the product with values
    float unrounded[2] = {0, 0};                   // sums of weights before rounding
    Product product[C::width / 2];                 // P V for C::width channels at a time; unused if the tensor cores add it to the output
  };

  const Params& p;
  const typename C::At at;
  const int warpgroup;
  const float opaque_zero;  // of weigh()
  const Keys first_keys = Keys::at(at.key(0));
  const Values first_values = Values::at(at.value(0));
  Ring<C::item_slots, 0> items;
  Ring<C::key_slots, 0, C::short_of_registers> tiles;  // of keys, and of values that come with them
  Ring<C::value_slots, 0> values;                      // with separate_value_barriers
  bool tile_ready;                                     // the next tile is known to be there

  __device__ void run() {
#pragma unroll 1
    for (;; items.advance()) {
      // Wait for an item.
      ptx::barrier_wait(at.query_full(items.slot()), items.parity());
      items.keep_uniform();
      tiles.keep_uniform();
      const std::uint32_t item = at.item(items.slot());
      const int4 what = ptx::load_int4(item + offsetof(Item, what));
      if (what.x == 0) return;  // there is no more work
      if (warpgroup * 64 >= what.x) {
        pass_item(what);
        continue;
      }

      // Begin it: queries, scales, and the first tile that this warpgroup sees.
      Work work = begin_item(item, what.y);
      Rows<C> rows;
      rows.clear_output();
      tile_ready = work.tile < work.end && ptx::barrier_try(at.full(tiles.slot()), tiles.parity());

      // Tiles.
#pragma unroll 1
      while (work.tile < end_of(work)) {
        Score s[64];
        Tile tile;
        const bool masked = score(work, tile, s);
        const int slot = tiles.slot();
        const Slots used{slot, C::separate_value_barriers ? static_cast<int>(values.slot()) : slot};
        const Values value = first_values.plus(used.values * C::value_bytes);
        to_weights(work, used, value, tile, s, masked, rows);
        if constexpr (C::sums_in_place)
          accumulate_in_place(work, used, value, tile, rows);
        else
          accumulate_tile(work, used, value, tile, rows);
      }

      // Subtract what value_offset has added.
      if constexpr (C::integer_values) rows.remove_offset();

      // Hand back the tiles behind those that the warpgroup sees.
      pass_tiles(ptx::load_int4(work.item + offsetof(Item, what)).z - ptx::load_int2(work.item + offsetof(Item, share) + warpgroup * 16).y);

      // Sum over the lanes of a row.
      float rounded[2] = {}, unrounded[2] = {};
      rows.sums(rounded, unrounded);

      // A piece of an item joins the others. Only the warp that finds all pieces done has something to store.
      if constexpr (C::splittable) {
        const int piece = ptx::load_int4(work.item + offsetof(Item, what)).w;
        if (piece >= 0 && !join<C>(p, piece, rows, rounded, unrounded)) {
          ptx::barrier_arrive(at.query_empty(items.slot()));
          if constexpr (C::quantizes_queries) ptx::named_barrier(1 + warpgroup, 128);
          continue;
        }
      }

      // Normalise and store; the item is handed back on the way.
      finish<C>(p, at, items.slot(), rows, rounded, unrounded);
    }
  }

  // ---- items

  // Hands back an item that has no rows for this warpgroup, such as the last of a sequence.
  __device__ __forceinline__ void pass_item(const int4& what) {
    if constexpr (C::quantizes_queries) ptx::barrier_arrive(at.block_read());
    pass_tiles(what.z - what.y);
    ptx::barrier_arrive(at.query_empty(items.slot()));
  }

  __device__ __forceinline__ Work begin_item(std::uint32_t item, int first_tile) {
    // If queries come as the caller's tensor has them, the warpgroup quantises its own rows.
    if constexpr (C::quantizes_queries) quantize_queries<C>(p, at, item, warpgroup);

    // Hand back the tiles before those that the warpgroup sees.
    const int2 share = ptx::load_int2(item + offsetof(Item, share) + warpgroup * 16);
    pass_tiles(share.x - first_tile);

    // What the warpgroup has to do.
    Work work{item, Keys::at(at.query(items.slot(), warpgroup)), {}, share.x, share.y};
    query_scales(item, work.query_scale);
    return work;
  }

  __device__ __forceinline__ int end_of(const Work& work) const {
    return C::short_of_registers ? ptx::load_int(work.item + offsetof(Item, share) + warpgroup * 16 + 4) : work.end;
  }

  // A score's factor, as far as it depends on the query. It contains log2 e, because the softmax works in powers of 2.
  __device__ __forceinline__ void query_scales(std::uint32_t item, float (&scale)[2]) {
    const int t = ptx::thread_index_again();
    if constexpr (C::quantizes_queries) {
      const float2 both = ptx::load_float2(item + offsetof(Item, query_scale) + (t >> 2) * 8);
      scale[0] = both.x, scale[1] = both.y;
      return;
    }
    scale[0] = scale[1] = fabsf(p.scale) * log2_e;
    if constexpr (C::query_scales) {
      const std::uint32_t from = item + offsetof(Item, query_scale) + (t >> 5) * (64 / form.query_scale_rows) + (t >> 2 & 7) * 4;
      scale[0] *= ptx::load_float(from);
      scale[1] = form.query_scale_rows == 2 ? scale[0] : scale[1] * ptx::load_float(from + 32);
    }
  }

  // ---- tiles

  // S = Q K^T, and what the scores are multiplied by. Returns whether some row does not see the whole tile.
  __device__ __forceinline__ bool score(const Work& work, Tile& tile, Score (&s)[64]) {
    // Wait for keys.
    if (!tile_ready) ptx::barrier_wait(at.full(tiles.slot()), tiles.parity());

    // Start the product.
    multiply_keys(s, work.queries, first_keys.plus(tiles.slot() * C::key_bytes));

    // Meanwhile read scales; later, if registers do not hold them beside all that a mask needs.
    if constexpr (!C::short_of_registers) read_scales(work, tiles.slot(), tile);

    // Read which tiles all rows see in full.
    const int2 whole = ptx::load_int2(work.item + offsetof(Item, share) + warpgroup * 16 + 8);

    // Wait for the product.
    ptx::wgmma_wait(s);
    return work.tile < whole.x || work.tile >= whole.y;
  }

  // What the scores are multiplied by. With four warpgroups no registers are left to keep the queries' scales from tile to tile, so they
  // are read again.
  __device__ __forceinline__ void read_scales(const Work& work, int slot, Tile& tile) {
    tile.scale[0] = work.query_scale[0];
    tile.scale[1] = work.query_scale[1];
    if constexpr (C::warpgroups == 4) query_scales(work.item, tile.scale);
    if constexpr (C::key_scales) {
      const float key_scale = ptx::load_float(at.scales(slot) + (threadIdx.x & 3) * 4);
      tile.scale[0] *= key_scale;
      tile.scale[1] *= key_scale;
    }
    // Keep them above 0. A tile or a row of zeros has the scale 0, and an unseen score is minus infinity: their product would be NaN.
    tile.scale[0] = fmaxf(tile.scale[0], 1e-37f);
    tile.scale[1] = fmaxf(tile.scale[1], 1e-37f);
  }

  // The head and the positions of one of the thread's scores. Its plain loads cost nothing while changed_score() needs none of them.
  __device__ __forceinline__ ScorePlace score_place(std::uint32_t item, int tile, int slot, int r, int column) const {
    const auto& what = *static_cast<const Item*>(__cvta_shared_to_generic(item));
    const SequenceLayout s = sequence_layout(p, what.keys.x / p.kv_heads);
    const int query = what.queries.z + static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r,
              place = column + static_cast<int>(threadIdx.x) % 4 * 2;
    const auto* order = static_cast<const std::uint8_t*>(__cvta_shared_to_generic(at.order(slot)));
    const int key = tile * tile_tokens + (form.sorted ? order[place] : place);
    return {what.rows.y, s.query_positions.first + query * s.query_positions.step, s.key_positions.first + key * s.key_positions.step,
            s.key_positions.step};
  }

  // Makes P from S. If keys and values have separate barriers, it also hands the keys back and waits for the values.
  __device__ __forceinline__ void to_weights(const Work& work, Slots used, Values value, Tile& tile, Score (&s)[64], bool masked,
                                             Rows<C>& rows) {
    if constexpr (form.scale_each_key) {
      // Scale each key's scores. Only then can the keys and their scales go back.
      float scaled[64];
      scale_keys(s, at.key_scale(used.keys), scaled);
      release_keys(used);
      soften(work, used, value, tile, scaled, masked, rows);
    } else {
      release_keys(used);
      soften(work, used, value, tile, s, masked, rows);
    }
    if constexpr (C::separate_value_barriers) ptx::barrier_wait(at.value_full(used.values), values.parity());
  }

  // The softmax of scores that are integers or floats.
  template <class Number>
  __device__ __forceinline__ void soften(const Work& work, Slots used, Values value, Tile& tile, Number (&s)[64], bool masked,
                                         Rows<C>& rows) {
    // Change the scores. changed_score() changes nothing today, so this takes no instruction.
    change_scores(s, tile.scale, [&](int r, int column) { return score_place(work.item, work.tile, used.keys, r, column); });

    // Mask them, and find the maxima of the rows.
    if (masked) [[unlikely]] {
      mask<form.sorted>(s, work.item + offsetof(Item, range), work.tile, at.order(used.keys));
      if constexpr (C::short_of_registers) read_scales(work, used.keys, tile);
      maxima<true>(s, tile.scale, tile.maximum);
    } else {
      if constexpr (C::short_of_registers) read_scales(work, used.keys, tile);
      maxima<false>(s, tile.scale, tile.maximum);
    }
    tile.maximum[0] = quad_maximum(tile.maximum[0]);
    tile.maximum[1] = quad_maximum(tile.maximum[1]);

    // References. With by_tile, weights are relative to the tile's own maximum. Otherwise the reference so far is raised to it, and the
    // output is rescaled: at once or, with Config::folds, when this tile's product is added.
    if constexpr (C::folds)
      rows.raise(tile.maximum, tile.moved);
    else if constexpr (!C::by_tile)
      rows.raise_and_rescale(tile.maximum);
    const float(&reference)[2] = C::by_tile ? tile.maximum : rows.reference;

    // Weights. With Config::early, products with the first values start while the weights of further keys are computed.
    const float shift[2] = {shift_of<Number>(tile.scale[0], C::log2_top - reference[0]),
                            shift_of<Number>(tile.scale[1], C::log2_top - reference[1])};
    weigh<C>(s, tile.scale, shift, opaque_zero, tile.weights, tile.unrounded, [&](int block) {
      if constexpr (C::early) {
        ptx::wgmma_fence();
        if constexpr (C::sums_in_place)
          multiply_values<true>(rows.output[0], tile.weights, value, 0, block, 1);
        else
          multiply_values<false>(tile.product, tile.weights, value, 0, block, 1);
        ptx::wgmma_commit();
      }
    });

    // Find the maxima again from what the exponents had added, to save registers until here. The lanes of a quad add with roundings of
    // their own, for their keys' scales differ. They must agree on one of them: what value_offset adds to an output is more than the output
    // itself, and is subtracted by the sums of all four.
    if constexpr (C::short_of_registers)
#pragma unroll
      for (int r = 0; r < 2; ++r) tile.maximum[r] = __shfl_sync(~0u, C::log2_top - fmaf(magic, tile.scale[r], shift[r]), 0, 4);
  }

  // O += P V by the tensor cores.
  __device__ __forceinline__ void accumulate_in_place(Work& work, Slots used, Values value, const Tile& tile, Rows<C>& rows) {
    // Start the product.
    if constexpr (!C::early) {
      ptx::wgmma_fence();
#pragma unroll
      for (int half = 0; half < C::halves; ++half) multiply_values<true>(rows.output[half], tile.weights, value, half);
      ptx::wgmma_commit();
    }

    // Meanwhile look for the next tile and add the weights up.
    next_tile();
#pragma unroll
    for (int r = 0; r < 2; ++r) rows.unrounded[r] += tile.unrounded[r];
    ++work.tile;

    // Wait for the product, then hand the values back.
    ptx::wgmma_wait(rows.output);
    release_values(used);
  }

  // O = a O + w P V, by one addition for each number of the product.
  __device__ __forceinline__ void accumulate_tile(Work& work, Slots used, Values value, Tile& tile, Rows<C>& rows) {
    float factor[2];  // of integer products: w
#pragma unroll
    for (int half = 0; half < C::halves; ++half) {
      // Start the product, with half of the channels at a time if registers do not hold all.
      if constexpr (!C::early) {
        ptx::wgmma_fence();
        multiply_values<false>(tile.product, tile.weights, value, half);
        ptx::wgmma_commit();
      }

      // Meanwhile look for the next tile and add the weights up.
      if (half == 0) {
        next_tile();
        int last = 1;  // 0 in a flagged tile's first pass, with its residual plane: the tile comes again
        if constexpr (form.residuals) last = ptx::load_int(at.scales(used.keys) + offsetof(PassScales, last));
        work.tile += last;
        add_weights(used, tile, last, rows, factor);
      }

      // Wait for the product, then hand the values back.
      ptx::wgmma_wait(tile.product);
      if (half == C::halves - 1) {
        release_values(used);
      }

      // Add it to the output. An integer's bits are a float as they stand: see integer_unit.
#pragma unroll
      for (int i = 0; i < C::width / 2; ++i) {
        const int r = i >> 1 & 1;
        float& o = rows.output[half][i];
        if constexpr (C::integer_values)
          o = fmaf(__uint_as_float(tile.product[i]), factor[r], o);
        else
          o = fmaf(o, tile.moved[r], tile.product[i]);
      }
    }

    // Subtract what value_offset has added, before it costs precision.
    if constexpr (C::integer_values)
      if (work.tile % offset_tiles == 0) rows.remove_offset();
  }

  // Adds a tile's weights to the sums. factor: that of the tile's product, if values are integers.
  __device__ __forceinline__ void add_weights(Slots used, const Tile& tile, int last, Rows<C>& rows, float (&factor)[2]) {
    if constexpr (C::folds) {
      // Sums so far are rescaled to the new reference, as the output is.
#pragma unroll
      for (int r = 0; r < 2; ++r) rows.unrounded[r] = fmaf(rows.unrounded[r], tile.moved[r], tile.unrounded[r]);
    } else if constexpr (C::by_tile) {
      // Weights are relative to the tile's own maximum: they count by its share, 2^(maximum - reference).
      rows.raise_and_rescale(tile.maximum);
      const std::uint32_t rounded = own_rounded_sum(tile.weights);
      float value_scale = integer_unit;
      if constexpr (C::value_scales) value_scale *= ptx::load_float(at.scales(used.keys) + offsetof(PassScales, value));
      float share[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) share[r] = ptx::exp2_approx(tile.maximum[r] - rows.reference[r]);
      // Weights of a residual plane do not count in their sum, but its values have the offset, too.
      rows.rounded = fmaf(__uint2float_rn(rounded * last), own(share[0], share[1]), rows.rounded);
#pragma unroll
      for (int r = 0; r < 2; ++r) factor[r] = share[r] * value_scale;
      rows.offset = fmaf(__uint_as_float(rounded * value_offset), own(factor[0], factor[1]), rows.offset);
    } else {
      // Weights are relative to the reference.
      const std::uint32_t rounded = own_rounded_sum(tile.weights);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (C::unrounded_sums) rows.unrounded[r] += tile.unrounded[r];
        factor[r] = integer_unit;
      }
      rows.rounded += __uint2float_rn(rounded);
      rows.offset = fmaf(__uint_as_float(rounded * value_offset), integer_unit, rows.offset);
    }
  }

  // ---- the ring of tiles

  // Hands back tiles of which the warpgroup sees nothing, without reading them.
  __device__ __forceinline__ void pass_tiles(int count) {
#pragma unroll 1
    while (count > 0) {
      ptx::barrier_wait(at.full(tiles.slot()), tiles.parity());
      count -= form.residuals ? ptx::load_int(at.scales(tiles.slot()) + offsetof(PassScales, last)) : 1;
      ptx::barrier_arrive(at.empty(tiles.slot()));
      tiles.advance();
      if constexpr (C::separate_value_barriers) {
        ptx::barrier_wait(at.value_full(values.slot()), values.parity());
        ptx::barrier_arrive(at.value_empty(values.slot()));
        values.advance();
      }
    }
  }

  // Goes on to the next tile, and looks whether it is there, but does not wait for it.
  __device__ __forceinline__ void next_tile() {
    tiles.advance();
    if constexpr (C::separate_value_barriers) values.advance();
    tile_ready = ptx::barrier_try(at.full(tiles.slot()), tiles.parity());
  }

  // Keys go back with the values unless they have barriers of their own.
  __device__ __forceinline__ void release_keys(Slots used) {
    if constexpr (C::separate_value_barriers) ptx::barrier_arrive(at.empty(used.keys));
  }
  __device__ __forceinline__ void release_values(Slots used) {
    ptx::barrier_arrive(C::separate_value_barriers ? at.value_empty(used.values) : at.empty(used.keys));
  }

  // ---- products

  // s = Q K^T
  __device__ __forceinline__ void multiply_keys(Score (&s)[64], Keys queries, Keys keys) {
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::row_bytes / 32; ++k) {
      const int panel = k * 32 / C::panel, byte = k * 32 % C::panel;
      const auto a = queries.plus(panel * form.block_queries * C::panel + byte).descriptor();
      const auto b = keys.plus(panel * tile_tokens * C::panel + byte).descriptor();
      k ? ptx::scores<C::score_type, true>(s, a, b) : ptx::scores<C::score_type, false>(s, a, b);
    }
    ptx::wgmma_commit();
  }

  // d (+)= P V for the channels of a half, over some of the tile's four blocks of 32 keys. The caller fences and commits.
  template <bool add, class Number, int count>
  __device__ __forceinline__ void multiply_values(Number (&d)[count], const std::uint32_t (&weights)[form.value_bytes * 16], Values value,
                                                  int half, int first_block = 0, int blocks = 4) {
    constexpr int half_bytes = C::width * tile_tokens * form.value_bytes, step = form.value_bytes == 2 ? 16 * 128 : 32;
    const Values v = value.plus(half * half_bytes);
#pragma unroll
    for (int k = first_block * form.value_bytes; k < (first_block + blocks) * form.value_bytes; ++k) {
      const auto b = v.plus(k * step).descriptor();
      add || k ? ptx::weighted<C::value_type, true>(d, weights + 4 * k, b) : ptx::weighted<C::value_type, false>(d, weights + 4 * k, b);
    }
  }
};

}  // namespace chitu::cuda::sm90
