// SPDX-License-Identifier: Apache-2.0
// Device code that all quantizers share. It finds the sequence of a unit of work, prepares tables for the attention kernel, and writes the
// scales of a tile's values.
#pragma once

#include <cstddef>

#include "common/limits.h"
#include "common/visible.h"
#include "cuda/params.h"

namespace chitu::cuda {

// In a call with a table, the sequence that has unit `unit` of a head. before(layout) is a sequence's first unit; the answer is the last
// sequence for which it is at most `unit`. An empty sequence is never the answer, because the next one begins at the same unit.
template <class Before>
__device__ int sequence_of(const QuantizeParams& p, int unit, Before before) {
  int low = 0, high = p.sequences - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (before(p.layouts[middle]) <= unit)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Which tile of which head of which sequence. Queries have `heads` heads, keys and values kv_heads. index: among all tiles of the operand.
struct TileLocation {
  int sequence, head, tile;
  std::int64_t index;
};

template <bool is_query>
__device__ TileLocation locate_tile(const QuantizeParams& p, int index) {
  const int heads = is_query ? p.heads : p.kv_heads;
  const auto first = [](const SequenceLayout& s) { return is_query ? s.query_tile : s.key_tile; };
  int sequence, tiles, begin;
  if (p.layouts) {
    sequence = sequence_of(p, index / heads, first);
    const SequenceLayout& s = p.layouts[sequence];
    tiles = tiles_of(is_query ? s.queries : s.keys);
    begin = first(s) * heads;
  } else {
    tiles = tiles_of(is_query ? p.same.queries : p.same.keys);
    sequence = index / (tiles * heads);
    begin = sequence * tiles * heads;
  }
  const int head = (index - begin) / tiles;
  return {sequence, head, index - begin - head * tiles, index};
}

// Writes the range of keys that each query sees, and sets the attention kernel's counters to 0. `threads` threads call it; this is
// `thread`.
__device__ inline void prepare(const QuantizeParams& p, int thread, int threads) {
  if (thread == 0) *p.items_taken = 0;
  for (int i = thread; i < p.split_items * most_warps; i += threads) p.pieces_done[i] = 0;
  const int count = range_count(p);
  for (int i = thread; i < count; i += threads) {
    const SequenceLayout s =
        p.layouts ? p.layouts[sequence_of(p, i / tile_tokens, [](const SequenceLayout& x) { return x.query_tile; })] : p.same;
    const int query = i - (p.layouts ? s.query_tile * tile_tokens : 0);
    const Range seen = visible(p.window, s.query_positions.first + query * s.query_positions.step, s.key_positions, s.keys);
    p.ranges[i] = query < s.queries ? make_int2(static_cast<int>(seen.begin), static_cast<int>(seen.end)) : make_int2(0, 0);
  }
}

// Marks a tile in one of QuantizeParams::nonfinite_...: 1 if a number in it is not finite, else 0.
__device__ __forceinline__ void mark(const QuantizeParams& p, std::uint8_t* flags, std::int64_t tile, bool nonfinite) {
  flags[tile] = nonfinite;
  if (nonfinite) *p.any_nonfinite = 1;
}

// Writes the part of a tile's two PassScales that comes from its values.
__device__ __forceinline__ void write_passes(const QuantizeParams& p, std::int64_t tile, float scale, bool flagged) {
  static_assert(offsetof(PassScales, value) == 16 && offsetof(PassScales, last) == 20 && offsetof(PassScales, flagged) == 24);
  auto* passes = reinterpret_cast<int4*>(p.passes + pass_index(tile, 0));  // two int4 each; the values' part is the second
  passes[1] = make_int4(__float_as_int(scale), 1, flagged, 0);
  passes[3] = make_int4(__float_as_int(scale * (1 / residual_parts)), 0, flagged, 0);
}

}  // namespace chitu::cuda
