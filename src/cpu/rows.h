// SPDX-License-Identifier: Apache-2.0
// What the CPU's kernels share: their entry points, and where an operand keeps the numbers of one head.
#pragma once

#include "common/ranks.h"
#include "cpu/backend.h"
#include "dispatch.h"

namespace chitu::cpu {

std::span<const Kernel> kernels();  // best first

// The scales and vectors of one head of one sequence of an operand.
struct Locator {
  Locator(const Indexed& x, std::int64_t sequence, std::int64_t head);

  // With Scaling::tokens. token: within its sequence.
  std::int64_t group(std::int64_t token) const {
    return ranks ? groups.count(token / tile_tokens * tile_tokens) + sorted_group(groups, ranks[token]) : groups.of(token);
  }

  const std::int8_t* residual(std::int64_t tile) const {
    return residual_of && residual_of[tile] >= 0 ? residuals + std::int64_t{residual_of[tile]} * residual_size : nullptr;
  }

  const float* scales = nullptr;  // of its first group, its first tile, its first channel, or its only one
  Groups groups{};
  const std::uint8_t* ranks = nullptr;        // of its first token
  const float* channels = nullptr;            // [dim]
  const std::int32_t* residual_of = nullptr;  // of its first tile
  const std::int8_t* residuals = nullptr;
  std::int64_t residual_size = 0;
};

// The tokens of one head of one sequence of an operand that are not finite, in their order.
std::span<const NonFinite> nonfinite_of(const Quantized& x, std::int64_t sequence, std::int64_t head);

void run_reference(const Problem& problem);

// One struct of entry points an instruction set: attention-inl.h compiled for it.
struct AttentionRuns {
  void (*f32_f32)(const Problem&);  // null on tiles, which have no such product
  void (*int8_f32)(const Problem&);
  void (*int8_int8)(const Problem&);
  void (*bf16_bf16)(const Problem&);  // null without a bf16 product
};
extern const AttentionRuns amx_runs, avx512_runs, avxvnni_runs, avx2_runs, portable_runs;

void quantize_avx512(TokenChunk& chunk);
void quantize_avx2(TokenChunk& chunk);
void quantize_portable(TokenChunk& chunk);
void to_f32_avx512(const void* from, DType type, float* to, std::int64_t count);
void to_f32_avx2(const void* from, DType type, float* to, std::int64_t count);
void to_f32_portable(const void* from, DType type, float* to, std::int64_t count);

}  // namespace chitu::cpu
