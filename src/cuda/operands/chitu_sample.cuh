// SPDX-License-Identifier: Apache-2.0
// The sample of the chitu recipe: the keys' centre and λ of the values, from up to 256 tokens of a head. A CTA has the keys or the values
// of a head. Everything else waits for this kernel, so it is short and has few parameters: a kernel starts with cold caches for
// instructions and constants.
#pragma once

#include "common/limits.h"
#include "common/sample.h"
#include "cuda/operands/chitu_common.cuh"
#include "cuda/ptx/shared.h"

namespace chitu::cuda {
namespace {  // part of chitu.cu

constexpr int sample_loads = 8, most_sample_threads = 512;  // loads of a thread: enough for 256 tokens

// The part of QuantizeParams that the sample needs, and the Sample of a sequence's keys if all sequences are alike.
struct SampleJob {
  View key, value;
  const SequenceLayout* layouts;
  int kv_heads, heads;  // in one sequence, in all
  int key_begin;
  std::uint32_t count, stride;
  int dim;  // of the tensors
  double one_over_count;
  void* centre;
  float* channels;
  int* any_nonfinite;
};

// Sample::token() in the fewest instructions, for a stride below 2^32.
__device__ __forceinline__ std::uint32_t sampled_token(std::uint32_t i, std::uint32_t stride) {
  return i * stride + __umulhi(i * Sample::scrambler & 0xffff0000u, stride);
}

// The sum over a CTA's first `count` threads (a multiple of 32), which call it.
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

// A head's sampled tokens. `lanes` neighbouring threads have a token, each a 16-byte chunk of it. With `padded` some have a chunk behind
// it.
template <class T, int dim, bool padded>
struct SampledTokens {
  static constexpr unsigned lanes = dim / 8;

  const unsigned at_once;  // tokens of a load of all threads
  const T* base;           // the thread's chunk of the head's first token
  std::int64_t step;
  std::uint32_t count, stride;
  bool behind;  // the thread's chunk is behind the tokens' last
  double one_over_count;

  // row: the head's, among the heads of all sequences.
  __device__ __forceinline__ SampledTokens(const SampleJob& job, const View& in, int row)
      : at_once(blockDim.x / lanes), step(in.token), behind(padded && threadIdx.x % lanes * 8 >= static_cast<unsigned>(job.dim)) {
    int batch = row / job.kv_heads, begin = job.key_begin;
    const int head = row - batch * job.kv_heads;
    count = job.count, stride = job.stride;
    one_over_count = job.one_over_count;
    if (job.layouts) {
      const SequenceLayout& s = job.layouts[batch];
      const Sample sample(s.keys);
      batch = s.batch, begin = s.key_begin;
      count = static_cast<std::uint32_t>(sample.count), stride = static_cast<std::uint32_t>(sample.stride);
      one_over_count = 1 / static_cast<double>(count);
    }
    base = static_cast<const T*>(in.data) + key_offset(in, {.batch = batch, .key_begin = begin}, head, 0) + threadIdx.x % lanes * 8;
  }
  // The thread's chunk of its i-th token; zeros if there is none.
  __device__ __forceinline__ uint4 load(int i) const {
    const unsigned number = threadIdx.x / lanes + i * at_once;
    return number < count && !behind ? load_input(base + sampled_token(number, stride) * step) : make_uint4(0, 0, 0, 0);
  }
};

// A thread's sums of 8 channels over its tokens: sums of keys, or of the sizes of values.
template <class T, bool is_value>
struct SampleSums {
  float sum[8] = {};              // an eighth of the sum, so that it is finite for sample_loads numbers
  std::uint32_t largest[4] = {};  // sizes of values, two in a word

  __device__ __forceinline__ void add(const uint4& y) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const std::uint32_t summand = is_value ? sizes_of(word(y, w)) : word(y, w);
      if (is_value) largest[w] = __vmaxu2(largest[w], summand);
      sum[2 * w] = fmaf(low<T>(summand), 0.125f, sum[2 * w]);
      sum[2 * w + 1] = fmaf(high<T>(summand), 0.125f, sum[2 * w + 1]);
    }
  }
  __device__ __forceinline__ bool finite() const {
    bool finite = true;
#pragma unroll
    for (const float y : sum) finite &= fabsf(y) < infinity;
    return finite;
  }
};

// What the warps of a CTA tell each other. It lies in dynamic shared memory, which is no larger than this CTA needs: the kernel that
// overlaps uses the rest as L1 cache.
template <int dim>
struct SampleShared {
  double* sums;           // [warps][dim]
  std::uint16_t* maxima;  // [warps][dim]
};

// Sums again without what is not finite: a whole key, or a number of a value. Returns how many keys the warp has left out.
template <class T, int dim, bool padded, bool is_value>
__device__ __forceinline__ int sum_finite(const SampledTokens<T, dim, padded>& tokens, SampleSums<T, is_value>& mine) {
  constexpr unsigned lanes = dim / 8;
  const unsigned lane = threadIdx.x % 32;
  int left_out = 0;
#pragma unroll
  for (int c = 0; c < 8; ++c) mine.sum[c] = mine.largest[c / 2] = 0;
#pragma unroll 1
  for (int i = 0; i < sample_loads; ++i) {
    const uint4 y = tokens.load(i);
    const unsigned nonfinite = __ballot_sync(~0u, has_nonfinite<T>(largest_sizes(y))) >> lane / lanes * lanes & ((1u << lanes) - 1);
    if (is_value)
      mine.add(finite_part<T>(y));
    else if (!nonfinite)
      mine.add(y);
    else if (threadIdx.x % lanes == 0)
      ++left_out;
  }
  return __reduce_add_sync(~0u, left_out);
}

// Joins the sums of a warp's lanes that have the same channels, and leaves them in shared memory. From here on sums are in double.
template <class T, int dim, bool is_value>
__device__ __forceinline__ void join_lanes(SampleSums<T, is_value>& mine, const SampleShared<dim>& shared) {
  constexpr unsigned lanes = dim / 8;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, channel0 = threadIdx.x % lanes * 8;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    double whole = 8. * mine.sum[c];
#pragma unroll
    for (unsigned s = lanes; s < 32; s *= 2) whole += __shfl_xor_sync(~0u, whole, s);
    if (lane < lanes) shared.sums[warp * dim + channel0 + c] = whole;
  }
  if (is_value) {
#pragma unroll
    for (std::uint32_t& y : mine.largest)
#pragma unroll
      for (unsigned s = lanes; s < 32; s *= 2) y = __vmaxu2(y, __shfl_xor_sync(~0u, y, s));
    if (lane < lanes)
      *reinterpret_cast<uint4*>(shared.maxima + warp * dim + channel0) =
          make_uint4(mine.largest[0], mine.largest[1], mine.largest[2], mine.largest[3]);
  }
}

// The sum and the largest size of a channel, over every step-th row of SampleShared.
struct ChannelSum {
  double sum = 0;
  std::uint32_t largest = 0;
};
template <bool is_value, int dim>
__device__ __forceinline__ ChannelSum join_rows(const SampleShared<dim>& shared, unsigned c, unsigned first, unsigned step, unsigned end) {
  ChannelSum all;
#pragma unroll 4
  for (unsigned w = first; w < end; w += step) {
    all.sum += shared.sums[w * dim + c];
    if (is_value) all.largest = max(all.largest, std::uint32_t{shared.maxima[w * dim + c]});
  }
  return all;
}

// Makes the centre of a head's keys, or λ of its values. row: the head's, among the heads of all sequences.
template <class T, int dim, bool padded, bool is_value>
__device__ __forceinline__ void sample_head(const SampleJob& job, int row) {
  extern __shared__ double sums[];
  __shared__ int left_out[most_sample_threads / 32];  // keys of the sample that are not finite, for each warp
  __shared__ double of_warps[dim / 32];
  const unsigned thread = threadIdx.x, warps = blockDim.x / 32;
  const SampleShared<dim> shared{sums, reinterpret_cast<std::uint16_t*>(sums + warps * dim)};

  // Each thread sums its tokens. All loads are under way before the first sum.
  SampledTokens<T, dim, padded> tokens(job, is_value ? job.value : job.key, row);
  uint4 x[sample_loads];
#pragma unroll
  for (int i = 0; i < sample_loads; ++i) x[i] = tokens.load(i);
  SampleSums<T, is_value> mine;
#pragma unroll
  for (const uint4& y : x) mine.add(y);
  int without = 0;
  if (__any_sync(~0u, !mine.finite())) without = sum_finite<T, dim, padded, is_value>(tokens, mine);
  if (!is_value && thread % 32 == 0) left_out[thread / 32] = without;

  // The CTA joins them: over the lanes of a warp, then over the warps in two steps. In the first step every thread has a share of a
  // channel's warps, in the second a thread has a channel.
  join_lanes<T, dim, is_value>(mine, shared);
  const bool any_without = __syncthreads_or(without);
  const unsigned c = thread % dim, share = thread / dim, shares = blockDim.x / dim;
  const ChannelSum of_share = join_rows<is_value>(shared, c, share, shares, warps);
  shared.sums[share * dim + c] = of_share.sum;
  if (is_value) shared.maxima[share * dim + c] = static_cast<std::uint16_t>(of_share.largest);
  __syncthreads();
  if (thread >= dim) return;
  const ChannelSum all = join_rows<is_value>(shared, c, 0, 1, shares);

  // The mean, over the keys that were not left out; 0 if there are none.
  double one_over_count = tokens.one_over_count;
  if (any_without && !is_value) {
    auto left = static_cast<int>(tokens.count);
    for (unsigned w = 0; w < warps; ++w) left -= left_out[w];
    one_over_count = 1. / left;
  }
  const auto mean = static_cast<float>(all.sum == 0 ? 0 : all.sum * one_over_count);
  const std::int64_t to = static_cast<std::int64_t>(row) * dim + c;
  if constexpr (is_value) {
    // λ is at most 2^125, whose reciprocal is no subnormal number. The largest |v / λ| is below 8 then.
    const float own = own_lambda(low<T>(all.largest), mean);
    job.channels[to] = fminf(lambda_in_head(own, static_cast<float>(total<dim>(own, of_warps) / (padded ? job.dim : dim))), 0x1p125f);
  } else {
    static_cast<T*>(job.centre)[to] = static_cast<T>(mean);
  }
}

}  // namespace
}  // namespace chitu::cuda
