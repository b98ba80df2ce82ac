// SPDX-License-Identifier: Apache-2.0
// Operands that came quantised (cuda/block.h): what quantize() leaves of numbers that are not finite, and what a call makes of such
// operands before its attention kernel.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {

constexpr int detail_threads = 128, join_threads = 256;

struct DetailsJob {
  Params params;
  Making making;
  ValueBlock values;
};

// Keys and values that were made together have one array of passes, and one any_nonfinite: the keys'. The values get their part.
__device__ __forceinline__ void hand_out(const DetailsJob& job) {
  const Params& p = job.params;
  const int thread = static_cast<int>(blockIdx.x * detail_threads + threadIdx.x), threads = static_cast<int>(gridDim.x) * detail_threads,
            passes = 2 * p.key_tiles * p.kv_heads;
  if (thread == 0) *job.values.any_nonfinite = *p.any_nonfinite;
  for (int i = thread; i < passes; i += threads)
    reinterpret_cast<int4*>(job.values.passes + i)[1] = reinterpret_cast<const int4*>(p.passes + i)[1];
}

// A CTA takes one marked tile after another. As a rule there is none.
template <class T, bool is_query>
__global__ void __launch_bounds__(detail_threads) details_kernel(const __grid_constant__ DetailsJob job) {
  const Params& p = job.params;
  ptx::wait_for_previous();
  if (!is_query && job.values.passes) hand_out(job);
  if (*p.any_nonfinite == 0) return;
  const int count = is_query ? p.query_tiles * p.heads : p.key_tiles * p.kv_heads, chunks = p.dim / 8, keys = job.making.key ? count : 0,
            units = is_query ? count : keys + (job.making.value ? count : 0);
  for (int unit = static_cast<int>(blockIdx.x); unit < units; unit += static_cast<int>(gridDim.x)) {
    const bool is_value = !is_query && unit >= keys;
    const int index = is_value ? unit - keys : unit;
    const View& in = is_query ? p.query : is_value ? p.value : p.key;
    const std::uint8_t* const marked = is_query ? p.nonfinite_queries : is_value ? p.nonfinite_values : p.nonfinite_keys;
    if (!marked[index]) continue;
    NonFiniteTile& details = (is_query ? p.query_details : is_value ? p.value_details : p.key_details)[index];
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(sizeof(NonFiniteTile) / 4); i += detail_threads)
      reinterpret_cast<std::uint32_t*>(&details)[i] = 0;
    __syncthreads();
    const TileLocation at = locate_tile<is_query>(p, index);
    const SequenceLayout s = sequence_layout(p, at.sequence);
    const int first = at.tile * tile_tokens, tokens = min(tile_tokens, (is_query ? s.queries : s.keys) - first);
    for (int i = static_cast<int>(threadIdx.x); i < tokens * chunks; i += detail_threads) {
      const int token = i / chunks, chunk = i % chunks;
      const std::int64_t offset = is_query ? query_offset(in, s, at.head, first + token) : key_offset(in, s, at.head, first + token);
      const uint4 x = *reinterpret_cast<const uint4*>(static_cast<const T*>(in.data) + offset + chunk * 8);
      if (!has_nonfinite<T>(largest_sizes(x))) continue;
      atomicOr(&details.tokens[token / 32], 1u << token % 32);
      for (int c = 0; c < 8; ++c) {
        const float y = low<T>(word(x, c / 2) >> c % 2 * 16);
        const std::uint32_t bit = 1u << (chunk % 4 * 8 + c);
        if (y != y) atomicOr(&details.nan[chunk / 4], bit);
        if (y == infinity) atomicOr(&details.above[chunk / 4], bit);
        if (y == -infinity) atomicOr(&details.below[chunk / 4], bit);
      }
    }
  }
}

__global__ void __launch_bounds__(join_threads) join_kernel(const __grid_constant__ Joined job) {
  const Params& p = job.params;
  const int thread = static_cast<int>(blockIdx.x * join_threads + threadIdx.x), threads = static_cast<int>(gridDim.x) * join_threads;
  if (job.prepares) {
    prepare(p, thread, threads);
    if (p.tuned_quantizer)
      for (int i = thread; i < p.query_tiles * p.heads; i += threads) p.nonfinite_queries[i] = 0;
  }
  if (thread == 0) {
    int any = job.prepares ? 0 : *p.any_nonfinite;
    for (const int* const of : {job.query_any_nonfinite, job.key_any_nonfinite, job.value_any_nonfinite})
      if (of) any |= *of;
    *p.any_nonfinite = any;
  }
  // Both passes of each tile: the first half is the keys', the second the values'.
  const int passes = 2 * p.key_tiles * p.kv_heads;
  for (int i = thread; i < passes; i += threads) {
    static_assert(sizeof(PassScales) == 2 * sizeof(int4));
    int4* const to = reinterpret_cast<int4*>(p.passes + i);
    if (job.key_passes) to[0] = reinterpret_cast<const int4*>(job.key_passes + i)[0];
    if (job.value_passes) to[1] = reinterpret_cast<const int4*>(job.value_passes + i)[1];
  }
}

}  // namespace

void write_details(const Params& p, const Making& making, const ValueBlock& values, bool bf16, cudaStream_t stream) {
  const int tiles = making.query ? p.query_tiles * p.heads : p.key_tiles * p.kv_heads;
  const Grid grid{.blocks = static_cast<unsigned>(std::min(tiles, 256)), .threads = detail_threads, .overlaps = true};
  const DetailsJob job{p, making, values};
  if (bf16)
    launch(making.query ? details_kernel<__nv_bfloat16, true> : details_kernel<__nv_bfloat16, false>, grid, stream, job);
  else
    launch(making.query ? details_kernel<__half, true> : details_kernel<__half, false>, grid, stream, job);
}

void join_operands(const Joined& joined, cudaStream_t stream) {
  const Params& p = joined.params;
  const int work = std::max({2 * p.key_tiles * p.kv_heads, range_count(p), 1});
  launch(join_kernel, {.blocks = static_cast<unsigned>(std::min((work + join_threads - 1) / join_threads, 264)), .threads = join_threads},
         stream, joined);
}

}  // namespace chitu::cuda
