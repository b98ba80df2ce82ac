// SPDX-License-Identifier: Apache-2.0
// 16-bit numbers as the quantisers read them: T is __half or __nv_bfloat16; two make a word, eight a piece of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace chitu::cuda {

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

// With the rest of the 128-byte line brought to L2. Volatile, so that such loads stay in the order in which they are written.
template <class T>
__device__ __forceinline__ uint4 load_input(const T* p) {
  uint4 r;
  asm volatile("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}

template <class T>
constexpr std::uint32_t infinity_bits = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u;

// With 0 for numbers that are not finite.
template <class T>
__device__ __forceinline__ std::uint32_t finite_part(std::uint32_t w) {
  const std::uint32_t both = infinity_bits<T> | infinity_bits<T> << 16;
  return w & ~__vcmpeq2(w & both, both);
}
template <class T>
__device__ __forceinline__ uint4 finite_part(const uint4& x) {
  return make_uint4(finite_part<T>(x.x), finite_part<T>(x.y), finite_part<T>(x.z), finite_part<T>(x.w));
}

}  // namespace chitu::cuda
