// SPDX-License-Identifier: Apache-2.0
// What the files of quantize_chitu() share: small arithmetic, which tile is whose, shared memory.
#pragma once

#include "common/limits.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/operands/rotation.cuh"
#include "cuda/operands/sequences.cuh"
#include "cuda/params.h"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/shared.h"

namespace chitu::cuda {
namespace {  // part of chitu.cu

template <int dim>
constexpr Form chitu_form = form_of(recipes::chitu, dim);

constexpr int quantize_threads = 256;

// Loads what the sample's kernel has written. This kernel overlaps that one, so the read-only path is not allowed.
__device__ __forceinline__ uint4 load_sampled(const void* p) {
  uint4 r;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}

// A named barrier of the warps that share a tile. It is true for all threads if x is true for one.
__device__ __forceinline__ bool barrier_or(int id, int threads, bool x) {
  int any;
  asm volatile("{ .reg .pred p, q; setp.ne.s32 p, %3, 0; barrier.cta.red.or.pred q, %1, %2, p; selp.s32 %0, 1, 0, q; }"
               : "=r"(any)
               : "r"(id), "r"(threads), "r"(static_cast<int>(x))
               : "memory");
  return any;
}

// 1 / a to nearest, for 1e-38 < a <= 8e37.
__device__ __forceinline__ float invert(float a) {
  const float r = ptx::reciprocal(a);
  return fmaf(r, fmaf(-a, r, 1), r);
}

// ---- tiles

// Divides by multiplying: n / divisor for 0 <= n < 2^31.
struct Divisor {
  std::uint32_t divisor = 1, multiplier = 1, shift = 0;
  Divisor() = default;
  explicit Divisor(int d) : divisor(static_cast<std::uint32_t>(d)) {
    while ((std::uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<std::uint32_t>((std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift) - divisor) / divisor + 1);
  }
  __device__ __forceinline__ int of(int n) const {
    return static_cast<int>((__umulhi(static_cast<std::uint32_t>(n), multiplier) + static_cast<std::uint32_t>(n)) >> shift);
  }
};

// The main kernel's parameters. A CTA has a unit of one operand: a tile with dim 128, two tiles with dim 64. The CTAs behind all units call
// prepare().
struct Job {
  QuantizeParams params;
  int units;
  Divisor tiles, heads;  // of a sequence's keys, where all are alike
};

__device__ __forceinline__ TileLocation locate_tile(const Job& job, int index) {
  if (job.params.layouts) return locate_tile<false>(job.params, index);
  const int row = job.tiles.of(index), sequence = job.heads.of(row);
  return {sequence, row - sequence * static_cast<int>(job.heads.divisor), index - row * static_cast<int>(job.tiles.divisor), index};
}

// A thread's 16-byte chunks of a tile, on their way through shared memory by copies. The compiler would move loads behind the wait for the
// sample and the work on earlier chunks; it cannot move copies. No other thread reads a thread's chunks, so no barrier is needed.
constexpr int chunks_of_thread = 8;
using Chunks = uint4[chunks_of_thread][quantize_threads];

__device__ __forceinline__ void fetch(Chunks& chunks, int i, const void* from, bool exists) {
  ptx::copy_16(ptx::shared_address(&chunks[i][threadIdx.x]), from, exists);
}

struct Shared {
  Chunks chunks;
  float numbers[4 * tile_tokens + 8];  // what the warps of a tile tell each other
};

}  // namespace
}  // namespace chitu::cuda
