// SPDX-License-Identifier: Apache-2.0
// Which work the CTAs of an attention kernel take: blocks of queries, in which order. Some blocks are split along the keys, so that no
// multiprocessor is idle while others have work ("split-KV", "Flash-Decoding", Dao et al. 2023).
#pragma once

#include <cstdint>
#include <vector>

#include "common/visible.h"
#include "cuda/operands/layout.h"

namespace chitu {
struct Problem;
}

namespace chitu::cuda {

// In a table of at most so many sequences, those with most keys are taken first.
constexpr int most_ordered = 256;

// The layout of each sequence of a call. One more follows, the end: its tile and block indices are the totals.
std::vector<SequenceLayout> layouts_of(const Problem& problem, const Form& form);

// How many query heads are taken in turn. The heads of all sequences are divided into equal parts, so that half of the L2 cache holds the
// keys and values of a part. group: query heads of a kv head.
int heads_at_once(int kv_heads, int group, std::int64_t bytes_of_kv_head, int device);

// Items before `whole` are taken whole, each of the others in `pieces` pieces, whose results are joined.
struct Split {
  int whole, pieces;
  friend constexpr bool operator==(const Split&, const Split&) = default;
};

// Costs, in tiles: item_cost of an item beside its tiles; piece_cost of each piece beside that; join_cost of each piece for each piece of
// its item. They are measured: docs/kernels/sm90-log.md, "Split items".
constexpr double item_cost = 2, piece_cost = 2, join_cost = 2. / 3;
constexpr int most_pieces = 32;             // of an item
constexpr int most_pieces_a_processor = 4;  // they take memory
// Splitting must pay. All items together must take at most worth_of_all of their time without it, and the split items at most
// worth_of_split of theirs.
constexpr double worth_of_all = 0.99, worth_of_split = 0.9;

// What splitting some of `items` items would bring. They see `tiles` tiles on average and `longest` at most. If the two are nearly equal,
// items count as equally long. Otherwise the longest come first, and the processors come out nearly even.
struct Splitting {
  std::int64_t items;
  double tiles, longest;
  int processors;

  constexpr bool even() const { return longest < 1.05 * tiles; }
  constexpr double time(std::int64_t count, int pieces) const {
    const double cost = item_cost + (pieces > 1 ? piece_cost + join_cost * pieces : 0), rounds = static_cast<double>(count) / processors;
    if (count == 0) return 0;
    if (even()) return static_cast<double>((count + processors - 1) / processors) * (tiles / pieces + cost);
    const double all = rounds * (tiles / pieces + cost) + longest / pieces / 4, one = longest / pieces + cost;
    return all < one ? one : all;
  }
  constexpr double limit() const { return worth_of_all * time(items, 1); }
  // The time of all items if those behind `whole` are taken in pieces; limit() if that does not pay or takes too much memory.
  constexpr double time_of(std::int64_t whole, int pieces) const {
    if ((items - whole) * pieces > most_pieces_a_processor * processors) return limit();
    const double split = time((items - whole) * pieces, pieces);
    return split > worth_of_split * time(items - whole, 1) ? limit() : time(whole, 1) + split;
  }
  // Every processor takes the same number of whole items: as many as there are for all of them, or one less. The rest is split.
  constexpr std::int64_t most_whole() const { return even() ? items / processors * processors : 0; }
  constexpr std::int64_t least_whole() const { return most_whole() < processors ? 0 : most_whole() - processors; }
};

// Chooses which of `items` items are split.
inline Split split_items(std::int64_t items, double tiles, double longest, int processors) {
  const Splitting splitting{items, tiles, longest, processors};
  Split best{static_cast<int>(items), 1};
  double least = splitting.limit();
  for (std::int64_t whole = splitting.most_whole(); whole >= splitting.least_whole(); whole -= processors)
    for (int pieces = 2; pieces <= most_pieces; ++pieces)
      if (const double time = splitting.time_of(whole, pieces); time < least) {
        least = time;
        best = {static_cast<int>(whole), pieces};
      }
  return best;
}

// Tiles that a block of queries sees, of which some blocks of each sequence are looked at.
constexpr int blocks_looked_at = 32;
constexpr int block_step(int blocks) { return (blocks + blocks_looked_at - 1) / blocks_looked_at; }
constexpr int tiles_of_block(const Window& window, const SequenceLayout& s, int block, int block_queries) {
  const int first = block * block_queries, last = (first + block_queries < s.queries ? first + block_queries : s.queries) - 1;
  const auto seen = [&](int query) {
    return visible(window, s.query_positions.first + query * s.query_positions.step, s.key_positions, s.keys);
  };
  const int tiles = tiles_of(static_cast<int>(seen(last).end)) - static_cast<int>(seen(first).begin / tile_tokens);
  return tiles < 0 ? 0 : tiles;
}
// Many sequences that differ need no splitting: they give many items, and items of different lengths even out.
constexpr bool never_split(bool alike, std::int64_t items, int processors) { return !alike && items >= 2 * processors; }

// The same for a call with `items` items, that has these sequences.
Split split_of(const Problem& problem, const Form& form, const std::vector<SequenceLayout>& layouts, std::int64_t items);

}  // namespace chitu::cuda
