// SPDX-License-Identifier: Apache-2.0
// The attention kernel's producer: it takes items and keeps shared memory full.
#pragma once

#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/shared.h"
#include "cuda/schedule.cuh"
#include "cuda/sm90/config.cuh"

namespace chitu::cuda::sm90 {

// Writes Item::share and Item::what. ranges: those of the sequence's queries. piece: its index among the pieces of all split items, which
// have `pieces` each; negative if the item is not split.
template <class C>
__device__ void write_item(const int2* ranges, int queries, int row, int piece, int pieces, std::uint32_t item) {
  using Item = typename C::Item;
  constexpr int block = C::form.block_queries;
  const auto range = [&](int r) { return ranges[min(row + block_row(r).query, queries - 1)]; };
  int first = range(0).x / tile_tokens, end = max(first, tiles_of(range(block - 1).y));
  if (piece >= 0) {
    const int tiles = end - first, i = piece % pieces;
    end = first + tiles * (i + 1) / pieces;
    first += tiles * i / pieces;
  }
#pragma unroll 1
  for (int w = 0; w < C::warpgroups; ++w) {
    const int2 top = range(w * 64), bottom = range(w * 64 + 63);
    const bool none = top.x >= bottom.y;
    const auto within = [&](int tile) { return none ? end : min(max(tile, first), end); };
    ptx::store_int4(item + offsetof(Item, share) + w * 16, within(top.x / tile_tokens), within(tiles_of(bottom.y)), tiles_of(bottom.x),
                    top.y / tile_tokens);
  }
  ptx::store_int4(item + offsetof(Item, what), min(block, queries - row), first, end, max(piece, -1));
}

// Three threads share the work, each in a warp of its own, so that each has registers of its own. The first takes items and writes down
// what they are.
//
// opaque_zero is 0, but the compiler cannot know that. Adding `opaque`, also 0, makes a number look as if it depended on the item.
// Otherwise the compiler would compute it before the loop, keep it, and run out of registers.
template <class C>
__device__ void produce_items(const Params& p, const typename C::At shared, float opaque_zero) {
  using Item = typename C::Item;
  constexpr Form form = C::form;
  // With one slot the next item is taken ahead, because the slot is empty only while the warpgroups are idle. With two slots an item taken
  // so early would wait, although another CTA might be free to do it.
  constexpr bool ahead = C::item_slots == 1;
  Ring<C::item_slots, 1> ring;
  ptx::wait_for_previous();
  for (int item = blockIdx.x;; ring.advance()) {
    const int opaque = item & __float_as_int(opaque_zero);
    const typename C::At at{shared.base + opaque};
    const std::uint32_t to = at.item(ring.slot());
    ptx::barrier_wait(at.query_empty(ring.slot()), ring.parity());
    if (!ahead && ring.at > 0) item = static_cast<int>(gridDim.x) + atomicAdd(p.items_taken, 1);
    const int piece = item - whole_items(p, opaque), whole_item = piece < 0 ? item : item - piece + piece / pieces_of_item(p);
    if (whole_item >= block_count(p) * p.heads) {
      ptx::store_int4(to + offsetof(Item, what), 0, 0, 0, -1);
      ptx::barrier_arrive(at.item_written(ring.slot()));
      return;
    }
    const Block block = block_of<form.block_queries>(p, whole_item, opaque);
    // Read field by field: a copy of a SequenceLayout would cost registers.
    const auto field = [&](auto SequenceLayout::*of) { return p.layouts ? p.layouts[block.sequence].*of : p.same.*of; };
    const int queries = field(&SequenceLayout::queries) + opaque,
              query_tile = p.layouts ? field(&SequenceLayout::query_tile) : block.sequence * tiles_of(queries);
    const int range_row = (p.layouts ? query_tile * tile_tokens : 0) + block.row;
    ptx::store_int4(to + offsetof(Item, rows), p.layouts ? field(&SequenceLayout::batch) : block.sequence, block.head,
                    field(&SequenceLayout::query_begin) + block.row, 0);
    {
      const int kv_head = block.head / ((p.heads + opaque) / p.kv_heads), key_tiles = tiles_of(field(&SequenceLayout::keys) + opaque),
                key_tile = p.layouts ? field(&SequenceLayout::key_tile) : block.sequence * key_tiles;
      ptx::store_int4(to + offsetof(Item, keys), block.sequence * p.kv_heads + kv_head, key_tile * p.kv_heads + kv_head * key_tiles, 0, 0);
    }
    ptx::store_int4(to + offsetof(Item, queries), query_tile * p.heads + block.head * tiles_of(queries), tiles_of(queries), block.row,
                    range_row);
    write_item<C>(p.ranges + range_row - block.row, queries, block.row, piece, pieces_of_item(p), to);
    ptx::barrier_arrive(at.item_written(ring.slot()));
    if (ahead) item = static_cast<int>(gridDim.x) + atomicAdd(p.items_taken, 1);
  }
}

// The second thread brings the items' queries.
template <class C>
__device__ void produce_queries(const Params& p, const CUtensorMap& queries_as_given, const typename C::At at) {
  using Item = typename C::Item;
  constexpr Form form = C::form;
  Ring<C::item_slots, 0> ring;
  Ring<1, 1> blocks;
  ptx::wait_for_previous();
  for (;; ring.advance()) {
    const std::uint32_t to = at.item(ring.slot()), barrier = at.query_full(ring.slot());
    ptx::barrier_wait(at.item_written(ring.slot()), ring.parity());
    if (ptx::load_int(to + offsetof(Item, what)) == 0) {
      ptx::barrier_arrive(barrier);
      return;
    }
    const int4 from = ptx::load_int4(to + offsetof(Item, queries));  // first tile of the head, tiles of the head, row, row of ranges
    const int padded = from.y * tile_tokens, rows = min(form.block_queries, padded - from.z);
    const std::int64_t head_row = static_cast<std::int64_t>(from.x) * tile_tokens;
    const int4 first = ptx::load_int4(to + offsetof(Item, rows));  // batch entry, head, row
    ptx::store_long(to + offsetof(Item, out), token_offset(p.out, first.x, first.y, first.z));
    ptx::store_long(to + offsetof(Item, lse), token_offset(p.lse, first.x, first.y, first.z));
    constexpr int head_bytes = C::channel_scales ? C::dim * 4 : 0;
    if constexpr (C::quantizes_queries) {
      ptx::barrier_wait(at.block_read(), blocks.parity());
      blocks.advance();
      ptx::barrier_expect(barrier, C::block_bytes + rows * 8 + head_bytes + C::dim * 2);
#pragma unroll
      for (int panel = 0; panel < C::dim / 64; ++panel)  // rows behind the tensor's last are zeros
        ptx::tensor_copy(at.block(0) + panel * form.block_queries * 128, &queries_as_given, panel * 64, first.z, first.y, first.x, barrier);
      ptx::bulk_copy(
          to + offsetof(Item, centre),
          static_cast<const std::uint16_t*>(p.centre) + static_cast<std::int64_t>(ptx::load_int(to + offsetof(Item, keys))) * C::dim,
          C::dim * 2, barrier);
    } else {
      ptx::barrier_expect(
          barrier, rows * (C::row_bytes + 8 + (C::query_scales ? 4 / form.query_scale_rows : 0) + (C::corrections ? 4 : 0)) + head_bytes);
#pragma unroll
      for (int i = 0; i < C::panels; ++i)
        ptx::bulk_copy(at.block(ring.slot()) + i * form.block_queries * C::panel,
                       p.queries + head_row * C::row_bytes + (static_cast<std::int64_t>(i) * padded + from.z) * C::panel, rows * C::panel,
                       barrier);
      if constexpr (C::query_scales)
        ptx::bulk_copy(to + offsetof(Item, query_scale), p.query_scale + (head_row + from.z) / form.query_scale_rows,
                       rows * 4 / form.query_scale_rows, barrier);
      if constexpr (C::corrections) ptx::bulk_copy(to + offsetof(Item, correction), p.correction + head_row + from.z, rows * 4, barrier);
    }
    if constexpr (C::channel_scales)
      ptx::bulk_copy(to + offsetof(Item, channels),
                     p.channels + static_cast<std::int64_t>(ptx::load_int(to + offsetof(Item, keys))) * C::dim, C::dim * 4, barrier);
    ptx::bulk_copy(to + offsetof(Item, range), p.ranges + from.w, rows * 8, barrier);
    ptx::barrier_arrive(at.query_empty(ring.slot()));
  }
}

// The third thread brings their tiles.
template <class C>
__device__ void produce_tiles(const Params& p, const typename C::At at) {
  using Item = typename C::Item;
  constexpr Form form = C::form;
  Ring<C::item_slots, 0> items;
  Ring<C::key_slots, 1> ring;
  Ring<C::value_slots, 1> values;
  ptx::wait_for_previous();
  for (;; items.advance()) {
    ptx::barrier_wait(at.item_written(items.slot()), items.parity());
    const int4 what = ptx::load_int4(at.item(items.slot()) + offsetof(Item, what));
    std::int64_t tile = ptx::load_int(at.item(items.slot()) + offsetof(Item, keys) + 4) + what.y;
    ptx::barrier_arrive(at.query_empty(items.slot()));
    if (what.x == 0) return;
    for (const std::int64_t last = tile + what.z - what.y; tile < last; ++tile) {
      int residual = 0;
      if constexpr (form.residuals) residual = p.passes[pass_index(tile, 0)].flagged;  // this load runs while the thread waits for the slot
#pragma unroll 1
      do {
        const std::uint32_t full = at.full(ring.slot()), value_full = C::separate_value_barriers ? at.value_full(values.slot()) : full;
        const std::uint8_t* const keys = p.key_numbers + key_tile_offset(form, tile);
        ptx::barrier_wait(at.empty(ring.slot()), ring.parity());
        ptx::barrier_expect(full, C::key_bytes + (C::separate_value_barriers ? 0 : C::value_bytes) + (C::passes ? sizeof(PassScales) : 0) +
                                      (form.scale_each_key ? tile_tokens * 4 : 0) + C::order_bytes);
        ptx::bulk_copy(at.key(ring.slot()), keys, C::key_bytes, full);
        if constexpr (C::passes) ptx::bulk_copy(at.scales(ring.slot()), p.passes + pass_index(tile, residual), sizeof(PassScales), full);
        if constexpr (form.sorted) ptx::bulk_copy(at.order(ring.slot()), p.orders + order_offset(tile), C::order_bytes, full);
        if constexpr (form.scale_each_key)
          ptx::bulk_copy(at.key_scale(ring.slot()), p.key_scale + tile * tile_tokens, tile_tokens * 4, full);
        if constexpr (C::separate_value_barriers) {
          ptx::barrier_wait(at.value_empty(values.slot()), values.parity());
          ptx::barrier_expect(value_full, C::value_bytes);
        }
        const void* from = p.value_numbers + value_tile_offset(form, tile);
        if constexpr (form.residuals)
          if (residual) from = p.residuals + residual_offset(form, tile);
        ptx::bulk_copy(at.value(C::separate_value_barriers ? values.slot() : ring.slot()), from, C::value_bytes, value_full);
        ring.advance();
        if constexpr (C::separate_value_barriers) values.advance();
      } while (residual-- > 0);
    }
  }
}

}  // namespace chitu::cuda::sm90
