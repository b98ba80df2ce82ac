// SPDX-License-Identifier: Apache-2.0
// The chitu recipe's quantizer of keys and values: reads them once and writes them once, in the layout that the attention kernel copies.
// That kernel quantises the queries itself (sm90/queries.cuh). docs/numerics.md, "Quantising", is the specification; docs/kernels/sm90.md
// has the bound and what was measured.
//
//   - A small kernel makes the keys' centre and λ from the sample (chitu_sample.cuh). The main kernel starts beside it.
//   - The tensor cores compute the rotation (rotation.cuh), and the sums of |v / λ| that the flags of values need.
//   - A CTA has both operands of a tile, because values stand in the order of their keys' ranks. Keys are rotated twice: a tile's rotated
//     keys are too many for the registers, and nothing can be stored before the ranks are known.
//   - Each thread copies its 128 bytes of input to shared memory before it waits for anything. Loads to registers were worse: a
//     multiprocessor then had room for three CTAs only, and the compiler moved half of the loads behind the work on the others.
#include <algorithm>

#include "common/sample.h"
#include "cuda/launch.h"
#include "cuda/operands/chitu_keys.cuh"
#include "cuda/operands/chitu_sample.cuh"
#include "cuda/operands/chitu_values.cuh"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {

// `dim` is the padded dim, 64 or 128; with `padded` the tensors' dim is less.
template <class T, int dim, bool padded>
__global__ void __launch_bounds__(most_sample_threads) sample_kernel(const __grid_constant__ SampleJob job) {
  ptx::wait_for_previous();
  ptx::let_next_start();
  const int row = static_cast<int>(blockIdx.x);
  if (row == 0 && threadIdx.x == 0) *job.any_nonfinite = 0;
  if (row < job.heads)
    sample_head<T, dim, padded, true>(job, row);
  else
    sample_head<T, dim, padded, false>(job, row - job.heads);
}

// ---- all tokens

// A multiprocessor has room for two CTAs. Those behind the units prepare the attention kernel's tables.
template <class T, int dim, bool padded>
__global__ void __launch_bounds__(quantize_threads, 2) quantize_kernel(const __grid_constant__ Job job) {
  extern __shared__ __align__(16) std::uint8_t shared_memory[];
  auto& shared = *reinterpret_cast<Shared*>(shared_memory);
  ptx::let_next_start();
  const int unit = static_cast<int>(blockIdx.x);
  if (unit < job.units) {
    if (threadIdx.x < operand_threads)
      quantize_keys<T, dim, padded>(job, unit, shared);
    else
      quantize_values<T, dim, padded>(job, unit, shared);
    return;
  }
  const QuantizeParams& p = job.params;
  const int thread = (unit - job.units) * quantize_threads + static_cast<int>(threadIdx.x),
            threads = (static_cast<int>(gridDim.x) - job.units) * quantize_threads;
  prepare(p, thread, threads);
  for (int i = thread; i < p.query_tiles * p.heads; i += threads) p.nonfinite_queries[i] = 0;
  ptx::wait_for_previous();  // waits even if there are no keys: a kernel that waits for this one must have waited for the sample's, too
}

template <class T, int dim, bool padded>
void start(const QuantizeParams& p, cudaStream_t stream) {
  const Sample same(p.same.keys), largest(p.layouts ? std::int64_t{tile_tokens} * p.key_tiles : p.same.keys);
  const int loads = static_cast<int>(largest.count) * (dim / 8), most = 128 * sample_loads;
  const int threads = std::clamp((loads + most - 1) / most * 128, 128, most_sample_threads), heads = p.sequences * p.kv_heads;
  launch(sample_kernel<T, dim, padded>,
         {.blocks = static_cast<unsigned>(2 * heads),
          .threads = static_cast<unsigned>(threads),
          .shared_bytes = static_cast<unsigned>(threads / 32 * dim * (sizeof(double) + sizeof(std::uint16_t))),
          .overlaps = true},
         stream,
         {.key = p.key,
          .value = p.value,
          .layouts = p.layouts,
          .kv_heads = p.kv_heads,
          .heads = heads,
          .key_begin = p.same.key_begin,
          .count = static_cast<std::uint32_t>(same.count),
          .stride = static_cast<std::uint32_t>(same.stride),
          .dim = p.dim,
          .one_over_count = 1 / static_cast<double>(same.count),
          .centre = p.centre,
          .channels = p.channels,
          .any_nonfinite = p.any_nonfinite});
  const int tiles_of_unit = 128 / dim, units = (p.key_tiles * p.kv_heads + tiles_of_unit - 1) / tiles_of_unit,
            preparing = p.items_taken ? std::clamp(range_count(p) / quantize_threads, 1, 128) : 0;
  launch(
      quantize_kernel<T, dim, padded>,
      {.blocks = static_cast<unsigned>(units + preparing), .threads = quantize_threads, .shared_bytes = sizeof(Shared), .overlaps = true},
      stream, {.params = p, .units = units, .tiles = Divisor(std::max(tiles_of(p.same.keys), 1)), .heads = Divisor(p.kv_heads)});
}

template <class T>
void start(const QuantizeParams& p, cudaStream_t stream) {
  if (p.dim == 64) return start<T, 64, false>(p, stream);
  if (p.dim == 128) return start<T, 128, false>(p, stream);
  p.dim < 64 ? start<T, 64, true>(p, stream) : start<T, 128, true>(p, stream);
}

}  // namespace

void quantize_chitu(const QuantizeParams& params, bool bf16, cudaStream_t stream) {
  bf16 ? start<__nv_bfloat16>(params, stream) : start<__half>(params, stream);
}

}  // namespace chitu::cuda
