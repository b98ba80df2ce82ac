// SPDX-License-Identifier: Apache-2.0
// What a GPU architecture gives to the calls in call.h: a table of its attention kernels. Refusals and launches both read it.
#pragma once

#include <span>

#include "chitu/attention.h"
#include "cuda/params.h"

namespace chitu::cuda {

// An attention kernel that is compiled. A call without a kernel in the table is refused: no kernel stands in for another.
struct AttentionKernel {
  const Recipe* recipe;
  DType input;             // of query, key and value: f16 or bf16
  int dim;                 // channels, padded: 64, 128 or 256
  bool quantizes_queries;  // it reads them as the caller's tensor has them (Params::tuned_quantizer)
  Form form;               // how it wants the operands
  void (*start)(const Params& params, const Tensor& query, int processors, cudaStream_t stream);
  bool pads = false;  // with quantizes_queries: it takes dims below `dim`, else `dim` itself. Other kernels take both
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
