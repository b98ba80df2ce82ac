// SPDX-License-Identifier: Apache-2.0
// What the two kernels of quantise.cu share: 16-bit numbers, small matrix products, what is not finite, and which tile is whose.
#pragma once

#include <limits>
#include <type_traits>

#include "common/limits.h"
#include "cuda/sm90/halves.cuh"
#include "cuda/sm90/params.h"
#include "cuda/sm90/places.cuh"
#include "cuda/sm90/ptx.h"

namespace chitu::cuda::sm90 {
namespace {  // part of quantise.cu

constexpr int quantise_threads = 256;
constexpr float infinity = std::numeric_limits<float>::infinity();

template <class T>
constexpr std::uint32_t one = std::is_same_v<T, __half> ? 0x3c00u : 0x3f80u;

// What the sample kernel, which this one overlaps, has written: not through the read-only path.
__device__ __forceinline__ uint4 load_sampled(const void* p) {
  uint4 r;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}

// Of the warps that share a tile.
__device__ __forceinline__ void tile_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// The same; true for all if it is for one.
__device__ __forceinline__ bool tile_barrier_or(int id, int threads, bool x) {
  int any;
  asm volatile("{ .reg .pred p, q; setp.ne.s32 p, %3, 0; barrier.cta.red.or.pred q, %1, %2, p; selp.s32 %0, 1, 0, q; }"
               : "=r"(any)
               : "r"(id), "r"(threads), "r"(static_cast<int>(x))
               : "memory");
  return any;
}

// d = a b (+ d): a [16, 16], b [16, 8], d [16, 8] in fp32.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint4& a, const std::uint32_t (&b)[2], bool add) {
  const float c[4] = {add ? d[0] : 0, add ? d[1] : 0, add ? d[2] : 0, add ? d[3] : 0};
  if constexpr (std::is_same_v<T, __half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// a / b rounded to nearest, for 1e-30 <= b <= 8e37: without the branch and the call of `/` for subnormal numbers, which cost registers.
__device__ __forceinline__ float divide(float a, float b) {
  float r = ptx::reciprocal(b);
  r = fmaf(r, fmaf(-b, r, 1), r);
  const float q = a * r;
  return fmaf(r, fmaf(-b, q, a), q);
}

// 1 / a likewise, for 1e-38 < a <= 8e37.
__device__ __forceinline__ float invert(float a) {
  const float r = ptx::reciprocal(a);
  return fmaf(r, fmaf(-a, r, 1), r);
}

// Where the 16-byte chunk of a row stands: rows of 128 bytes trade their chunks by row % 8, rows of 64 bytes by row / 2 % 4.
template <int row_bytes>
__device__ __forceinline__ int swizzled(int chunk, int row) {
  return row_bytes == 128 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
}

// ---- what is not finite

// Is one of the eight numbers of four words not finite?
template <class T>
__device__ __forceinline__ bool has_nonfinite(const std::uint32_t (&w)[4]) {
  std::uint32_t largest = 0;
#pragma unroll
  for (std::uint32_t x : w) largest = __vmaxu2(largest, x & 0x7fff7fffu);
  return max(largest & 0xffffu, largest >> 16) >= infinity_bits<T>;
}

// ---- tiles

// n / divisor for 0 <= n < 2^31 by a multiplication.
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

// The main kernel's parameters. A CTA has a unit of one operand: a tile with dim 128, two with dim 64.
struct Job {
  Params params;
  int key_units, query_units;                              // as many units of values as of keys
  Divisor query_tiles, key_tiles, heads, kv_heads, group;  // tiles of a head of a sequence, where all are alike; query heads of a kv head
};

template <bool is_query>
__device__ __forceinline__ TilePlace place_of(const Job& job, int index) {
  if (job.params.places) return tile_place<is_query>(job.params, index);
  const Divisor &tiles = is_query ? job.query_tiles : job.key_tiles, &heads = is_query ? job.heads : job.kv_heads;
  const int row = tiles.of(index), sequence = heads.of(row);
  return {sequence, row - sequence * static_cast<int>(heads.divisor), index - row * static_cast<int>(tiles.divisor), index};
}

// A thread's 16-byte pieces of a tile on their way through shared memory: copies that the compiler cannot put off, unlike loads, which it
// moves behind the wait for the sample and the work on the pieces before them. Nobody else reads them, so there is no barrier.
constexpr int pieces_of_thread = 8;
using Pieces = uint4[pieces_of_thread][quantise_threads];

__device__ __forceinline__ void fetch(Pieces& pieces, int i, const void* from, bool exists) {
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(ptx::shared_address(&pieces[i][threadIdx.x])), "l"(from),
               "r"(exists ? 16 : 0));  // else zeros
}
__device__ __forceinline__ void wait_for_pieces() { asm volatile("cp.async.wait_all;" ::: "memory"); }

struct Shared {
  Pieces pieces;
  float numbers[4 * tile_tokens + 8];  // what the warps of a tile tell each other
};

// Not the compiler's to remember: what depends on it is computed again, and nothing is kept in registers for it until then.
__device__ __forceinline__ int again(int unit) {
  asm volatile("" : "+r"(unit));
  return unit;
}

}  // namespace
}  // namespace chitu::cuda::sm90
