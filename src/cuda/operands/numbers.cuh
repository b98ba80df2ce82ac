// SPDX-License-Identifier: Apache-2.0
// Numbers as the quantisers read them: 16 bits each, T is __half or __nv_bfloat16. Two make a word, eight a 16-byte chunk of a row. Also
// what is not finite, and λ.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/limits.h"

namespace chitu::cuda {

constexpr float infinity = std::numeric_limits<float>::infinity();

// ---- reading

// The two 16-bit numbers of a word.
template <class T>
__device__ __forceinline__ float low(std::uint32_t w) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(w)));
  else
    return __uint_as_float(w << 16);
}
template <class T>
__device__ __forceinline__ float high(std::uint32_t w) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(w >> 16)));
  else
    return __uint_as_float(w & 0xffff0000u);
}

__device__ __forceinline__ std::uint32_t word(const uint4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

template <class T>
__device__ __forceinline__ void unpack(const uint4& x, float (&y)[8]) {
#pragma unroll
  for (int c = 0; c < 8; ++c) y[c] = low<T>(word(x, c / 2) >> c % 2 * 16 & 0xffff);
}

// Loads 16 bytes and brings the rest of the 128-byte line to L2, too. It is volatile, so that such loads stay in the order in which they
// are written.
template <class T>
__device__ __forceinline__ uint4 load_input(const T* p) {
  uint4 r;
  asm volatile("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}

// ---- sizes
//
// A size is a number without its sign. Sizes are ordered as their bits are, so two at a time are compared as integers.

__device__ __forceinline__ std::uint32_t sizes_of(std::uint32_t w) { return w & 0x7fff7fffu; }
__device__ __forceinline__ std::uint32_t larger_sizes(std::uint32_t sizes, std::uint32_t w) { return __vmaxu2(sizes, sizes_of(w)); }
// Two sizes, the larger of which is the largest of eight: of those in `sizes`, or of the sizes of eight numbers.
__device__ __forceinline__ std::uint32_t largest_sizes(const std::uint32_t (&sizes)[4]) {
  return larger_sizes(larger_sizes(larger_sizes(sizes[0], sizes[1]), sizes[2]), sizes[3]);
}
__device__ __forceinline__ std::uint32_t largest_sizes(const uint4& x) {
  return larger_sizes(larger_sizes(larger_sizes(sizes_of(x.x), x.y), x.z), x.w);
}

// ---- what is not finite

template <class T>
constexpr std::uint32_t infinity_bits = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u;

// Is one of two sizes infinity or NaN?
template <class T>
__device__ __forceinline__ bool has_nonfinite(std::uint32_t sizes) {
  return (sizes & 0xffff) >= infinity_bits<T> || sizes >> 16 >= infinity_bits<T>;
}

// Is one of the eight numbers of four words? This form uses max() instead of two comparisons, because the quantizer of chitu's values,
// which calls it, has no register to spare: the other form spilled.
template <class T>
__device__ __forceinline__ bool has_nonfinite(const std::uint32_t (&w)[4]) {
  std::uint32_t sizes = 0;
#pragma unroll
  for (const std::uint32_t x : w) sizes = larger_sizes(sizes, x);
  return max(sizes & 0xffffu, sizes >> 16) >= infinity_bits<T>;
}

// Replaces numbers that are not finite by 0.
template <class T>
__device__ __forceinline__ std::uint32_t finite_part(std::uint32_t w) {
  const std::uint32_t both = infinity_bits<T> | infinity_bits<T> << 16;
  return w & ~__vcmpeq2(w & both, both);
}
template <class T>
__device__ __forceinline__ uint4 finite_part(const uint4& x) {
  return make_uint4(finite_part<T>(x.x), finite_part<T>(x.y), finite_part<T>(x.z), finite_part<T>(x.w));
}

// ---- λ (Scaling::tile)

// λ of a channel by itself, from the largest and the mean size of its sample.
__device__ __forceinline__ float own_lambda(float largest, float mean) { return fminf(largest, channel_ceiling * mean); }
// λ of a channel among those of its head, whose mean is `mean`.
__device__ __forceinline__ float lambda_in_head(float own, float mean) {
  return mean > smallest_maximum ? fmaxf(own, mean * channel_floor) : 1.f;
}

}  // namespace chitu::cuda
