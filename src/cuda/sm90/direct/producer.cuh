// SPDX-License-Identifier: Apache-2.0
// The direct kernel's producer. A warp takes items, describes them and brings their queries; a thread of another brings their keys and
// values.
#pragma once

#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/order.h"
#include "cuda/ptx/shared.h"
#include "cuda/schedule.cuh"
#include "cuda/sm90/direct/config.cuh"

namespace chitu::cuda::sm90::direct {

// The item that a CTA takes in its round `round`, from 0. Where all sequences are alike, items come in the order of their length, and a CTA
// that has taken an early one in a round takes a late one in the next; so no counter has to be cleared before the kernel. Else CTAs count.
__device__ inline int next_item(const Params& p, int round, int lane) {
  const int ctas = ptx::opaque(static_cast<int>(gridDim.x)), own = ptx::opaque(static_cast<int>(blockIdx.x));
  if (round == 0) return own;
  if (p.layouts) return ctas + __shfl_sync(~0u, lane == 0 ? atomicAdd(p.items_taken, 1) : 0, 0);
  return round * ctas + (round & 1 ? ctas - 1 - own : own);
}

// Writes Item::place and Item::source.
template <class C>
__device__ __forceinline__ void write_place(const Params& p, int item, int lane, std::uint32_t to) {
  using Item = typename C::Item;
  const int opaque = ptx::opaque(0);  // else what no item changes would be computed before all items, and kept
  const Block block = block_of<C::rows>(p, item, opaque);
  const auto field = [&](int SequenceLayout::*of) { return p.layouts ? p.layouts[block.sequence].*of : p.same.*of; };
  if (lane != 0) return;
  ptx::store_int4(to + offsetof(Item, place), block.sequence, block.head, block.row, field(&SequenceLayout::queries));
  ptx::store_int4(to + offsetof(Item, source), p.layouts ? field(&SequenceLayout::batch) : block.sequence,
                  block.head / ((p.heads + opaque) / p.kv_heads), field(&SequenceLayout::key_begin),
                  field(&SequenceLayout::query_begin) + block.row);
}

// Writes Item::share and Item::what. The warp's lanes 2 w and 2 w + 1 look at the first and the last row of warpgroup w.
template <class C>
__device__ __forceinline__ void write_share(const Params& p, int piece, int lane, std::uint32_t item) {
  using Item = typename C::Item;
  const int4 place = ptx::load_int4(item + offsetof(Item, place));
  const int count = min(C::rows, place.w - place.z), own_row = lane / 2 * 64 + lane % 2 * 63;
  const int2 own = range_of(p, place.x, place.z + min(own_row, count - 1));
  const auto range = [&](int of) { return make_int2(__shfl_sync(~0u, own.x, of), __shfl_sync(~0u, own.y, of)); };
  const auto tiles_until = [](int key) { return (key + C::keys - 1) / C::keys; };
  int first = range(0).x / C::keys, end = max(first, tiles_until(range(2 * C::warpgroups - 1).y));
  if (piece >= 0) {
    const int tiles = end - first, i = piece % p.split.pieces;
    end = first + tiles * (i + 1) / p.split.pieces;
    first += tiles * i / p.split.pieces;
  }
  const int2 top = range(2 * lane & 31), bottom = range((2 * lane + 1) & 31);
  const bool none = top.x >= bottom.y;
  const auto within = [&](int tile) { return none ? end : min(max(tile, first), end); };
  const int4 share = make_int4(within(top.x / C::keys), within(tiles_until(bottom.y)), tiles_until(bottom.x), top.y / C::keys);
  // One lane stores all of an item, the one that arrives at its barriers.
#pragma unroll 1
  for (int w = 0; w < C::warpgroups; ++w) {
    const int4 of =
        make_int4(__shfl_sync(~0u, share.x, w), __shfl_sync(~0u, share.y, w), __shfl_sync(~0u, share.z, w), __shfl_sync(~0u, share.w, w));
    if (lane == 0) ptx::store_int4(item + offsetof(Item, share) + w * 16, of.x, of.y, of.z, of.w);
  }
  if (lane == 0) ptx::store_int4(item + offsetof(Item, what), count, first, end, max(piece, -1));
}

template <class C>
__device__ void produce_items(const Params& p, const CUtensorMap& queries, const typename C::At at) {
  using Item = typename C::Item;
  ptx::wait_for_previous();
  for (std::uint32_t round = 0;; ++round) {
    // Take an item. The lane is read again for each, so that nothing that depends on it is kept.
    const int lane = ptx::thread_index_again() & 31;
    const std::uint32_t slot = C::Items::slot(round), block_slot = C::Blocks::slot(round), to = at.item(slot),
                        barrier = at.query_full(block_slot);
    ptx::barrier_wait(at.item_empty(slot), C::Items::parity(round) ^ 1);
    const int item = next_item(p, static_cast<int>(round), lane), piece = item - p.split.whole,
              whole_item = piece < 0 ? item : p.split.whole + piece / p.split.pieces;
    if (whole_item >= p.blocks * p.heads) {
      if (lane == 0) {
        ptx::store_int4(to + offsetof(Item, what), 0, 0, 0, -1);
        ptx::barrier_arrive(at.item_written(slot));
      }
      ptx::barrier_wait(at.query_empty(block_slot), C::Blocks::parity(round) ^ 1);
      if (lane == 0) ptx::barrier_arrive(barrier);
      return;
    }

    // Describe it. What is written is read again, because 32 registers do not hold it beside what computes ranges.
    write_place<C>(p, whole_item, lane, to);
    if (lane == 0) ptx::store_int4(to + offsetof(Item, number), static_cast<int>(round), 0, 0, 0);
    __syncwarp();
    write_share<C>(p, piece, lane, to);
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(at.item_written(slot));

    // Bring its queries. Rows behind the sequence's last are those of others, or zeros.
    ptx::barrier_wait(at.query_empty(block_slot), C::Blocks::parity(round) ^ 1);
    if (lane == 0) {
      const int4 place = ptx::load_int4(to + offsetof(Item, place)), source = ptx::load_int4(to + offsetof(Item, source));
      ptx::barrier_expect(barrier, C::query_bytes);
#pragma unroll 1
      for (int panel = 0; panel < C::panels; ++panel)
        ptx::tensor_copy(at.query(block_slot) + panel * C::query_panel, &queries, panel * 64, source.w, place.y, source.x, barrier);
    }
    __syncwarp();
  }
}

template <class C>
__device__ void produce_tiles(const CUtensorMap& keys, const CUtensorMap& values, const typename C::At at) {
  using Item = typename C::Item;
  std::uint32_t key_count = 0, value_count = 0;
  ptx::wait_for_previous();
  for (std::uint32_t round = 0;; ++round) {
    const std::uint32_t slot = C::Items::slot(round), item = at.item(slot);
    ptx::barrier_wait(at.item_written(slot), C::Items::parity(round));
    const int4 what = ptx::load_int4(item + offsetof(Item, what)), source = ptx::load_int4(item + offsetof(Item, source));
    ptx::barrier_arrive(at.item_empty(slot));
    if (what.x == 0) return;
    const auto bring = [&](const CUtensorMap& map, std::uint32_t to, int tile, std::uint32_t full) {
      ptx::barrier_expect(full, C::tile_bytes);
#pragma unroll 1
      for (int panel = 0; panel < C::panels; ++panel)
        ptx::tensor_copy(to + panel * C::key_panel, &map, panel * 64, source.z + tile * C::keys, source.y, source.x, full);
    };
    // A tile's keys are needed before the values of the tile before.
    for (int tile = what.y; tile <= what.z; ++tile) {
      if (tile < what.z) {
        const std::uint32_t to = C::Tiles::slot(key_count);
        ptx::barrier_wait(at.key_empty(to), C::Tiles::parity(key_count++) ^ 1);
        bring(keys, at.key(to), tile, at.key_full(to));
      }
      if (tile > what.y) {
        const std::uint32_t to = C::Tiles::slot(value_count);
        ptx::barrier_wait(at.value_empty(to), C::Tiles::parity(value_count++) ^ 1);
        bring(values, at.value(to), tile - 1, at.value_full(to));
      }
    }
  }
}

}  // namespace chitu::cuda::sm90::direct
