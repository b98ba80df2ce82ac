// SPDX-License-Identifier: Apache-2.0
// The attention kernel's producer: it takes items and keeps shared memory full.
#pragma once

#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/shared.h"
#include "cuda/sm90/config.cuh"

namespace chitu::cuda::sm90 {

// Queries `row` ... of a head of a sequence.
struct Block {
  int sequence, head, row;
};

// In an order that is good for the end, where items are short then, and for the L2 cache. Where all sequences are alike and the last rows
// see most keys, these come first, of all heads whose keys and values the cache holds at once; else heads come one after another, and what
// leaves warpgroups idle, the heads' partial last blocks, at the end. Packed sequences and their heads come one after another.
template <int block_queries>
__device__ Block block_of(const Params& p, int item, int nothing) {
  const int all_heads = p.heads + nothing;
  if (p.places) {
    const int sequence = sequence_of(p, item / all_heads, [](const Place& s) { return s.block; });
    const Place& s = p.places[sequence];
    const int blocks = (s.queries + block_queries - 1) / block_queries, i = item - s.block * all_heads, head = i / blocks;
    return {sequence, head, (blocks - 1 - (i - head * blocks)) * block_queries};
  }
  const int heads = p.sequences * all_heads, queries = p.same.queries + nothing, full_blocks = queries / block_queries,
            full_items = full_blocks * heads;
  int head = item - full_items, row = full_blocks * block_queries;
  if (p.window.right < p.same.keys) {
    const int blocks = (queries + block_queries - 1) / block_queries, first = item / (blocks * p.heads_at_once) * p.heads_at_once,
              count = min(p.heads_at_once, heads - first), i = item - blocks * first;
    head = first + i % count;
    row = (blocks - 1 - i / count) * block_queries;
  } else if (item < full_items) {
    head = item / full_blocks;
    row = (full_blocks - 1 - (item - head * full_blocks)) * block_queries;
  }
  return {head / all_heads, head % all_heads, row};
}

// Writes Item::share and Item::what. ranges: of the sequence's queries. piece: among those of all split items, `pieces` each; else
// negative.
template <class L>
__device__ void describe_item(const int2* ranges, int queries, int row, int piece, int pieces, std::uint32_t item) {
  using Item = typename L::Item;
  constexpr int block = L::form.block_queries;
  const auto range = [&](int r) { return ranges[min(r, queries - 1)]; };
  int first = range(row).x / tile_tokens, end = max(first, tiles_of(range(row + block - 1).y));
  if (piece >= 0) {
    const int tiles = end - first, i = piece % pieces;
    end = first + tiles * (i + 1) / pieces;
    first += tiles * i / pieces;
  }
#pragma unroll 1
  for (int w = 0; w < L::warpgroups; ++w) {
    const int2 top = range(row + w * 64), bottom = range(row + w * 64 + 63);
    const bool none = top.x >= bottom.y;
    const auto within = [&](int tile) { return none ? end : min(max(tile, first), end); };
    ptx::store_int4(item + offsetof(Item, share) + w * 16, within(top.x / tile_tokens), within(tiles_of(bottom.y)), tiles_of(bottom.x),
                    top.y / tile_tokens);
  }
  ptx::store_int4(item + offsetof(Item, what), min(block, queries - row), first, end, max(piece, -1));
}

// Three threads share the work, each in a warp of its own, for the registers that each has. One takes items and describes them ...
// zero is not known to the compiler. What `nothing` is added to depends on the item, for it: else it would compute much before the loop,
// and run out of registers.
template <class L>
__device__ void produce_items(const Params& p, const typename L::At shared, float zero) {
  using Item = typename L::Item;
  constexpr Form form = L::form;
  // With one place it is empty only when the warpgroups are idle; with two an item that is taken so early waits while others might do it.
  constexpr bool ahead = L::query_places == 1;
  Ring<L::query_places, 1> ring;
  ptx::wait_for_previous();
  for (int item = blockIdx.x;; ring.advance()) {
    const int nothing = item & __float_as_int(zero);
    const typename L::At at{shared.base + nothing};
    const std::uint32_t to = at.item(ring.place());
    ptx::barrier_wait(at.query_empty(ring.place()), ring.parity());
    if (!ahead && ring.at > 0) item = static_cast<int>(gridDim.x) + atomicAdd(p.items_taken, 1);
    const int piece = item - (p.split.whole + nothing), whole_item = piece < 0 ? item : item - piece + piece / p.split.pieces;
    if (whole_item >= p.blocks * p.heads) {
      ptx::store_int4(to + offsetof(Item, what), 0, 0, 0, -1);
      ptx::barrier_arrive(at.described(ring.place()));
      return;
    }
    const Block block = block_of<form.block_queries>(p, whole_item, nothing);
    // Field by field: a copy of a Place would cost registers.
    const auto field = [&](auto Place::*of) { return p.places ? p.places[block.sequence].*of : p.same.*of; };
    const int queries = field(&Place::queries) + nothing,
              query_tile = p.places ? field(&Place::query_tile) : block.sequence * tiles_of(queries);
    const int range_row = (p.places ? query_tile * tile_tokens : 0) + block.row;
    ptx::store_int4(to + offsetof(Item, rows), p.places ? field(&Place::batch) : block.sequence, block.head,
                    field(&Place::query_begin) + block.row, 0);
    {
      const int kv_head = block.head / ((p.heads + nothing) / p.kv_heads), key_tiles = tiles_of(field(&Place::keys) + nothing),
                key_tile = p.places ? field(&Place::key_tile) : block.sequence * key_tiles;
      ptx::store_int4(to + offsetof(Item, keys), block.sequence * p.kv_heads + kv_head, key_tile * p.kv_heads + kv_head * key_tiles, 0, 0);
    }
    ptx::store_int4(to + offsetof(Item, queries), query_tile * p.heads + block.head * tiles_of(queries), tiles_of(queries), block.row,
                    range_row);
    describe_item<L>(p.ranges + range_row - block.row, queries, block.row, piece, p.split.pieces, to);
    ptx::barrier_arrive(at.described(ring.place()));
    if (ahead) item = static_cast<int>(gridDim.x) + atomicAdd(p.items_taken, 1);
  }
}

// ... one brings their queries ...
template <class L>
__device__ void produce_queries(const Params& p, const typename L::At at) {
  using Item = typename L::Item;
  constexpr Form form = L::form;
  Ring<L::query_places, 0> ring;
  Ring<1, 1> blocks;
  ptx::wait_for_previous();
  for (;; ring.advance()) {
    const std::uint32_t to = at.item(ring.place()), barrier = at.query_full(ring.place());
    ptx::barrier_wait(at.described(ring.place()), ring.parity());
    if (ptx::load_int(to + offsetof(Item, what)) == 0) {
      ptx::barrier_arrive(barrier);
      return;
    }
    const int4 from = ptx::load_int4(to + offsetof(Item, queries));  // first tile of the head, tiles of the head, row, row of ranges
    const int padded = from.y * tile_tokens, rows = min(form.block_queries, padded - from.z);
    const std::int64_t head_row = static_cast<std::int64_t>(from.x) * tile_tokens;
    const int4 place = ptx::load_int4(to + offsetof(Item, rows));  // batch entry, head, row
    ptx::store_long(to + offsetof(Item, out), place.x * p.out.batch + place.y * p.out.head + place.z * p.out.token);
    ptx::store_long(to + offsetof(Item, lse), place.x * p.lse.batch + place.y * p.lse.head + place.z * p.lse.token);
    constexpr int head_bytes = L::channel_scales ? L::dim * 4 : 0;
    if constexpr (L::quantises_queries) {
      ptx::barrier_wait(at.block_read(), blocks.parity());
      blocks.advance();
      ptx::barrier_expect(barrier, L::block_bytes + rows * 8 + head_bytes + L::dim * 2);
#pragma unroll
      for (int panel = 0; panel < L::dim / 64; ++panel)  // rows behind the tensor's last are zeros
        ptx::tensor_copy(at.block(0) + panel * form.block_queries * 128, &p.queries_as_given, panel * 64, place.z, place.y, place.x,
                         barrier);
      ptx::bulk_copy(
          to + offsetof(Item, centre),
          static_cast<const std::uint16_t*>(p.centre) + static_cast<std::int64_t>(ptx::load_int(to + offsetof(Item, keys))) * L::dim,
          L::dim * 2, barrier);
    } else {
      ptx::barrier_expect(
          barrier, rows * (L::row_bytes + 8 + (L::query_scales ? 4 / form.query_scale_rows : 0) + (L::corrections ? 4 : 0)) + head_bytes);
#pragma unroll
      for (int i = 0; i < L::panels; ++i)
        ptx::bulk_copy(at.block(ring.place()) + i * form.block_queries * L::panel,
                       p.queries + head_row * L::row_bytes + (static_cast<std::int64_t>(i) * padded + from.z) * L::panel, rows * L::panel,
                       barrier);
      if constexpr (L::query_scales)
        ptx::bulk_copy(to + offsetof(Item, query_scale), p.query_scale + (head_row + from.z) / form.query_scale_rows,
                       rows * 4 / form.query_scale_rows, barrier);
      if constexpr (L::corrections) ptx::bulk_copy(to + offsetof(Item, correction), p.correction + head_row + from.z, rows * 4, barrier);
    }
    if constexpr (L::channel_scales)
      ptx::bulk_copy(to + offsetof(Item, channels),
                     p.channels + static_cast<std::int64_t>(ptx::load_int(to + offsetof(Item, keys))) * L::dim, L::dim * 4, barrier);
    ptx::bulk_copy(to + offsetof(Item, range), p.ranges + from.w, rows * 8, barrier);
    ptx::barrier_arrive(at.query_empty(ring.place()));
  }
}

// ... and one brings their tiles.
template <class L>
__device__ void produce_tiles(const Params& p, const typename L::At at) {
  using Item = typename L::Item;
  constexpr Form form = L::form;
  Ring<L::query_places, 0> items;
  Ring<L::key_places, 1> ring;
  Ring<L::value_places, 1> values;
  ptx::wait_for_previous();
  for (;; items.advance()) {
    ptx::barrier_wait(at.described(items.place()), items.parity());
    const int4 what = ptx::load_int4(at.item(items.place()) + offsetof(Item, what));
    std::int64_t tile = ptx::load_int(at.item(items.place()) + offsetof(Item, keys) + 4) + what.y;
    ptx::barrier_arrive(at.query_empty(items.place()));
    if (what.x == 0) return;
    for (const std::int64_t last = tile + what.z - what.y; tile < last; ++tile) {
      int residual = 0;
      if constexpr (form.residuals) residual = p.passes[2 * tile].flagged;  // on its way while the place is waited for
#pragma unroll 1
      do {
        const std::uint32_t full = at.full(ring.place()), value_full = L::split ? at.value_full(values.place()) : full;
        const std::uint8_t* const keys = p.tiles + tile * (L::key_bytes + L::value_bytes);
        ptx::barrier_wait(at.empty(ring.place()), ring.parity());
        ptx::barrier_expect(full, L::key_bytes + (L::split ? 0 : L::value_bytes) + (L::passes ? sizeof(PassScales) : 0) +
                                      (form.scale_each_key ? tile_tokens * 4 : 0));
        ptx::bulk_copy(at.key(ring.place()), keys, L::key_bytes, full);
        if constexpr (L::passes) ptx::bulk_copy(at.scales(ring.place()), p.passes + 2 * tile + residual, sizeof(PassScales), full);
        if constexpr (form.scale_each_key)
          ptx::bulk_copy(at.key_scale(ring.place()), p.key_scale + tile * tile_tokens, tile_tokens * 4, full);
        if constexpr (L::split) {
          ptx::barrier_wait(at.value_empty(values.place()), values.parity());
          ptx::barrier_expect(value_full, L::value_bytes);
        }
        const void* from = keys + L::key_bytes;
        if constexpr (form.residuals)
          if (residual) from = p.residuals + tile * L::value_bytes;
        ptx::bulk_copy(at.value(L::split ? values.place() : ring.place()), from, L::value_bytes, value_full);
        ring.advance();
        if constexpr (L::split) values.advance();
      } while (residual-- > 0);
    }
  }
}

}  // namespace chitu::cuda::sm90
