// SPDX-License-Identifier: Apache-2.0
// Warpgroup matrix products (sm_90a). In products d is fp32 where the factors are floating point (32 or 64 numbers a thread: 64 x 64,
// 64 x 128), int32 where they are integers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "chitu/tensor.h"

namespace chitu::cuda::ptx {

// ---- registers of a warpgroup
template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// ---- warpgroup matrix instructions
// Makes what this thread has written to shared memory visible to them. It belongs before the barrier after which they read.
__device__ __forceinline__ void written_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all products. d: the numbers that they write, perhaps arrays of arrays. It is an argument so that the compiler does not read it
// earlier.
template <class Number, int count>
__device__ __forceinline__ void written(Number (&d)[count]) {
#pragma unroll
  for (Number& x : d)
    if constexpr (std::is_array_v<Number>)
      written(x);
    else if constexpr (std::is_same_v<Number, float>)
      asm volatile("" : "+f"(x)::"memory");
    else
      asm volatile("" : "+r"(x)::"memory");
}
template <class D>
__device__ __forceinline__ void wgmma_wait(D& d) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  written(d);
}

// A matrix in shared memory with swizzled rows of `row_bytes` (64 or 128). Groups of 8 rows follow each other. If an instruction spans
// several panels of such rows, these are `panel_bytes` apart. Only the descriptor's low word depends on the address, so a step is one
// addition there.
template <int row_bytes, int panel_bytes = 16>
struct Matrix {
  static_assert(row_bytes == 64 || row_bytes == 128);
  static constexpr std::uint32_t high = row_bytes == 128 ? 0x40000040u : 0x80000020u;
  std::uint32_t low;
  __device__ static Matrix at(std::uint32_t address) { return {((address & 0x3ffff) >> 4) | (panel_bytes >> 4) << 16}; }
  __device__ Matrix plus(int bytes) const { return {low + (bytes >> 4)}; }
  __device__ std::uint64_t descriptor() const { return std::uint64_t{high} << 32 | low; }
};

// ---- products

// clang-format off
#define CHITU_NUMBERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CHITU_NUMBERS_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CHITU_REGISTERS_32(kind) \
  kind(d[0]), kind(d[1]), kind(d[2]), kind(d[3]), kind(d[4]), kind(d[5]), kind(d[6]), kind(d[7]), \
  kind(d[8]), kind(d[9]), kind(d[10]), kind(d[11]), kind(d[12]), kind(d[13]), kind(d[14]), kind(d[15]), \
  kind(d[16]), kind(d[17]), kind(d[18]), kind(d[19]), kind(d[20]), kind(d[21]), kind(d[22]), kind(d[23]), \
  kind(d[24]), kind(d[25]), kind(d[26]), kind(d[27]), kind(d[28]), kind(d[29]), kind(d[30]), kind(d[31])
#define CHITU_REGISTERS_64(kind) \
  CHITU_REGISTERS_32(kind), \
  kind(d[32]), kind(d[33]), kind(d[34]), kind(d[35]), kind(d[36]), kind(d[37]), kind(d[38]), kind(d[39]), \
  kind(d[40]), kind(d[41]), kind(d[42]), kind(d[43]), kind(d[44]), kind(d[45]), kind(d[46]), kind(d[47]), \
  kind(d[48]), kind(d[49]), kind(d[50]), kind(d[51]), kind(d[52]), kind(d[53]), kind(d[54]), kind(d[55]), \
  kind(d[56]), kind(d[57]), kind(d[58]), kind(d[59]), kind(d[60]), kind(d[61]), kind(d[62]), kind(d[63])
#define CHITU_SHARED_PRODUCT_64(shape, kind, flags) \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned." shape " {" CHITU_NUMBERS_64 "}, %64, %65, p" \
               flags "; }" : CHITU_REGISTERS_64(kind) : "l"(a), "l"(b), "n"(add))
#define CHITU_SHARED_PRODUCT_32(shape, kind, flags) \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned." shape " {" CHITU_NUMBERS_32 "}, %32, %33, p" \
               flags "; }" : CHITU_REGISTERS_32(kind) : "l"(a), "l"(b), "n"(add))
#define CHITU_PRODUCT_32(shape, kind, flags) \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned." shape " {" CHITU_NUMBERS_32 \
               "}, {%32, %33, %34, %35}, %36, p" flags "; }" \
               : CHITU_REGISTERS_32(kind) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(add))
#define CHITU_PRODUCT_64(shape, kind, flags) \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned." shape " {" CHITU_NUMBERS_64 \
               "}, {%64, %65, %66, %67}, %68, p" flags "; }" \
               : CHITU_REGISTERS_64(kind) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(add))
// clang-format on

// d (+)= a b^T: a [64, 32 bytes] and b [128, 32 bytes] of type `type` in shared memory.
template <DType type, bool add, class Number>
__device__ __forceinline__ void scores(Number (&d)[64], std::uint64_t a, std::uint64_t b) {
  if constexpr (type == DType::i8)
    CHITU_SHARED_PRODUCT_64("m64n128k32.s32.s8.s8", "+r", "");
  else if constexpr (type == DType::e4m3)
    CHITU_SHARED_PRODUCT_64("m64n128k32.f32.e4m3.e4m3", "+f", ", 1, 1");
  else if constexpr (type == DType::f16)
    CHITU_SHARED_PRODUCT_64("m64n128k16.f32.f16.f16", "+f", ", 1, 1, 0, 0");
  else
    CHITU_SHARED_PRODUCT_64("m64n128k16.f32.bf16.bf16", "+f", ", 1, 1, 0, 0");
}

// The same for b [64, 32 bytes].
template <DType type, bool add>
__device__ __forceinline__ void scores(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  if constexpr (type == DType::f16)
    CHITU_SHARED_PRODUCT_32("m64n64k16.f32.f16.f16", "+f", ", 1, 1, 0, 0");
  else
    CHITU_SHARED_PRODUCT_32("m64n64k16.f32.bf16.bf16", "+f", ", 1, 1, 0, 0");
}

// d (+)= a b^T: a [64, 32 bytes] in registers, b in shared memory: of 8 bits [64 or 128 channels, 32 keys], of 16 bits [16 keys, channels].
template <DType type, bool add, class Number>
__device__ __forceinline__ void weighted(Number (&d)[32], const std::uint32_t* a, std::uint64_t b) {
  if constexpr (type == DType::u8)
    CHITU_PRODUCT_32("m64n64k32.s32.u8.u8", "+r", "");
  else if constexpr (type == DType::e4m3)
    CHITU_PRODUCT_32("m64n64k32.f32.e4m3.e4m3", "+f", ", 1, 1");
  else if constexpr (type == DType::f16)
    CHITU_PRODUCT_32("m64n64k16.f32.f16.f16", "+f", ", 1, 1, 1");
  else
    CHITU_PRODUCT_32("m64n64k16.f32.bf16.bf16", "+f", ", 1, 1, 1");
}
template <DType type, bool add, class Number>
__device__ __forceinline__ void weighted(Number (&d)[64], const std::uint32_t* a, std::uint64_t b) {
  if constexpr (type == DType::u8)
    CHITU_PRODUCT_64("m64n128k32.s32.u8.u8", "+r", "");
  else if constexpr (type == DType::e4m3)
    CHITU_PRODUCT_64("m64n128k32.f32.e4m3.e4m3", "+f", ", 1, 1");
  else if constexpr (type == DType::f16)
    CHITU_PRODUCT_64("m64n128k16.f32.f16.f16", "+f", ", 1, 1, 1");
  else
    CHITU_PRODUCT_64("m64n128k16.f32.bf16.bf16", "+f", ", 1, 1, 1");
}

#undef CHITU_NUMBERS_32
#undef CHITU_NUMBERS_64
#undef CHITU_REGISTERS_32
#undef CHITU_REGISTERS_64
#undef CHITU_SHARED_PRODUCT_64
#undef CHITU_SHARED_PRODUCT_32
#undef CHITU_PRODUCT_32
#undef CHITU_PRODUCT_64

}  // namespace chitu::cuda::ptx
