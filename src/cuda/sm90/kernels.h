// SPDX-License-Identifier: Apache-2.0
// Hopper's attention kernels, each compiled in a file of instances/.
#pragma once

#include "chitu/method.h"
#include "cuda/params.h"

namespace chitu::cuda::sm90 {

// A CTA has 64 queries for each of its warpgroups, as many as their registers allow.
constexpr Form form_of(const Recipe& recipe, int dim) {
  Form form = cuda::form_of(recipe, dim);
  const bool most = form.dim == 64 && form.value_bytes == 1 && (form.query_scale_rows == 2 || form.sorted);
  form.block_queries = form.dim == 256 ? 128 : most ? 256 : 192;
  return form;
}

// input: f16 or bf16. It is the tensors' type if the recipe stores numbers as they came or the kernel quantises the queries; else it is
// f16. dim: 64, 128 or 256. quantizes_queries: queries come as the caller's tensor has them (Params::tuned_quantizer). Only such a kernel
// depends on whether the tensors' dim is `dim`, or less and so padded.
template <const Recipe& recipe, DType input, int dim, bool quantizes_queries = false, bool padded = false>
struct Config;

template <class C>
void start(const Params& params, const Tensor& query, int processors, cudaStream_t stream);

}  // namespace chitu::cuda::sm90
