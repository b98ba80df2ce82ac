// SPDX-License-Identifier: Apache-2.0
// What merge.cpp asks of the kernel in merge.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "chitu/attention.h"
#include "cuda/operands/layout.h"

namespace chitu::cuda {

constexpr int merged_at_once = 32;  // parts of a launch
static_assert(merged_at_once == max_captured_parts);

// A part or the result. Strides are in elements.
struct MergeOperand {
  View out, lse;
};

// The kernel's parameters: all that it needs to know of the parts, so that a captured graph needs no other memory.
struct MergeParams {
  MergeOperand result, parts[merged_at_once];
  DType result_type, types[merged_at_once];
  std::uint32_t vectors;  // a bit for each part: its rows can be read 16 bytes at a time
  bool result_vectors;    // and the result's written
  int count;              // of the parts
  int heads, tokens, dim;
  int blocks_of_head;  // CTAs
};
static_assert(sizeof(MergeParams) <= 4096, "the arguments of a kernel");

// One launch. blocks: CTAs of all heads.
void launch_merge(const MergeParams& params, unsigned blocks, cudaStream_t stream);

// Rows that a CTA takes.
int merged_rows(int dim);

}  // namespace chitu::cuda
