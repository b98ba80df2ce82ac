// SPDX-License-Identifier: Apache-2.0
// Second implementations of what the library computes: number formats, masks, exact attention, the quantisers, and attention over quantised
// numbers. They are plain and slow, and written from the specification (docs/numerics.md). They share no code with the library except
// changed_score(), which is a specification itself.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "chitu/chitu.h"

namespace chitu::test::oracle {

// A binary floating format: subnormals below 2^smallest_exponent are multiples of 2^(smallest_exponent - fraction_bits).
struct Format {
  int fraction_bits, smallest_exponent;
  double largest;
  bool has_infinity;
};
inline constexpr Format f16{10, -14, 65504, true};
inline constexpr Format bf16{7, -126, 0x1.fep127, true};
inline constexpr Format e4m3{3, -6, 448, false};

// To nearest even. Past the largest by half a unit or more: infinity, or the largest where there is none.
double round_to(const Format& format, double x);
float round_to(DType type, float x);  // f32, f16, bf16

struct Call {
  Tensor query, key, value;
  Options options;
};

// The sequences of a call as token ranges, and whether a query sees a key.
struct Run {
  std::int64_t batch, sequence, query_begin, query_end, key_begin, key_end;
};
std::vector<Run> runs(const Call& call);
// For tokens of the tensors: a query's position, and whether the query sees the key.
std::int64_t query_position(const Call& call, const Run& run, std::int64_t query);
std::int64_t key_position(const Call& call, const Run& run, std::int64_t key);
bool sees(const Call& call, const Run& run, std::int64_t query, std::int64_t key);
double scale_of(const Call& call);

struct Exact {
  std::vector<double> out, lse;  // dense, as Output
};
// softmax(scale * query . key^T) value in double, under IEEE's rules for NaN and infinity.
Exact attention(const Call& call);

// One head of one sequence, quantised. Empty where the quantisation has no such thing.
struct Head {
  std::int64_t tokens, dim;
  std::vector<float> numbers;           // [token][channel]: what is stored, before scales
  std::vector<float> scales;            // of groups, channels, tiles, or of the head
  std::vector<std::int64_t> group;      // [token]: index of its scale, with Scaling::tokens
  std::vector<int> ranks;               // [token], of a quantisation that is sorted
  std::vector<float> centre, channels;  // [channel]
  std::vector<int> flagged;             // [tile]: 0, 1, or -1 if the order of a sum decides
  std::vector<float> residuals;         // [token][channel], of every tile
  std::vector<bool> nonfinite;          // [token]

  double number(std::int64_t token, std::int64_t channel, bool residual) const;  // with scales
};
Head quantize(const std::vector<float>& rows, std::int64_t dim, DType type, const Quant& quant, Role role);

// Attention over numbers as a method's recipe stores them, with its own rounding of the weights; two passes.
struct HeadResult {
  std::vector<double> out, lse;
};
HeadResult attention(std::string_view method, const std::vector<float>& query, const std::vector<float>& key,
                     const std::vector<float>& value, std::int64_t dim, DType type, double scale, bool causal);

}  // namespace chitu::test::oracle
