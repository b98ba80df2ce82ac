// SPDX-License-Identifier: Apache-2.0
// What a GPU architecture gives to the calls in call.h: a table of its attention kernels. Refusals and launches both read it.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "chitu/attention.h"
#include "cuda/params.h"

namespace chitu::cuda {

constexpr int many_queries = 2048;  // then a faster main loop pays for a pass that stores keys and values anew

// An attention kernel that is compiled. A call without a kernel in the table is refused: no kernel stands in for another.
struct AttentionKernel {
  const Recipe* recipe;
  DType input;             // of query, key and value: f16 or bf16
  int dim;                 // channels, padded: 64, 128 or 256; a direct kernel takes all dims up to it
  bool quantizes_queries;  // it reads them as the caller's tensor has them (Params::tuned_quantizer)
  Form form;               // how it wants the operands
  void (*start)(const Params& params, const Operands& operands, int processors, cudaStream_t stream);
  bool pads = false;    // with quantizes_queries: it takes dims below `dim`, else `dim` itself. Other kernels take both
  bool direct = false;  // it reads all three operands as the caller's tensors have them, deals with NaN and infinity, and stores nothing

  // Of direct kernels: which calls they are fast for (docs/kernels/sm90-log.md, "The direct kernel").
  int above = 0;                                                      // dims above this, up to `dim`
  std::int64_t most_keys = std::numeric_limits<std::int64_t>::max();  // of a sequence with many_queries or more
};

struct Architecture {
  const char* name;  // of its rows in the kernel table
  int major, minor;  // compute capability
  std::span<const AttentionKernel> kernels;
};

namespace sm90 {
extern const Architecture architecture;  // Hopper
}

}  // namespace chitu::cuda
