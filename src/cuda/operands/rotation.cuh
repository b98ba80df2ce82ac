// SPDX-License-Identifier: Apache-2.0
// The rotation of queries and keys (common/rotation.h) for dims up to 128: what the quantizers of keys and of queries share. The tensor
// cores do its additions in both: there +-1 times a 16-bit value is exact, and sums are fp32.
#pragma once

#include <type_traits>

#include "common/limits.h"
#include "common/rotation.h"
#include "cuda/operands/layout.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/order.h"

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

// The block of the rotation of a dim that is padded to `dim`, 64 or 128. Without `padded` it is the whole dim. With `padded` the tensors'
// dim is less, and the largest power of two that divides it is 8, 16 or 32.
template <int dim, bool padded>
struct RotationBlock {
  int tensor_dim;  // a parameter of the kernel, so it takes no register

  // Whether the block has channels that differ in this bit of their number, 3 to 6.
  __device__ __forceinline__ bool has(int bit) const { return padded ? (tensor_dim & ((2 << bit) - 1)) == 0 : 1 << bit < dim; }

  // From the largest sum in a scale group: the group's scale, and what sums are multiplied by to become integers.
  __device__ __forceinline__ float scale_of(float top) const {
    return fmaxf(top * by_block([](int block) { return unit(block) / 127; }), smallest_maximum / 127);
  }
  __device__ __forceinline__ float inverse_of(float top) const {
    return divide(127, fmaxf(top, by_block([](int block) { return smallest_maximum / unit(block); })));
  }
  // A size as it is after the rotation, for a sum that has its true size.
  __device__ __forceinline__ float scaled(float sum) const {
    return sum * by_block([](int block) { return rotation_scale(block); });
  }

 private:
  static constexpr float unit(int block) { return rotation_scale(block) / rotation_headroom; }  // what a sum is to be multiplied by
  // A constant for each block.
  template <class Function>
  __device__ __forceinline__ float by_block(Function) const {
    if constexpr (!padded) {
      constexpr float whole = Function{}(dim);
      return whole;
    } else {
      constexpr float of_8 = Function{}(8), of_16 = Function{}(16), of_32 = Function{}(32);
      return !has(3) ? of_8 : !has(4) ? of_16 : of_32;
    }
  }
};

// What a thread finds about its part of a row is true for the row if it is true for all four lanes that share the row.
__device__ __forceinline__ bool all_of_quad(bool x) { return (__ballot_sync(~0u, x) >> (ptx::thread_index_again() & 28) & 15) == 15; }

}  // namespace chitu::cuda
