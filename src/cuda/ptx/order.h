// SPDX-License-Identifier: Apache-2.0
// What the compiler must not know or move: it optimises for fewer instructions, these for fewer registers or a better order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace chitu::cuda::ptx {

// The thread's index read again, so that what depends on it is not kept in registers across the main loop.
__device__ __forceinline__ int thread_index_again() {
  int t;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
  return t;
}

// What is written before this is executed before what is written after it: the compiler moves no arithmetic past a conditional exit.
// zero: 0, which the compiler must not know. It finds that one test is enough, and the machine code has only that.
__device__ __forceinline__ void keep_order(float zero) {
  asm volatile("{ .reg .pred p; setp.ne.f32 p, %0, 0f00000000; @p exit; }" ::"f"(zero) : "memory");
}
// x + y, here and not where the sum is used.
__device__ __forceinline__ std::uint32_t add_here(std::uint32_t x, std::uint32_t y) {
  std::uint32_t r;
  asm volatile("add.u32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y));
  return r;
}

// Hides where a value came from: the compiler computes again what depends on it, and keeps nothing in registers for it until then.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace chitu::cuda::ptx
