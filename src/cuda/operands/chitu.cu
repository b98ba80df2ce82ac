// SPDX-License-Identifier: Apache-2.0
// The chitu recipe's quantiser of keys and values on Hopper: they are read once and written once, in the layout that the attention kernel
// copies. Queries are quantised by that kernel (quantize_queries.cuh).
// docs/numerics.md, "Quantising", is the specification; docs/kernels/sm90.md has the bound and what was measured.
//
//   - A small kernel makes the keys' centre and λ from the sample. The main kernel starts beside it.
//   - Matrix products on the tensor cores: the rotation (rotation.cuh), and the sums of |v / λ| that values' flags need.
//   - Every thread brings its 128 bytes of the input to shared memory before it waits for anything. With them in registers only three CTAs
//     found room on a multiprocessor, and the compiler put half of the loads off until after the work on the others.
//   - A kernel finds neither its instructions nor its constants cached. All wait for the small one, so it has few of either.
#include <algorithm>

#include "common/sample.h"
#include "cuda/launch.h"
#include "cuda/operands/chitu_keys.cuh"
#include "cuda/operands/chitu_values.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/shared.h"

namespace chitu::cuda {
namespace {

// ---- the sample

constexpr int sample_loads = 8, most_sample_threads = 512;  // loads of a thread: enough for 256 tokens

// Of QuantizeParams, what it needs, and the Sample of a sequence's keys, where all sequences are alike.
struct SampleJob {
  View key, value;
  const SequenceLayout* layouts;
  int kv_heads, heads;  // in one sequence, in all
  int key_begin;
  std::uint32_t count, stride;
  double one_over_count;
  void* centre;
  float* channels;
  int* any_nonfinite;
};

// Sample::token() in the fewest instructions, of a stride below 2^32.
__device__ __forceinline__ std::uint32_t sampled_token(std::uint32_t i, std::uint32_t stride) {
  return i * stride + __umulhi(i * Sample::scrambler & 0xffff0000u, stride);
}

// The sum over a CTA's first `count` threads (a multiple of 32), by them.
template <int count>
__device__ __forceinline__ double total(double x, double (&of_warps)[count / 32]) {
#pragma unroll
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  ptx::named_barrier(1, count);
  double sum = 0;
#pragma unroll
  for (const double y : of_warps) sum += y;
  return sum;
}

// A CTA makes the centre of a head's keys, or λ of its values. row: among the heads of all sequences.
template <class T, int dim, bool is_value>
__device__ __forceinline__ void sample_head(const SampleJob& p, int row) {
  constexpr unsigned lanes = dim / 8;  // of a token
  const unsigned thread = threadIdx.x, lane = thread % 32, chunk = thread % lanes, warps = blockDim.x / 32, tokens = blockDim.x / lanes;
  // No more shared memory than this CTA needs: the kernel that overlaps wants it as L1 cache.
  extern __shared__ double sums[];                                            // [warps][dim]
  auto* const maxima = reinterpret_cast<std::uint16_t*>(sums + warps * dim);  // [warps][dim]
  __shared__ int left_out[most_sample_threads / 32];                          // keys of the sample, by each warp
  __shared__ double of_warps[dim / 32];

  const View& in = is_value ? p.value : p.key;
  int batch = row / p.kv_heads, begin = p.key_begin;
  const int head = row - batch * p.kv_heads;
  std::uint32_t count = p.count, stride = p.stride;
  double one_over_count = p.one_over_count;
  if (p.layouts) {
    const SequenceLayout& s = p.layouts[batch];
    const Sample sample(s.keys);
    batch = s.batch, begin = s.key_begin;
    count = static_cast<std::uint32_t>(sample.count), stride = static_cast<std::uint32_t>(sample.stride);
    one_over_count = 1 / static_cast<double>(count);
  }
  const T* base = static_cast<const T*>(in.data) + key_offset(in, {.batch = batch, .key_begin = begin}, head, 0) + chunk * 8;
  const auto load_row = [&](int i) {
    const unsigned number = thread / lanes + i * tokens;
    return number < count ? load_input(base + sampled_token(number, stride) * in.token) : make_uint4(0, 0, 0, 0);
  };
  uint4 x[sample_loads];
#pragma unroll
  for (int i = 0; i < sample_loads; ++i) x[i] = load_row(i);

  float sum[8] = {};              // an eighth of it, so that the sum of sample_loads numbers is finite
  std::uint32_t largest[4] = {};  // |v|, as integers, two in a word
  const auto add = [&](const uint4& y) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const std::uint32_t summand = is_value ? word(y, w) & 0x7fff7fffu : word(y, w);
      if (is_value) largest[w] = __vmaxu2(largest[w], summand);
      sum[2 * w] = fmaf(low<T>(summand), 0.125f, sum[2 * w]);
      sum[2 * w + 1] = fmaf(high<T>(summand), 0.125f, sum[2 * w + 1]);
    }
  };
#pragma unroll
  for (const uint4& y : x) add(y);
  bool finite = true;
#pragma unroll
  for (const float y : sum) finite &= fabsf(y) < infinity;
  int without = 0;
  if (__any_sync(~0u, !finite)) {
#pragma unroll
    for (int c = 0; c < 8; ++c) sum[c] = largest[c / 2] = 0;
#pragma unroll 1
    for (int i = 0; i < sample_loads; ++i) {  // again, of keys without the row, of values without the number
      const uint4 y = load_row(i);
      const std::uint32_t words[4] = {y.x, y.y, y.z, y.w};
      const unsigned nonfinite = __ballot_sync(~0u, has_nonfinite<T>(words)) >> lane / lanes * lanes & ((1u << lanes) - 1);
      if (is_value)
        add(finite_part<T>(y));
      else if (!nonfinite)
        add(y);
      else if (chunk == 0)
        ++without;
    }
    without = __reduce_add_sync(~0u, without);
  }
  if (!is_value && lane == 0) left_out[thread / 32] = without;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    double whole = 8. * sum[c];  // of all tokens in double
#pragma unroll
    for (unsigned s = lanes; s < 32; s *= 2) whole += __shfl_xor_sync(~0u, whole, s);
    if (lane < lanes) sums[thread / 32 * dim + chunk * 8 + c] = whole;
  }
  if (is_value) {
#pragma unroll
    for (std::uint32_t& y : largest)
#pragma unroll
      for (unsigned s = lanes; s < 32; s *= 2) y = __vmaxu2(y, __shfl_xor_sync(~0u, y, s));
    if (lane < lanes)
      *reinterpret_cast<uint4*>(maxima + thread / 32 * dim + chunk * 8) = make_uint4(largest[0], largest[1], largest[2], largest[3]);
  }
  const bool any_without = __syncthreads_or(without);

  // Over the warps, in two steps: `shares` of a channel, then their sum.
  const unsigned c = thread % dim, share = thread / dim, shares = blockDim.x / dim;
  double whole;
  std::uint32_t top;
  const auto join = [&](unsigned first, unsigned step, unsigned end) {
    whole = 0, top = 0;
#pragma unroll 4
    for (unsigned w = first; w < end; w += step) {
      whole += sums[w * dim + c];
      if (is_value) top = max(top, std::uint32_t{maxima[w * dim + c]});
    }
  };
  join(share, shares, warps);
  sums[share * dim + c] = whole;
  if (is_value) maxima[share * dim + c] = static_cast<std::uint16_t>(top);
  __syncthreads();
  if (thread >= dim) return;
  join(0, 1, shares);
  if (any_without && !is_value) {
    auto left = static_cast<int>(count);
    for (unsigned w = 0; w < warps; ++w) left -= left_out[w];
    one_over_count = 1. / left;
  }
  const std::int64_t to = static_cast<std::int64_t>(row) * dim + c;
  const auto mean = static_cast<float>(whole == 0 ? 0 : whole * one_over_count);  // 0 of no tokens
  if constexpr (is_value) {
    const float lambda = fminf(low<T>(top), channel_ceiling * mean);
    const auto typical = static_cast<float>(total<dim>(lambda, of_warps) / dim);
    // No more than 2^125, whose reciprocal is no subnormal number: the largest |v / λ| is below 8 then.
    p.channels[to] = typical > smallest_maximum ? fminf(fmaxf(lambda, typical * channel_floor), 0x1p125f) : 1;
  } else {
    static_cast<T*>(p.centre)[to] = static_cast<T>(mean);
  }
}

template <class T, int dim>
__global__ void __launch_bounds__(most_sample_threads) sample_kernel(const __grid_constant__ SampleJob job) {
  ptx::wait_for_previous();
  ptx::let_next_start();
  const int row = static_cast<int>(blockIdx.x);
  if (row == 0 && threadIdx.x == 0) *job.any_nonfinite = 0;
  if (row < job.heads)
    sample_head<T, dim, true>(job, row);
  else
    sample_head<T, dim, false>(job, row - job.heads);
}

// ---- all tokens

// Four CTAs a multiprocessor.
template <class T, int dim>
__global__ void __launch_bounds__(quantize_threads, 4) quantize_kernel(const __grid_constant__ Job job) {
  __shared__ __align__(16) Shared shared;
  ptx::let_next_start();
  const int block = static_cast<int>(blockIdx.x), unit = block / 2;
  if (unit < job.units) {
    if (block % 2)
      quantize_values<T, dim>(job, unit, shared);
    else
      quantize_keys<T, dim>(job, unit, shared);
    return;
  }
  const QuantizeParams& p = job.params;
  const int first = 2 * job.units, thread = (block - first) * quantize_threads + static_cast<int>(threadIdx.x),
            threads = (static_cast<int>(gridDim.x) - first) * quantize_threads;
  prepare(p, thread, threads);
  for (int i = thread; i < p.query_tiles * p.heads; i += threads) p.nonfinite_queries[i] = 0;
  ptx::wait_for_previous();  // even if there are no keys: who waits for this kernel waits for both
}

template <class T, int dim>
void start(const QuantizeParams& p, cudaStream_t stream) {
  const Sample same(p.same.keys), largest(p.layouts ? std::int64_t{tile_tokens} * p.key_tiles : p.same.keys);
  const int loads = static_cast<int>(largest.count) * (dim / 8), most = 128 * sample_loads;
  const int threads = std::clamp((loads + most - 1) / most * 128, 128, most_sample_threads), heads = p.sequences * p.kv_heads;
  launch(sample_kernel<T, dim>,
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
          .one_over_count = 1 / static_cast<double>(same.count),
          .centre = p.centre,
          .channels = p.channels,
          .any_nonfinite = p.any_nonfinite});
  const int tiles_of_unit = 128 / dim, units = (p.key_tiles * p.kv_heads + tiles_of_unit - 1) / tiles_of_unit,
            preparing = std::clamp(range_count(p) / quantize_threads, 1, 128);
  launch(quantize_kernel<T, dim>, {.blocks = static_cast<unsigned>(2 * units + preparing), .threads = quantize_threads, .overlaps = true},
         stream, {.params = p, .units = units, .tiles = Divisor(std::max(tiles_of(p.same.keys), 1)), .heads = Divisor(p.kv_heads)});
}

}  // namespace

void quantize_chitu(const QuantizeParams& params, bool bf16, cudaStream_t stream) {
  const int dim = params.dim;
  if (bf16)
    dim == 64 ? start<__nv_bfloat16, 64>(params, stream) : start<__nv_bfloat16, 128>(params, stream);
  else
    dim == 64 ? start<__half, 64>(params, stream) : start<__half, 128>(params, stream);
}

}  // namespace chitu::cuda
