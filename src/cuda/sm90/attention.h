// SPDX-License-Identifier: Apache-2.0
// The attention kernels that are compiled, each in one of the files attention_*.cu.
#pragma once

#include "chitu/method.h"
#include "cuda/sm90/params.h"

namespace chitu::cuda::sm90 {

// input: the tensors' type, f16 or bf16, where the recipe stores them as they came; else f16. dim: 64, 128 or 256.
template <const Recipe& recipe, DType input, int dim>
struct Loop;

template <class L>
void start(const Params& params, int processors, cudaStream_t stream);

}  // namespace chitu::cuda::sm90
