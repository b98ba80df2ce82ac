// SPDX-License-Identifier: Apache-2.0
// Shared memory by its 32-bit addresses, as the instructions take them, and what the warps of a CTA tell each other through memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace chitu::cuda::ptx {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

// Volatile, so that a number is read where it is written and not kept in a register from there on.
__device__ __forceinline__ float load_float(std::uint32_t from) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from));
  return x;
}
__device__ __forceinline__ int load_int(std::uint32_t from) {
  int x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(from));
  return x;
}
__device__ __forceinline__ std::uint32_t load_u16(std::uint32_t from) {
  std::uint32_t x;
  asm volatile("ld.shared.u16 %0, [%1];" : "=r"(x) : "r"(from));
  return x;
}
__device__ __forceinline__ float2 load_float2(std::uint32_t from) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from));
  return x;
}
__device__ __forceinline__ int2 load_int2(std::uint32_t from) {
  int2 x;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(from));
  return x;
}
__device__ __forceinline__ int4 load_int4(std::uint32_t from) {
  int4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from));
  return x;
}
__device__ __forceinline__ void store_int4(std::uint32_t to, int x, int y, int z, int w) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
__device__ __forceinline__ void store_int2(std::uint32_t to, int x, int y) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ uint4 load_uint4(std::uint32_t from) {
  const int4 x = load_int4(from);
  return make_uint4(x.x, x.y, x.z, x.w);
}
__device__ __forceinline__ void store_uint4(std::uint32_t to, const uint4& x) { store_int4(to, x.x, x.y, x.z, x.w); }
__device__ __forceinline__ void store_float(std::uint32_t to, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}
__device__ __forceinline__ void store_long(std::uint32_t to, std::int64_t x) {
  asm volatile("st.shared.b64 [%0], %1;" ::"r"(to), "l"(x) : "memory");
}
__device__ __forceinline__ std::int64_t load_long(std::uint32_t from) {
  std::int64_t x;
  asm volatile("ld.shared.b64 %0, [%1];" : "=l"(x) : "r"(from));
  return x;
}
__device__ __forceinline__ void store_matrix(std::uint32_t to, std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// ---- warps that meet
// A barrier of some of a CTA's warps, `threads` threads in all.
__device__ __forceinline__ void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Counts the warp's threads among those of such a barrier, and goes on. Those who wait there see what it has written.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Adds 1 to a counter in global memory and returns what it was. A warp that gets n sees all that the n callers before it wrote until then.
__device__ __forceinline__ int count(int* counter) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

}  // namespace chitu::cuda::ptx
