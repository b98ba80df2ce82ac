// SPDX-License-Identifier: Apache-2.0
// The attention kernels that are compiled, each in one of the files attention_*.cu.
#pragma once

#include "chitu/method.h"
#include "cuda/params.h"

namespace chitu::cuda::sm90 {

// input: the tensors' type, f16 or bf16, where the recipe stores them as they came or queries come so; else f16. dim: 64, 128 or 256.
// quantizes_queries: they come as the caller's tensor has them (Params::tuned_quantizer).
template <const Recipe& recipe, DType input, int dim, bool quantizes_queries = false>
struct Config;

template <class C>
void start(const Params& params, int processors, cudaStream_t stream);

}  // namespace chitu::cuda::sm90
