// SPDX-License-Identifier: Apache-2.0
// Instructions that C++ has no words for: thin functions named after what the instruction does, no policy. Addresses of shared memory
// are 32-bit, as the instructions take them.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace chitu::cuda::ptx {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

// ---- mbarriers: `full` ones count bytes that copies bring, `empty` ones the threads that are done.
__device__ __forceinline__ void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ bool barrier_try(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done;
}
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{ .reg .pred p;\n"
      "wait: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\n"
      "bra wait;\n"
      "done: }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Adds 1 to a counter in global memory; what it was. Whoever finds n sees what the n before wrote until then.
__device__ __forceinline__ int count(int* counter) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// Of some of a CTA's warps: `threads` of them.
__device__ __forceinline__ void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- memory
// Copies bytes (a multiple of 16) to shared memory; the barrier counts them when they have come.
__device__ __forceinline__ void bulk_copy(std::uint32_t to, const void* from, std::uint32_t bytes, std::uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(barrier)
               : "memory");
}
// A box of a tensor with four dimensions, at these coordinates.
__device__ __forceinline__ void tensor_copy(std::uint32_t to, const CUtensorMap* map, int x, int y, int z, int w, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
      : "memory");
}
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

// ---- kernels that overlap: the next one on the stream may start; wait for the results of the one before
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// ---- registers
template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
// The thread's index read again, so that what depends on it is not kept in registers across the main loop.
__device__ __forceinline__ int thread_again() {
  int t;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
  return t;
}

// ---- the order of instructions
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

// ---- arithmetic
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
// Rounded to even and saturated: a and b as two bytes, then the first two of `next`. One instruction; not with .ftz, which would keep the
// compiler from fusing conversion and packing.
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

// Of e4m3, the first as of u8.
__device__ __forceinline__ std::uint32_t pack_e4m3(float a, float b, std::uint32_t next) {
  std::uint32_t r;
  asm("{ .reg .b16 x, y, z;\n"
      "cvt.rn.satfinite.e4m3x2.f32 x, %2, %1; mov.b32 {y, z}, %3; mov.b32 %0, {x, y}; }"
      : "=r"(r)
      : "f"(a), "f"(b), "r"(next));
  return r;
}
__device__ __forceinline__ std::uint32_t pack_e4m3(float a, float b, float c, float d) {
  std::uint32_t r;
  asm("{ .reg .b16 x, y;\n"
      "cvt.rn.satfinite.e4m3x2.f32 x, %2, %1; cvt.rn.satfinite.e4m3x2.f32 y, %4, %3; mov.b32 %0, {x, y}; }"
      : "=r"(r)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return r;
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

// ---- warpgroup matrix instructions; the products are in wgmma.cuh
// Before a barrier, after which they read what this thread has written to shared memory.
__device__ __forceinline__ void written_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all products. d: what they write, so that the compiler reads none of it before; arrays of arrays too.
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

// A matrix in shared memory whose rows of `row_bytes` (64 or 128) are swizzled; groups of 8 rows follow each other, and panels of as many
// columns as a row has, where the instruction spans several, after `panel_bytes`. Only the low word depends on the address, so that a
// step is one addition there.
template <int row_bytes, int panel_bytes = 16>
struct Matrix {
  static_assert(row_bytes == 64 || row_bytes == 128);
  static constexpr std::uint32_t high = row_bytes == 128 ? 0x40000040u : 0x80000020u;
  std::uint32_t low;
  __device__ static Matrix at(std::uint32_t address) { return {((address & 0x3ffff) >> 4) | (panel_bytes >> 4) << 16}; }
  __device__ Matrix plus(int bytes) const { return {low + (bytes >> 4)}; }
  __device__ std::uint64_t descriptor() const { return std::uint64_t{high} << 32 | low; }
};

}  // namespace chitu::cuda::ptx
