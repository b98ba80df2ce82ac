// SPDX-License-Identifier: Apache-2.0
// The direct kernels, each compiled in a file of ../instances/.
#pragma once

#include "chitu/method.h"
#include "cuda/params.h"

namespace chitu::cuda::sm90::direct {

// What a CTA does at once: 64 queries for each warpgroup, `keys` keys a tile. overlaps: a warpgroup starts the scores of the next tile
// before it multiplies the values of this one, and has the registers for it.
struct Shape {
  int warpgroups, keys;
  bool overlaps;
};

// The shape of the kernel for up to `dim` channels: 64, 80, 96, 128, 192 or 256. docs/kernels/sm90-log.md has the others that were tried.
constexpr Shape shape_of(int dim) {
  switch (dim) {
    case 64:
      return {3, 128, false};
    case 80:
    case 96:
    case 128:
      return {2, 128, true};
    case 192:
      return {2, 112, true};
    default:
      return {2, 80, true};
  }
}

constexpr Form form_of(int dim) {
  Form form = cuda::form_of(recipes::exact, dim);
  form.dim = dim;
  form.block_queries = 64 * shape_of(dim).warpgroups;
  return form;
}

// input: f16 or bf16. dim: of the main loop; the tensors may have fewer channels.
template <DType input, int dim, Shape shape = shape_of(dim)>
struct Config;

template <class C>
void start(const Params& params, const Operands& operands, int processors, cudaStream_t stream);

}  // namespace chitu::cuda::sm90::direct
