// SPDX-License-Identifier: Apache-2.0
// Arithmetic that C++ has no words for: approximations, rounding that saturates, conversions that pack.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/numbers.h"

namespace chitu::cuda::ptx {

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// a and b as two bytes, rounded to even and saturated, followed by the first two bytes of `next`. It is one instruction. With .ftz the
// compiler would not fuse conversion and packing.
__device__ __forceinline__ std::uint32_t pack_u8(float a, float b, std::uint32_t next) {
  std::uint32_t r;
  asm("{ .reg .s32 x, y;\n"
      "cvt.rni.s32.f32 x, %1; cvt.rni.s32.f32 y, %2;\n"
      "cvt.pack.sat.u8.s32.b32 %0, y, x, %3; }"
      : "=r"(r)
      : "f"(a), "f"(b), "r"(next));
  return r;
}
// Four signed bytes, in two instructions.
__device__ __forceinline__ std::uint32_t pack_i8(float a, float b, float c, float d) {
  std::uint32_t r;
  asm("{ .reg .s32 x, y, z, w;\n"
      "cvt.rni.s32.f32 x, %1; cvt.rni.s32.f32 y, %2; cvt.rni.s32.f32 z, %3; cvt.rni.s32.f32 w, %4;\n"
      "cvt.pack.sat.s8.s32.b32 z, w, z, 0; cvt.pack.sat.s8.s32.b32 %0, y, x, z; }"
      : "=r"(r)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return r;
}

// The same for e4m3, in the order of pack_u8() and of pack_i8().
__device__ __forceinline__ std::uint32_t pack_e4m3(float a, float b, std::uint32_t next) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t r;
  asm("{ .reg .b16 x, y, z;\n"
      "cvt.rn.satfinite.e4m3x2.f32 x, %2, %1; mov.b32 {y, z}, %3; mov.b32 %0, {x, y}; }"
      : "=r"(r)
      : "f"(a), "f"(b), "r"(next));
  return r;
#else  // no instruction before sm_89
  return f32_to_e4m3(a) | static_cast<std::uint32_t>(f32_to_e4m3(b)) << 8 | next << 16;
#endif
}
__device__ __forceinline__ std::uint32_t pack_e4m3(float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t r;
  asm("{ .reg .b16 x, y;\n"
      "cvt.rn.satfinite.e4m3x2.f32 x, %2, %1; cvt.rn.satfinite.e4m3x2.f32 y, %4, %3; mov.b32 %0, {x, y}; }"
      : "=r"(r)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return r;
#else
  return pack_e4m3(a, b, pack_e4m3(c, d, 0));
#endif
}
__device__ __forceinline__ std::uint32_t pack_f16(float a, float b) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
  return r;
}
__device__ __forceinline__ std::uint32_t pack_bf16(float a, float b) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
  return r;
}
// The same, but no number becomes an infinity: the type's largest stands for whatever is beyond it. NaN stays NaN.
__device__ __forceinline__ std::uint32_t pack_f16_finite(float a, float b) {
  std::uint32_t r;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
  return r;
}
__device__ __forceinline__ std::uint32_t pack_bf16_finite(float a, float b) {
  std::uint32_t r;
  asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
  return r;
}

}  // namespace chitu::cuda::ptx
