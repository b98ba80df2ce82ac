// SPDX-License-Identifier: Apache-2.0
// What the blocks of a call share, and what a thread works in: for block-inl.h.
#pragma once

#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "common/limits.h"
#include "common/numbers.h"
#include "cpu/exp2-inl.h"
#include "cpu/panels-inl.h"

namespace chitu::cpu {

// Functions of S, even if it does nothing here: compiled for another instruction set they are others.
template <class S, class T>
void negate(T* numbers, int count) {
  for (int c = 0; c < count; ++c) {
    if constexpr (std::is_same_v<T, std::uint16_t>)
      numbers[c] ^= 0x8000;  // bf16
    else
      numbers[c] = static_cast<T>(-numbers[c]);
  }
}

// By a power of two. Integers have scales instead.
template <class S, class T>
void multiply(T* numbers, int count, float factor) {
  for (int c = 0; c < count; ++c) {
    if constexpr (std::is_same_v<T, std::uint16_t>)
      numbers[c] = f32_to_bf16(bf16_to_f32(numbers[c]) * factor);
    else if constexpr (std::is_same_v<T, float>)
      numbers[c] *= factor;
  }
}

// A call, and what follows from its recipe, with scores in Score and weights . values in Weight: F32, Bf16 or Int8.
template <class S, class Score, class Weight>
struct Shared {
  using L = Layout<S>;
  static constexpr int W = S::width;
  static constexpr bool int8_scores = std::is_same_v<Score, Int8>, int8_weights = std::is_same_v<Weight, Int8>;
  static constexpr float lag = 16;  // how far a running maximum may, where it does

  struct Unit {  // a kv head of a sequence
    std::int64_t sequence, head;
    std::vector<std::int64_t> nonfinite_keys;  // tokens with a NaN or an infinity: they weigh nothing
  };

  explicit Shared(const Problem& p) : problem(p), operands(p), layout(p.dim()) {}

  const Sequence& sequence_of(const Unit& u) const { return problem.sequences[static_cast<std::size_t>(u.sequence)]; }
  std::int64_t rows_of(const Unit& u) const { return sequence_of(u).queries * problem.group(); }

  const Problem& problem;
  const Operands operands;
  const L layout;
  const Weights& weights = problem.options.recipe.weights;
  // A running maximum that lags lets sums grow by 2^lag. They are made smaller by that factor, because a large scale times 2^lag could
  // overflow in rows whose result is finite.
  const bool lags = weights.by_tile && int8_weights;
  // A scale near either end of fp32 leaves this part of itself, a power of two, to the queries: log2 e times it would overflow, or have few
  // bits.
  const float query_unit = std::fabs(problem.scale()) > 0x1p100f ? 0x1p40f : std::fabs(problem.scale()) < 0x1p-100f ? 0x1p-40f : 1;
  const float sum_unit = lags ? std::exp2(-lag) : 1;
  const bool sums_unrounded = weights.output == Sum::unrounded || weights.lse == Sum::unrounded;
  const bool in_words = L::template on_tiles<Weight> && int8_weights && !sums_unrounded;  // exponentials
  const float log2_top = std::log2(weights.top) - (int8_weights && !in_words ? exp2_u8_shift<S> : 0);
  // Groups of a whole tile that is not sorted repeat every 8 keys: one vector holds the scales of all, and they wait for the exponential.
  const bool keys_share_scales =
      int8_scores && problem.options.recipe.key.groups.block == tile_tokens && !problem.options.recipe.key.sorted && W % 8 == 0;
  const std::int64_t tile_key_bytes = int8_scores ? layout.template tile_key_bytes<Int8>() : 0;  // of panels
  const std::int64_t tile_value_bytes = int8_weights ? layout.template tile_value_bytes<Int8>() : 0;
};

// What a thread works in; sizes in rows are of a block, or of a step.
template <class S, class Weight>
struct Scratch {
  using L = Layout<S>;
  static constexpr int W = S::width;
  Buffer<std::byte> query;  // [block of R rows][lane][R]
  Buffer<float> out;        // [row][width]
  std::array<float, L::block + W> row_scale{}, maximum{};
  std::array<Range, L::block> seen;
  alignas(64) float output_sum[L::block][W], lse_sum[L::block][W];
  // Of a step: scores, lane by lane the largest, and the largest; what scores are multiplied by and what is added then.
  alignas(64) float scores[L::step * tile_tokens], top[L::step][W], tile_maximum[L::padded_step];
  alignas(64) float factor[L::step][W], offset[L::padded_step];
  // Of a step, and of the one before it.
  struct Weighed {
    alignas(64) std::byte weights[L::step * tile_tokens * 4 / Weight::group];
    // What a row's output so far, this tile's product, its residual's and its sum of weights are multiplied by.
    alignas(64) float keep[L::padded_step], weight[L::padded_step], residual_weight[L::padded_step], sum_weight[L::padded_step];
    alignas(64) float unrounded[L::step][W];  // sums of INT8 weights before rounding, where the recipe wants them
    bool kept;                                // keep is all 1
  } weighed[2];
  Buffer<std::byte> keys, values;       // an unpacked tile
  alignas(64) float bias[tile_tokens];  // 0, or -inf for a key that must weigh nothing
};

}  // namespace chitu::cpu
