// SPDX-License-Identifier: Apache-2.0
// What the files of quantize_chitu() share: small arithmetic, which tile is whose, shared memory.
#pragma once

#include "common/limits.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/operands/ranking.cuh"
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

// Of a CTA: a half of them quantises keys, the other one the same tiles' values.
constexpr int quantize_threads = 512, operand_threads = quantize_threads / 2, operand_warps = operand_threads / 32;

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

// The main kernel's parameters. A CTA has a unit of keys and values: a tile with dim 128, two tiles with dim 64. The CTAs behind all units
// call prepare().
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
// sample and the work on earlier chunks; it cannot move copies.
constexpr int chunks_of_thread = 8;
using Chunks = uint4[chunks_of_thread][quantize_threads];

__device__ __forceinline__ void fetch(Chunks& chunks, int i, const void* from, bool exists) {
  ptx::copy_16(ptx::shared_address(&chunks[i][threadIdx.x]), from, exists);
}

// A thread of values has keys 64 a + 16 b + 4 c + {0 ... 3, 8 ... 11} of a tile, for a, b, c that follow from its warp and lane, and
// channels that follow from these, too (chitu_values.cuh). This is where the chunk of the tile's key `key` stands: the bytes from the chunk
// that the thread of a = b = c = 0, with the same channels, has of key 0.
template <int dim>
constexpr int value_chunk_at(int key) {
  const int a = key / 64, b = key / 16 % 4, c = key / 4 % 2, i = key % 4 + key / 8 % 2 * 4;
  return (i * quantize_threads + a * dim + b * 8 + c * 4) * static_cast<int>(sizeof(uint4));
}
static_assert(value_chunk_at<128>(tile_tokens - 1) < 1 << 16);

// What the warps that quantise a tile's keys tell each other, and those that quantise its values.
struct alignas(16) TileShared {
  float top[tile_tokens];               // the largest size in each key
  std::uint32_t number[tile_tokens];    // what is compared of each: ranking_number()
  float group_top[4][operand_warps];    // the largest size in each scale group, as far as a warp has ranked its keys
  std::uint8_t row[tile_tokens];        // where each key goes
  std::uint8_t order[tile_tokens];      // which key goes to each row
  std::uint16_t chunk_at[tile_tokens];  // ValuePart::chunk_at() of the key that goes to each row
};

struct Shared {
  Chunks chunks;
  TileShared tiles[2];
  float numbers[4 * tile_tokens + 8];  // what the warps of a tile's values tell each other
};

// Named barriers of tile `group` of the CTA: the warps of its keys, those of its values, and both.
constexpr int key_barrier(int group) { return 1 + group; }
constexpr int value_barrier(int group) { return 3 + group; }
constexpr int rank_barrier(int group) { return 5 + group; }

}  // namespace
}  // namespace chitu::cuda
