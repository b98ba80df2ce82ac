// SPDX-License-Identifier: Apache-2.0
// The order in which attention kernels take blocks of queries.
#pragma once

#include "cuda/operands/sequences.cuh"

namespace chitu::cuda {

// Queries `row` ... of a head of a sequence.
struct Block {
  int sequence, head, row;
};

// The block that is item `item`, before items are split. `opaque` is 0, but the compiler must not know it (ptx/order.h). Adding it makes a
// number look as if it depended on the item; otherwise the compiler would compute it before the loop over items, and run out of registers.
//
// The order has two aims: short items at the end, so that no multiprocessor waits long for the last; and few heads at a time, so that the
// L2 cache holds their keys and values.
// - All sequences alike, later rows see more keys: the last rows come first, of as many heads at a time as the cache holds.
// - All sequences alike, otherwise: one head after another; the heads' partial last blocks, which leave warpgroups idle, come at the end.
// - Not alike: one sequence after another, those with most keys first, in it one head after another.
template <int block_queries>
__device__ Block block_of(const Params& p, int item, int opaque) {
  const int all_heads = p.heads + opaque;
  if (p.layouts) {
    const SequenceLayout& entry = p.layouts[sequence_of(p, item / all_heads, [](const SequenceLayout& s) { return s.block; })];
    const int sequence = entry.taken, blocks = (p.layouts[sequence].queries + block_queries - 1) / block_queries,
              i = item - entry.block * all_heads, head = i / blocks;
    return {sequence, head, (blocks - 1 - (i - head * blocks)) * block_queries};
  }
  const int heads = p.sequences * all_heads, queries = p.same.queries + opaque, full_blocks = queries / block_queries,
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

}  // namespace chitu::cuda
