// SPDX-License-Identifier: Apache-2.0
// The rotation of queries and keys (common/rotation.h) for dim 64 and 128: what the quantizers of keys and of queries share. The tensor
// cores do its additions in both: there +-1 times a 16-bit value is exact, and sums are fp32.
#pragma once

#include <type_traits>

#include "common/limits.h"
#include "common/rotation.h"
#include "cuda/operands/layout.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/ptx/convert.h"

namespace chitu::cuda {

// a / b rounded to nearest, for 1e-34 <= b < 2^126. The operator `/` has a branch and a call for subnormal numbers, which cost registers.
__device__ __forceinline__ float divide(float a, float b) {
  float r = ptx::reciprocal(b);
  r = fmaf(r, fmaf(-b, r, 1), r);
  const float q = a * r;
  return fmaf(r, fmaf(-b, q, a), q);
}

// The bits of rotation_headroom, which the matrices have in place of 1. So even sums of the largest inputs are below 2^126, as divide()
// needs it.
template <class T>
constexpr std::uint32_t rotation_one = std::is_same_v<T, __half> ? 0x1400u : 0x3a80u;
static_assert(rotation_headroom == 0x1p-10f);
template <int dim>
constexpr float rotation_unit = rotation_scale(dim) / rotation_headroom;  // what a sum is to be multiplied by

// From the largest sum in a scale group: the group's scale, and what sums are multiplied by to become integers.
template <int dim>
__device__ __forceinline__ float scale_of(float top) {
  return fmaxf(top * (rotation_unit<dim> / 127), smallest_maximum / 127);
}
template <int dim>
__device__ __forceinline__ float inverse_of(float top) {
  return divide(127, fmaxf(top, smallest_maximum / rotation_unit<dim>));
}

}  // namespace chitu::cuda
