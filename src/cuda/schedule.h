// SPDX-License-Identifier: Apache-2.0
// Which work an attention kernel's CTAs take: blocks of queries, in which order, and which of them are divided along the keys so that no
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

// Where each sequence of a call lies, and behind them the end of the last.
std::vector<SequenceLayout> layouts_of(const Problem& problem, const Form& form);

// Of all sequences' query heads, how many are taken in turn: all in parts of one size whose keys and values fill half of the L2 cache.
// group: query heads a kv head.
int heads_at_once(int kv_heads, int group, std::int64_t bytes_of_kv_head, int device);

// Items before `whole` are taken as they are, each of the others in `pieces`, whose results are joined.
struct Split {
  int whole, pieces;
  friend constexpr bool operator==(const Split&, const Split&) = default;
};

// What an item costs beside its tiles, and each of its pieces beside that, in tiles. Measured: docs/kernels/sm90-log.md, "Split items".
constexpr double item_cost = 2, piece_cost = 2, join_cost = 2. / 3;
constexpr int most_pieces = 32;             // of an item
constexpr int most_pieces_a_processor = 4;  // they take memory
// No more than so much of the time without it, of all items and of those that are split: else it is not done.
constexpr double worth_of_all = 0.99, worth_of_split = 0.9;

// items: of equal length, `tiles` each; or of `tiles` on average and `longest` at most, the longest ones first, which then come out nearly
// even on their processors.
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
  // All take a whole one, another, and so on; the rest is split, perhaps with one round more.
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

// Of a call with `items` items.
Split split_of(const Problem& problem, const Form& form, std::int64_t items);

}  // namespace chitu::cuda
