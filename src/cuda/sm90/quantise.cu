// SPDX-License-Identifier: Apache-2.0
// The chitu recipe's quantiser of keys and values on Hopper: they are read once and written once, in the layout that the attention kernel
// copies. Queries are quantised by that kernel (quantise_queries.cuh).
// docs/numerics.md, "Quantising", is the specification; docs/kernels/sm90.md has the bound and what was measured.
//
//   - A small kernel makes the keys' centre and λ from the sample. The main kernel starts beside it.
//   - Matrix products on the tensor cores: the rotation (rotation.cuh), and the sums of |v / λ| that values' flags need.
//   - Every thread brings its 128 bytes of the input to shared memory before it waits for anything. With them in registers only three CTAs
//     found room on a multiprocessor, and the compiler put half of the loads off until after the work on the others.
#include <algorithm>

#include "common/sample.h"
#include "cuda/launch.h"
#include "cuda/sm90/quantise_keys.cuh"
#include "cuda/sm90/quantise_values.cuh"

namespace chitu::cuda::sm90 {
namespace {

constexpr int sample_loads = 8, most_sample_threads = 512;  // loads of a thread: enough for 256 tokens

// Four CTAs a multiprocessor.
template <class T, int dim>
__global__ void __launch_bounds__(quantise_threads, 4) quantise_kernel(const __grid_constant__ Job job) {
  __shared__ __align__(16) Shared shared;
  ptx::let_next_start();
  const int unit = static_cast<int>(blockIdx.x) / 2;
  if (blockIdx.x % 2)
    quantise_values<T, dim>(job, unit, shared);
  else
    quantise_keys<T, dim>(job, unit, shared);
}

// The sum over a CTA's threads of the first `count` (a multiple of 32).
__device__ double total(double x, int count, double* shared) {
#pragma unroll
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < count / 32; ++i) sum += shared[i];
  return sum;
}

// Of a call whose sequences are alike; the others' is found where they are.
struct SampleParams {
  Params params;
  Sample same;
};

// One CTA for the centre of each head's keys and one for the λ of its values; and, shared among all, what the call's other kernels need.
template <class T, int dim>
__global__ void __launch_bounds__(most_sample_threads) sample_kernel(const __grid_constant__ SampleParams all) {
  ptx::let_next_start();
  const Params& p = all.params;
  constexpr int lanes = dim / 8;
  const int rows = blockDim.x / lanes, warps = blockDim.x / 32;
  // No more shared memory than this CTA needs: the kernel that overlaps wants it as L1 cache.
  extern __shared__ double sums[];                               // [warps][dim]
  float* maxima = reinterpret_cast<float*>(sums + warps * dim);  // [warps][dim]
  __shared__ double parts[most_sample_threads / 32];
  __shared__ int left_out;  // keys of the sample
  const int heads = p.sequences * p.kv_heads, row = blockIdx.x % heads, head = row % p.kv_heads;
  const bool is_value = blockIdx.x >= heads;
  const View& in = is_value ? p.value : p.key;
  const Place sequence = place(p, row / p.kv_heads);
  const Sample sample = p.places ? Sample(sequence.keys) : all.same;
  const int lane = threadIdx.x % 32, chunk = threadIdx.x % lanes;
  const T* base = static_cast<const T*>(in.data) + sequence.batch * in.batch + head * in.head + sequence.key_begin * in.token + chunk * 8;
  const auto load_row = [&](int i) {
    const int token = threadIdx.x / lanes + i * rows;
    return token < sample.count ? load_input(base + sample.token(token) * in.token) : make_uint4(0, 0, 0, 0);
  };
  uint4 x[sample_loads];
#pragma unroll
  for (int i = 0; i < sample_loads; ++i) x[i] = load_row(i);
  if (threadIdx.x == 0) left_out = 0;
  __syncthreads();

  float sum[8] = {};              // an eighth of it, so that the sum of sample_loads numbers is finite
  std::uint32_t largest[4] = {};  // |x|, as integers, two in a word
  const auto add = [&](const uint4& y) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const std::uint32_t size = word(y, w) & 0x7fff7fffu, summand = is_value ? size : word(y, w);
      largest[w] = __vmaxu2(largest[w], size);
      sum[2 * w] = fmaf(low<T>(summand), 0.125f, sum[2 * w]);
      sum[2 * w + 1] = fmaf(high<T>(summand), 0.125f, sum[2 * w + 1]);
    }
  };
#pragma unroll
  for (const uint4& y : x) add(y);
  if (__any_sync(~0u, has_nonfinite<T>(largest))) {
#pragma unroll
    for (int c = 0; c < 8; ++c) sum[c] = largest[c / 2] = 0;
#pragma unroll 1
    for (int i = 0; i < sample_loads; ++i) {  // again, of keys without the row, of values without the number
      const uint4 y = load_row(i);
      const std::uint32_t words[4] = {y.x, y.y, y.z, y.w};
      const unsigned spoilt = __ballot_sync(~0u, has_nonfinite<T>(words)) >> lane / lanes * lanes & ((1u << lanes) - 1);
      if (is_value)
        add(finite_part<T>(y));
      else if (!spoilt)
        add(y);
      else if (chunk == 0)
        atomicAdd(&left_out, 1);
    }
  }
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    double whole = 8. * sum[c];  // of all tokens in double
    float top = c % 2 ? high<T>(largest[c / 2]) : low<T>(largest[c / 2]);
#pragma unroll
    for (int s = lanes; s < 32; s *= 2) {
      whole += __shfl_xor_sync(~0u, whole, s);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, s));
    }
    if (lane < lanes) {
      sums[threadIdx.x / 32 * dim + chunk * 8 + c] = whole;
      maxima[threadIdx.x / 32 * dim + chunk * 8 + c] = top;
    }
  }
  __syncthreads();
  const int c = threadIdx.x;
  const auto count = static_cast<double>(sample.count - left_out);
  double whole = 0;
  float top = 0, lambda = 0;
  if (c < dim) {
    for (int w = 0; w < warps; ++w) {
      whole += sums[w * dim + c];
      top = fmaxf(top, maxima[w * dim + c]);
    }
    if (count > 0) whole /= count;
    const float mean = static_cast<float>(whole);
    if (!is_value) static_cast<T*>(p.centre)[static_cast<std::int64_t>(row) * dim + c] = static_cast<T>(mean);
    lambda = fminf(top, channel_ceiling * mean);
  }
  if (is_value) {  // as one: the CTA has one kind
    const float mean = static_cast<float>(total(lambda, dim, parts) / dim);
    // No more than 2^125, whose reciprocal is no subnormal number: the largest |v / λ| is below 8 then.
    if (c < dim)
      p.channels[static_cast<std::int64_t>(row) * dim + c] =
          mean > smallest_maximum ? fminf(fmaxf(lambda, mean * channel_floor), 0x1p125f) : 1;
  }
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
  prepare(p, thread, threads);
  for (int i = thread; i < p.query_tiles * p.heads; i += threads) p.spoilt_queries[i] = 0;
  for (int i = thread; i < p.key_tiles * p.kv_heads; i += threads) p.spoilt_keys[i] = p.spoilt_values[i] = 0;
}

template <class T, int dim>
void start(const Params& p, cudaStream_t stream) {
  const Sample largest(p.places ? std::int64_t{tile_tokens} * p.key_tiles : p.same.keys);
  const int chunks = static_cast<int>(largest.count) * (dim / 8), warp_chunks = 32 * sample_loads;
  const int threads = std::clamp((chunks + warp_chunks - 1) / warp_chunks * 32, 128, most_sample_threads);
  launch(sample_kernel<T, dim>,
         {.blocks = static_cast<unsigned>(2 * p.sequences * p.kv_heads),
          .threads = static_cast<unsigned>(threads),
          .shared_bytes = static_cast<unsigned>(threads / 32 * dim * (sizeof(double) + sizeof(float)))},
         stream, {p, Sample(p.same.keys)});
  Job job{.params = p};
  job.tiles = Divisor(std::max(tiles_of(p.same.keys), 1));
  job.heads = Divisor(p.kv_heads);
  const int tiles_of_unit = 128 / dim, units = (p.key_tiles * p.kv_heads + tiles_of_unit - 1) / tiles_of_unit;
  launch(quantise_kernel<T, dim>, {.blocks = 2 * static_cast<unsigned>(units), .threads = quantise_threads, .overlaps = true}, stream, job);
}

}  // namespace

void quantise(const Params& params, bool bf16, cudaStream_t stream) {
  const int dim = params.dim;
  if (bf16)
    dim == 64 ? start<__nv_bfloat16, 64>(params, stream) : start<__nv_bfloat16, 128>(params, stream);
  else
    dim == 64 ? start<__half, 64>(params, stream) : start<__half, 128>(params, stream);
}

}  // namespace chitu::cuda::sm90
