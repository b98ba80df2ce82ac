// SPDX-License-Identifier: Apache-2.0
// Which work the CTAs of an attention kernel take: blocks of queries, in which order. Some blocks are split along the keys, so that no
// multiprocessor is idle while others have work ("split-KV", "Flash-Decoding", Dao et al. 2023).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/operands/layout.h"

namespace chitu {
struct Problem;
}

namespace chitu::cuda {

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

// Chooses which of `items` items are split. They see `tiles` tiles on average and `longest` at most. If the two are nearly equal, items
// count as equally long. Otherwise the longest come first, and the processors come out nearly even.
inline Split split_items(std::int64_t items, double tiles, double longest, int processors) {
  const bool even = longest < 1.05 * tiles;
  const auto time = [&](std::int64_t count, int pieces) {
    const double cost = item_cost + (pieces > 1 ? piece_cost + join_cost * pieces : 0), rounds = static_cast<double>(count) / processors;
    if (count == 0) return 0.;
    if (even) return std::ceil(rounds) * (tiles / pieces + cost);
    return std::max(rounds * (tiles / pieces + cost) + longest / pieces / 4, longest / pieces + cost);
  };
  Split best{static_cast<int>(items), 1};
  double least = worth_of_all * time(items, 1);
  // Every processor takes the same number of whole items: as many as there are for all of them, or one less. The rest is split.
  const std::int64_t rounds = even ? items / processors : 0;
  for (std::int64_t whole = rounds * processors; whole >= 0 && whole >= (rounds - 1) * processors; whole -= processors)
    for (int pieces = 2; pieces <= most_pieces && (items - whole) * pieces <= most_pieces_a_processor * processors; ++pieces) {
      const double split = time((items - whole) * pieces, pieces), all = time(whole, 1) + split;
      if (all >= least || split > worth_of_split * time(items - whole, 1)) continue;
      least = all;
      best = {static_cast<int>(whole), pieces};
    }
  return best;
}

// The same for a call with `items` items.
Split split_of(const Problem& problem, const Form& form, std::int64_t items);

}  // namespace chitu::cuda
