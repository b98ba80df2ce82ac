// SPDX-License-Identifier: Apache-2.0
// Every mask the library knows is one interval of keys for each query: causal, sliding window, padding, shards, stripes.
// Reference, SIMD code and GPU kernels call this one function.
#pragma once

#include "chitu/attention.h"

namespace chitu {

struct Range {
  std::int64_t begin = 0, end = 0;
  constexpr bool empty() const { return begin >= end; }
};

// b > 0. Nearly every step is 1, and a GPU takes a hundred instructions to divide.
constexpr std::int64_t floor_div(std::int64_t a, std::int64_t b) { return b == 1 ? a : a >= 0 ? a / b : -((-a + b - 1) / b); }
constexpr std::int64_t clamp(std::int64_t x, std::int64_t low, std::int64_t high) { return x < low ? low : x > high ? high : x; }

// The keys, as indices 0 ... count - 1 into a run of keys at `keys`, that a query at `position` sees.
constexpr Range visible(const Window& window, std::int64_t position, const Positions& keys, std::int64_t count) {
  return {clamp(-floor_div(keys.first + window.left - position, keys.step), 0, count),
          clamp(floor_div(position + window.right - keys.first, keys.step) + 1, 0, count)};
}

static_assert(visible(causal, 3, {0, 1}, 8).end == 4);
static_assert(visible(Window{2, 0}, 5, {0, 1}, 8).begin == 3);
static_assert(visible(causal, 3, {4, 1}, 4).end == 0);                                                    // a later shard
static_assert(visible(causal, 9, {1, 4}, 4).end == 3 && visible(Window{5, 0}, 9, {1, 4}, 4).begin == 1);  // a stripe

}  // namespace chitu
