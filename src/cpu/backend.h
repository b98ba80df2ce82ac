// SPDX-License-Identifier: Apache-2.0
// An instruction set's compiled functions. The code is written once, in quantize-inl.h and attention-inl.h, over one of
// simd_{avx512,avx2,portable}.h; {avx512,avx2,portable}.cpp compile it.
#pragma once

#include <bitset>
#include <cstdint>
#include <span>

#include "problem.h"

namespace chitu::cpu {

// Up to tile_tokens consecutive tokens of one head, on their way to being quantised.
struct TokenChunk {
  const void* rows = nullptr;  // row of the first token
  DType type = DType::f32;
  std::int64_t row_stride = 0;  // in elements
  int count = 0, dim = 0;
  Quant quant{};

  const float* centre = nullptr;           // [dim], subtracted first
  const float* channel_factors = nullptr;  // [dim], multiplied: 1/λ (tile) or largest/maximum (channel)
  float head_factor = 1;                   // with Scaling::head
  const float* correction_centre = nullptr;
  bool by_number = false;  // a number that is not finite becomes 0 alone (values); else with its token (queries, keys)

  // Results, each null where the recipe has none.
  std::byte* values = nullptr;      // [count][dim], dense
  float* scales = nullptr;          // of the chunk's first group, or of its tile
  float* corrections = nullptr;     // [count]: row . correction_centre
  std::int8_t* residual = nullptr;  // [tile_tokens][dim], written if flagged
  bool flagged = false;
  std::bitset<tile_tokens> nonfinite;
};

struct Backend {
  const char* name;
  bool (*available)();
  void (*to_f32)(const void* from, DType type, float* to, std::int64_t count);
  void (*quantize)(TokenChunk& chunk);
};

std::span<const Backend> backends();  // best first; the last runs anywhere
const Backend& best_backend();

// quantize() with a given backend, and merge(): their arguments have been checked.
Quantized quantize_with(const Backend& backend, const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options);
void merge(std::span<const Output> parts, const Output& result, int threads);

// A quantised operand, and where the scales of each sequence of a packed batch begin.
struct Indexed : Quantized {
  Indexed() = default;
  explicit Indexed(Quantized operand);
  std::vector<std::int64_t> first;  // group or tile of each sequence; empty unless packed
};

// The problem's operands, those that came as tensors quantised now.
struct Operands {
  explicit Operands(const Problem& problem);
  Indexed query, key, value;
};

// After a kernel has left out the tokens of NonFinite lists: puts NaN and infinity into just the outputs that they would reach in exact
// attention.
void propagate_nonfinite(const Problem& problem, const Operands& operands);

}  // namespace chitu::cpu
