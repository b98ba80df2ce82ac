// SPDX-License-Identifier: Apache-2.0
// The quantisation methods. A method is declared here and nowhere else: quantisers, kernels, the reference, the
// command line, bindings, tests and docs/methods.md all read these values. docs/numerics.md defines every field exactly.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "chitu/tensor.h"

namespace chitu {

// Keys a step of the online softmax takes, counted from the start of the sequence. A recipe whose weights are relative to
// their tile, or to the running maximum, is defined by it.
inline constexpr int tile_tokens = 128;

// Which tokens share a scale: token t of a sequence has scale of(t).
// {1, 1}: each its own; {64, 1}: blocks of 64; {16, 8}: 16 rows hold 8 scales, rows r and r + 8 share one, as a lane of an
// mma fragment holds them (SageAttention2's per-thread groups).
struct Groups {
  int block = 1;  // tokens in a block; divides tile_tokens
  int lanes = 1;  // scales in a block: token t takes lane (t % 8) * lanes / 8

  constexpr std::int64_t count(std::int64_t tokens) const { return (tokens + block - 1) / block * lanes; }
  constexpr std::int64_t of(std::int64_t token) const { return token / block * lanes + token % 8 * lanes / 8; }

  friend constexpr bool operator==(const Groups&, const Groups&) = default;
};

enum class Scaling : std::uint8_t {
  none,     // stored as it came: f32, f16 or bf16
  tokens,   // one scale for each group of tokens
  head,     // one scale for each head of each sequence
  channel,  // one scale for each channel of each head
  tile,     // a vector over channels (sampled), then one scale for each tile of keys; a residual plane where a key needs it
};

// What is subtracted from every key of a head before it is rounded; softmax does not feel it and the LSE is corrected.
enum class Centre : std::uint8_t { none, mean, sampled_mean };

// How one operand is stored.
struct Quant {
  DType type = DType::f32;  // with Scaling::none: any 16- or 32-bit type
  Scaling scaling = Scaling::none;
  Groups groups{};  // with Scaling::tokens
  Centre centre = Centre::none;
  bool rotated = false;  // signs and a Hadamard matrix over the channels, alike for queries and keys
  // Keys with groups of a whole tile: the tokens of a tile are ranked by their largest magnitude, and those with neighbouring ranks share a
  // scale instead of those that `groups` says (src/common/ranks.h).
  bool sorted = false;

  friend constexpr bool operator==(const Quant&, const Quant&) = default;
};

enum class Sum : std::uint8_t { unrounded, rounded };

// How the weights P = 2^(score - maximum) meet the values: round_to_type(top * P).
struct Weights {
  DType type = DType::f32;      // f32: not rounded
  float top = 1;                // the largest weight's stored value
  bool by_tile = false;         // relative to the row's maximum in its own tile of keys, else to the running maximum
  Sum output = Sum::unrounded;  // what normalises the output
  Sum lse = Sum::unrounded;     // what the LSE is made of

  friend constexpr bool operator==(const Weights&, const Weights&) = default;
};

struct Recipe {
  Quant query{}, key{}, value{};
  Weights weights{};

  friend constexpr bool operator==(const Recipe&, const Recipe&) = default;
};

namespace recipes {

inline constexpr Recipe exact{};

// SageAttention 1, arXiv 2410.02367 section 4.
inline constexpr Recipe sage{
    .query = {.type = DType::i8, .scaling = Scaling::tokens, .groups = {128, 1}},
    .key = {.type = DType::i8, .scaling = Scaling::tokens, .groups = {64, 1}, .centre = Centre::mean},
    .value = {.type = DType::f16, .scaling = Scaling::head},
    .weights = {.type = DType::f16},
};

// SageAttention 2, arXiv 2411.10958 sections 3.2 and 3.3, with the groups of its Hopper kernel.
inline constexpr Recipe sage2{
    .query = {.type = DType::i8, .scaling = Scaling::tokens, .groups = {16, 8}},
    .key = {.type = DType::i8, .scaling = Scaling::tokens, .groups = {128, 4}, .centre = Centre::mean},
    .value = {.type = DType::e4m3, .scaling = Scaling::channel},
    .weights = {.type = DType::e4m3, .top = 448},
};

// INT-FlashAttention, arXiv 2409.16997 section 3, "half INT8".
inline constexpr Recipe int8_half{
    .query = {.type = DType::i8, .scaling = Scaling::tokens, .groups = {1, 1}},
    .key = {.type = DType::i8, .scaling = Scaling::tokens, .groups = {1, 1}},
    .value = {.type = DType::f16, .scaling = Scaling::head},
    .weights = {.type = DType::f16},
};

// INT-FlashAttention, "full INT8". The output is normalised by the rounded weights, so that a row whose small weights all
// round to zero is not shrunk, as the original's is.
inline constexpr Recipe int8{
    .query = int8_half.query,
    .key = int8_half.key,
    .value = {.type = DType::i8, .scaling = Scaling::head},
    .weights = {.type = DType::u8, .top = 127, .output = Sum::rounded},
};

// FlashAttention-3, arXiv 2407.08608 section 3.3, scales by head as its kernel takes them.
inline constexpr Recipe fp8{
    .query = {.type = DType::e4m3, .scaling = Scaling::head},
    .key = {.type = DType::e4m3, .scaling = Scaling::head},
    .value = {.type = DType::e4m3, .scaling = Scaling::head},
    .weights = {.type = DType::e4m3, .top = 256},
};

// Ours: docs/numerics.md, "The chitu recipe".
inline constexpr Recipe chitu{
    .query = {.type = DType::i8, .scaling = Scaling::tokens, .groups = {1, 1}, .rotated = true},
    .key = {.type = DType::i8,
            .scaling = Scaling::tokens,
            .groups = {128, 4},
            .centre = Centre::sampled_mean,
            .rotated = true,
            .sorted = true},
    .value = {.type = DType::i8, .scaling = Scaling::tile},
    .weights = {.type = DType::u8, .top = 255, .by_tile = true, .output = Sum::rounded, .lse = Sum::rounded},
};

}  // namespace recipes

struct Method {
  std::string_view name;
  std::string_view summary;
  std::string_view origin;
  Recipe recipe;
};

inline constexpr std::array methods{
    Method{"exact", "no quantisation", "FlashAttention", recipes::exact},
    Method{"sage", "INT8 queries and keys per block, keys centred; FP16 weights and values", "SageAttention 1", recipes::sage},
    Method{"sage2", "INT8 queries and keys per thread group, keys centred; FP8 weights, FP8 values per channel", "SageAttention 2",
           recipes::sage2},
    Method{"int8-half", "INT8 queries and keys per token; FP16 weights and values", "INT-FlashAttention, half INT8", recipes::int8_half},
    Method{"int8", "INT8 queries and keys per token; INT8 weights, INT8 values per head", "INT-FlashAttention, full INT8", recipes::int8},
    Method{"fp8", "FP8 queries, keys, values per head; FP8 weights", "FlashAttention-3 FP8", recipes::fp8},
    Method{"chitu",
           "rotated INT8 queries per token and keys per group of like size, keys centred; 8-bit weights per tile, INT8 values per tile "
           "after a channel vector, residual plane where needed",
           "this library", recipes::chitu},
};

// The method called `name`; throws Error(bad_argument) that lists the names there are.
const Method& find_method(std::string_view name);

}  // namespace chitu
