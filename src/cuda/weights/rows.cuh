// SPDX-License-Identifier: Apache-2.0
// What a thread keeps of its two rows from tile to tile: outputs, references and sums of weights. softmax.cuh says which rows and columns
// these are, and what C is.
#pragma once

#include <cstdint>

#include "cuda/params.h"
#include "cuda/ptx/convert.h"
#include "cuda/weights/softmax.cuh"

namespace chitu::cuda {

// A tile's integer product is a sum of unsigned numbers below 2^23, because values are stored with value_offset. The bits of such a sum,
// read as a float, are the same number times 2^-149, exactly: it needs no conversion. Outputs are kept in a unit in which they stay in
// fp32's range.
constexpr float integer_unit = 0x1p85f, integer_unit_back = 0x1p64f;  // 2^-149 integer_unit integer_unit_back = 1
// value_offset adds 128 times the row's sum of weights to the output. This is subtracted every offset_tiles tiles, before it costs
// precision.
constexpr int offset_tiles = 32;

// Four lanes share two rows, and each would add up a quarter of both rows' rounded weights. To save a register, even lanes add up row r
// only, odd lanes row r + 8, each for itself and the lane beside it. own() chooses between two values, one for each row: it gives that of
// the lane's row.
template <class T>
__device__ __forceinline__ T own(T row, T row_8) {
  return threadIdx.x & 1 ? row_8 : row;
}
// Both rows' sums, from the shares that lanes have of their own() rows.
__device__ __forceinline__ void sums_of_shares(float share, float (&sum)[2]) {
  const float own_sum = share + __shfl_xor_sync(~0u, share, 2), other_sum = __shfl_xor_sync(~0u, own_sum, 1);
  sum[0] = own(own_sum, other_sum);
  sum[1] = own(other_sum, own_sum);
}

// The sum of a tile's integer weights in the lane's own row, over its columns and those of the lane beside it.
__device__ __forceinline__ std::uint32_t own_rounded_sum(const std::uint32_t (&weights)[16]) {
  const std::uint32_t sums[2] = {rounded_sum(weights, 0), rounded_sum(weights, 1)};
  return own(sums[0], sums[1]) + __shfl_xor_sync(~0u, own(sums[1], sums[0]), 1);
}

template <class C>
struct Rows {
  float output[C::halves][C::width / 2];
  float reference[2] = {lowest, lowest};  // weights are relative to 2^reference
  float unrounded[2] = {0, 0};            // sums of weights before rounding, over the thread's columns
  float rounded = 0;                      // the lane's share of the sum of rounded weights in its own() row
  float offset = 0;                       // the lane's share of what value_offset has added to the output, in its own() row

  __device__ __forceinline__ void clear_output() {
#pragma unroll
    for (auto& half : output)
#pragma unroll
      for (float& x : half) x = 0;
  }

  // Raises references to the maxima where these are larger. factor: brings a number from the old reference to the new one.
  __device__ __forceinline__ void raise(const float (&maximum)[2], float (&factor)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float raised = fmaxf(reference[r], maximum[r]);
      factor[r] = ptx::exp2_approx(reference[r] - raised);
      reference[r] = raised;
    }
  }

  // Raises references, and rescales outputs and sums. The warp skips this while no maximum is more than C::lag above its reference, as in
  // most tiles.
  __device__ __forceinline__ void raise_and_rescale(const float (&maximum)[2]) {
    if (!__any_sync(~0u, (maximum[0] > reference[0] + C::lag) | (maximum[1] > reference[1] + C::lag))) return;
    float factor[2];
    raise(maximum, factor);
    rescale(factor);
  }

  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      unrounded[r] *= factor[r];
    }
    if constexpr (C::integer_values) {
      rounded *= own(factor[0], factor[1]);
      offset *= own(factor[0], factor[1]);
    }
#pragma unroll
    for (auto& half : output)
#pragma unroll
      for (int i = 0; i < C::width / 2; ++i) half[i] *= factor[i >> 1 & 1];
  }

  // Subtracts what value_offset has added to the output.
  __device__ __forceinline__ void remove_offset() {
    float added[2];
    sums_of_shares(offset, added);
    const float less[2] = {-added[0], -added[1]};
#pragma unroll
    for (auto& half : output)
#pragma unroll
      for (int i = 0; i < C::width / 2; ++i) half[i] += less[i >> 1 & 1];
    offset = 0;
  }

  // Both rows' sums of weights, the same in all four lanes. An argument is untouched if the recipe has no such sum.
  __device__ __forceinline__ void sums(float (&of_rounded)[2], float (&of_unrounded)[2]) const {
    if constexpr (C::rounded_sums) sums_of_shares(rounded, of_rounded);
    if constexpr (C::unrounded_sums) {
      of_unrounded[0] = quad_sum(unrounded[0]);
      of_unrounded[1] = quad_sum(unrounded[1]);
    }
  }
};

}  // namespace chitu::cuda
