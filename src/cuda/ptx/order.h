// SPDX-License-Identifier: Apache-2.0
// Hides values and keeps orders from the compiler. It optimises for few instructions; these functions are for few registers, or a better
// order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace chitu::cuda::ptx {

// Reads the thread's index again. Then nothing that depends on it has to stay in registers across the main loop.
__device__ __forceinline__ int thread_index_again() {
  int t;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
  return t;
}

// Keeps instructions before this call before those after it: the compiler moves no arithmetic past a conditional exit. The exit is never
// taken, because `zero` is 0, but the compiler must not know that. All these exits have the same condition, so the machine code tests it
// once.
__device__ __forceinline__ void keep_order(float zero) {
  asm volatile("{ .reg .pred p; setp.ne.f32 p, %0, 0f00000000; @p exit; }" ::"f"(zero) : "memory");
}
// x + y, computed here and not where the sum is used.
__device__ __forceinline__ std::uint32_t add_here(std::uint32_t x, std::uint32_t y) {
  std::uint32_t r;
  asm volatile("add.u32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y));
  return r;
}

// Hides the value's origin from the compiler. So it computes again what depends on the value, and keeps nothing in registers for it
// meanwhile.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace chitu::cuda::ptx
