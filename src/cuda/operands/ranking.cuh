// SPDX-License-Identifier: Apache-2.0
// The ranks of a tile's keys (common/ranks.h): what the quantisers share.
#pragma once

#include <cstdint>

#include "common/ranks.h"

namespace chitu::cuda {

// How many of a tile's numbers are larger than `mine`. numbers: [tile_tokens], in shared memory, at a multiple of 16 bytes. `parts` lanes
// that follow each other count one part each, and all get the sum. Numbers are below 2^31, so a difference of two has the sign that tells
// which is larger: this takes two instructions for each number, a comparison takes three.
template <int parts>
__device__ __forceinline__ int count_larger(const std::uint32_t* numbers, std::uint32_t mine, int part) {
  const auto* four = reinterpret_cast<const uint4*>(numbers) + part;
  std::uint32_t larger[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < tile_tokens / 4; i += parts) {
    const uint4 x = four[i];
    larger[0] += (mine - x.x) >> 31, larger[1] += (mine - x.y) >> 31;
    larger[0] += (mine - x.z) >> 31, larger[1] += (mine - x.w) >> 31;
  }
  std::uint32_t rank = larger[0] + larger[1];
#pragma unroll
  for (int n = 1; n < parts; n *= 2) rank += __shfl_xor_sync(~0u, rank, n);
  return static_cast<int>(rank % tile_tokens);  // it is below that, which the compiler cannot know
}

}  // namespace chitu::cuda
