// SPDX-License-Identifier: Apache-2.0
// Warpgroup products of 16-bit numbers, with as many columns as an attention kernel has keys or channels (sm_90a). A thread has half a
// number of each column in d: 64 rows, 128 threads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "chitu/tensor.h"
#include "cuda/ptx/wgmma.h"

namespace chitu::cuda::ptx {

// Waits until at most `pending` groups of products are under way. d: the numbers that the others write.
template <int pending, class D>
__device__ __forceinline__ void wgmma_wait_but(D& d) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
  written(d);
}

// clang-format off
#define CHITU_NUMBERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7" \
  ", %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define CHITU_NUMBERS_40 \
  CHITU_NUMBERS_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39"
#define CHITU_NUMBERS_48 \
  CHITU_NUMBERS_40 \
  ", %40, %41, %42, %43, %44, %45, %46, %47"
#define CHITU_NUMBERS_56 \
  CHITU_NUMBERS_48 \
  ", %48, %49, %50, %51, %52, %53, %54, %55"
#define CHITU_NUMBERS_64 \
  CHITU_NUMBERS_56 \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define CHITU_NUMBERS_88 \
  CHITU_NUMBERS_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71" \
  ", %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87"
#define CHITU_NUMBERS_96 \
  CHITU_NUMBERS_88 \
  ", %88, %89, %90, %91, %92, %93, %94, %95"
#define CHITU_NUMBERS_128 \
  CHITU_NUMBERS_96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103" \
  ", %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119" \
  ", %120, %121, %122, %123, %124, %125, %126, %127"
#define CHITU_EIGHT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define CHITU_REGISTERS_32 \
  CHITU_EIGHT(0), CHITU_EIGHT(8), CHITU_EIGHT(16), CHITU_EIGHT(24)
#define CHITU_REGISTERS_40 \
  CHITU_REGISTERS_32, \
  CHITU_EIGHT(32)
#define CHITU_REGISTERS_48 \
  CHITU_REGISTERS_40, \
  CHITU_EIGHT(40)
#define CHITU_REGISTERS_56 \
  CHITU_REGISTERS_48, \
  CHITU_EIGHT(48)
#define CHITU_REGISTERS_64 \
  CHITU_REGISTERS_56, \
  CHITU_EIGHT(56)
#define CHITU_REGISTERS_88 \
  CHITU_REGISTERS_64, \
  CHITU_EIGHT(64), CHITU_EIGHT(72), CHITU_EIGHT(80)
#define CHITU_REGISTERS_96 \
  CHITU_REGISTERS_88, \
  CHITU_EIGHT(88)
#define CHITU_REGISTERS_128 \
  CHITU_REGISTERS_96, \
  CHITU_EIGHT(96), CHITU_EIGHT(104), CHITU_EIGHT(112), CHITU_EIGHT(120)
// The operands' places behind d's `count` numbers: a, b (descriptors) or a's four registers and b, then whether d is added.
#define CHITU_SHARED(count, columns, type, a_at, b_at, add_at) \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #add_at ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" \
               CHITU_NUMBERS_##count "}, %" #a_at ", %" #b_at ", p, 1, 1, 0, 0; }" \
               : CHITU_REGISTERS_##count : "l"(a), "l"(b), "n"(add))
#define CHITU_IN_REGISTERS(count, columns, type, a0, a1, a2, a3, b_at, add_at) \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #add_at ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" \
               CHITU_NUMBERS_##count "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_at ", p, 1, 1, 1; }" \
               : CHITU_REGISTERS_##count : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(add))
// clang-format on
#define CHITU_SHARED_OF(type)                \
  if constexpr (count == 32)                 \
    CHITU_SHARED(32, 64, type, 32, 33, 34);  \
  else if constexpr (count == 40)            \
    CHITU_SHARED(40, 80, type, 40, 41, 42);  \
  else if constexpr (count == 48)            \
    CHITU_SHARED(48, 96, type, 48, 49, 50);  \
  else if constexpr (count == 56)            \
    CHITU_SHARED(56, 112, type, 56, 57, 58); \
  else if constexpr (count == 64)            \
    CHITU_SHARED(64, 128, type, 64, 65, 66); \
  else if constexpr (count == 88)            \
    CHITU_SHARED(88, 176, type, 88, 89, 90); \
  else if constexpr (count == 96)            \
    CHITU_SHARED(96, 192, type, 96, 97, 98);
#define CHITU_IN_REGISTERS_OF(type)                              \
  if constexpr (count == 32)                                     \
    CHITU_IN_REGISTERS(32, 64, type, 32, 33, 34, 35, 36, 37);    \
  else if constexpr (count == 40)                                \
    CHITU_IN_REGISTERS(40, 80, type, 40, 41, 42, 43, 44, 45);    \
  else if constexpr (count == 48)                                \
    CHITU_IN_REGISTERS(48, 96, type, 48, 49, 50, 51, 52, 53);    \
  else if constexpr (count == 64)                                \
    CHITU_IN_REGISTERS(64, 128, type, 64, 65, 66, 67, 68, 69);   \
  else if constexpr (count == 96)                                \
    CHITU_IN_REGISTERS(96, 192, type, 96, 97, 98, 99, 100, 101); \
  else if constexpr (count == 128)                               \
    CHITU_IN_REGISTERS(128, 256, type, 128, 129, 130, 131, 132, 133);

// d (+)= a b^T: a [64, 16] and b [2 count, 16], rows of 16-bit numbers of type `type` in shared memory.
template <DType type, bool add, int count>
__device__ __forceinline__ void scores16(float (&d)[count], std::uint64_t a, std::uint64_t b) {
  static_assert(count == 32 || count == 40 || count == 48 || count == 56 || count == 64 || count == 88 || count == 96);
  if constexpr (type == DType::f16) {
    CHITU_SHARED_OF("f16")
  } else {
    CHITU_SHARED_OF("bf16")
  }
}

// d += a b: a [64, 16] in registers, b [16, 2 count] in shared memory.
template <DType type, int count>
__device__ __forceinline__ void weighted16(float (&d)[count], const std::uint32_t* a, std::uint64_t b) {
  constexpr bool add = true;
  static_assert(count == 32 || count == 40 || count == 48 || count == 64 || count == 96 || count == 128);
  if constexpr (type == DType::f16) {
    CHITU_IN_REGISTERS_OF("f16")
  } else {
    CHITU_IN_REGISTERS_OF("bf16")
  }
}

#undef CHITU_EIGHT
#undef CHITU_NUMBERS_32
#undef CHITU_REGISTERS_32
#undef CHITU_NUMBERS_40
#undef CHITU_REGISTERS_40
#undef CHITU_NUMBERS_48
#undef CHITU_REGISTERS_48
#undef CHITU_NUMBERS_56
#undef CHITU_REGISTERS_56
#undef CHITU_NUMBERS_64
#undef CHITU_REGISTERS_64
#undef CHITU_NUMBERS_88
#undef CHITU_REGISTERS_88
#undef CHITU_NUMBERS_96
#undef CHITU_REGISTERS_96
#undef CHITU_NUMBERS_128
#undef CHITU_REGISTERS_128
#undef CHITU_SHARED
#undef CHITU_IN_REGISTERS
#undef CHITU_SHARED_OF
#undef CHITU_IN_REGISTERS_OF

}  // namespace chitu::cuda::ptx
