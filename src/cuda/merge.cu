// SPDX-License-Identifier: Apache-2.0
// merge() on a GPU: reads every part once. A row's parts are weighed in fp32 as on the CPU in double.
//
// A CTA takes some rows of a head. A thread has two chunks of 8 channels of a row, and all threads of a row are in one warp. So the row's
// LSEs have been read by all of them before one writes the result's, which may be a part's own. These lanes bring the LSEs to shared
// memory, each lane some of them; the numbers of the first parts are already on their way then. Two chunks share what it costs to find and
// to weigh a part: with one the instructions of two parts would take as long as their bytes.
#include <limits>
#include <type_traits>

#include "common/numbers.h"
#include "cuda/launch.h"
#include "cuda/merge_params.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {

constexpr int threads = 256;
constexpr int channels = 8;  // of a chunk
constexpr int chunks = 2;    // of a thread

constexpr int lanes_of(int dim) { return padded_dim(dim) / (chunks * channels); }  // of a row: 4, 8 or 16
constexpr int least_lanes = lanes_of(1);

// The row of a thread.
struct Row {
  int batch, head, token;
  __device__ std::int64_t out(const MergeOperand& x) const { return token_offset(x.out, batch, head, token); }
  __device__ float& lse(const MergeOperand& x) const { return static_cast<float*>(x.lse.data)[token_offset(x.lse, batch, head, token)]; }
};

template <class T>
__device__ __forceinline__ uint4 load_16(const void* data, std::int64_t at) {
  return *reinterpret_cast<const uint4*>(static_cast<const T*>(data) + at);
}
template <class T>
__device__ __forceinline__ void store_16(void* data, std::int64_t at, const uint4& x) {
  *reinterpret_cast<uint4*>(static_cast<T*>(data) + at) = x;
}

__device__ __forceinline__ std::uint32_t bits_of(__half2 x) { return *reinterpret_cast<const std::uint32_t*>(&x); }
__device__ __forceinline__ std::uint32_t bits_of(__nv_bfloat162 x) { return *reinterpret_cast<const std::uint32_t*>(&x); }

template <class T>
__device__ __forceinline__ uint4 pack(const float (&x)[channels]) {
  std::uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w)
    if constexpr (std::is_same_v<T, __half>)
      words[w] = bits_of(__floats2half2_rn(x[2 * w], x[2 * w + 1]));
    else
      words[w] = bits_of(__floats2bfloat162_rn(x[2 * w], x[2 * w + 1]));
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// All parts and the result are of one 16-bit type, in vectors. A mean needs no clamp: what fp32 rounds it beyond the largest part is less
// than a quarter of the type's last place, and that number is the type's own.
template <class T>
struct Same {
  static constexpr int at_once = 2;   // parts whose loads are in flight
  static constexpr int resident = 4;  // CTAs on a multiprocessor
  static constexpr bool clamps = false;
  using Raw = uint4;

  // The chunk that begins at `channel` of the row, whose numbers begin at `row`.
  __device__ static Raw load(const MergeParams& p, int part, std::int64_t row, int channel) {
    return load_16<T>(p.parts[part].out.data, row + channel);
  }
  __device__ static void numbers(const MergeParams&, int, const Raw& raw, float (&x)[channels]) { unpack<T>(raw, x); }
  __device__ static void store(const MergeParams& p, std::int64_t row, int channel, float (&x)[channels]) {
    store_16<T>(p.result.out.data, row + channel, pack<T>(x));
  }
};

// Any types, any strides.
struct Any {
  static constexpr int at_once = 1, resident = 2;
  static constexpr bool clamps = true;
  struct Raw {
    uint4 low, high;  // 16-bit numbers are in `low`; f32 ones, and those that were read one by one, in both
  };

  __device__ static bool in_vectors(const MergeParams& p, int part) { return p.vectors >> part & 1; }

  __device__ static Raw load(const MergeParams& p, int part, std::int64_t row, int channel) {
    const void* data = p.parts[part].out.data;
    const std::int64_t first = row + channel;
    Raw raw{};
    if (!in_vectors(p, part)) {
      float x[channels];
#pragma unroll
      for (int c = 0; c < channels; ++c) x[c] = channel + c < p.dim ? number(data, p.types[part], first + c) : 0;
      raw = {as_bits(x[0], x[1], x[2], x[3]), as_bits(x[4], x[5], x[6], x[7])};
    } else if (p.types[part] == DType::f32) {
      raw = {load_16<float>(data, first), load_16<float>(data, first + 4)};
    } else {
      raw.low = load_16<__half>(data, first);
    }
    return raw;
  }

  __device__ static void numbers(const MergeParams& p, int part, const Raw& raw, float (&x)[channels]) {
    if (p.types[part] == DType::f32 || !in_vectors(p, part)) {
#pragma unroll
      for (int c = 0; c < channels; ++c) x[c] = __uint_as_float(word(c < 4 ? raw.low : raw.high, c % 4));
    } else if (p.types[part] == DType::f16) {
      unpack<__half>(raw.low, x);
    } else {
      unpack<__nv_bfloat16>(raw.low, x);
    }
  }

  // Changes x to what its type can hold, unless it is not finite.
  __device__ static void store(const MergeParams& p, std::int64_t row, int channel, float (&x)[channels]) {
    void* const data = p.result.out.data;
    const std::int64_t first = row + channel;
#pragma unroll
    for (float& number : x) number = is_finite(number) ? within(p.result_type, number) : number;
    if (!p.result_vectors) {
#pragma unroll
      for (int c = 0; c < channels; ++c)
        if (channel + c < p.dim) put(data, p.result_type, first + c, x[c]);
    } else if (p.result_type == DType::f32) {
      store_16<float>(data, first, as_bits(x[0], x[1], x[2], x[3]));
      store_16<float>(data, first + 4, as_bits(x[4], x[5], x[6], x[7]));
    } else {
      store_16<__half>(data, first, p.result_type == DType::f16 ? pack<__half>(x) : pack<__nv_bfloat16>(x));
    }
  }

 private:
  __device__ static uint4 as_bits(float a, float b, float c, float d) {
    return make_uint4(__float_as_uint(a), __float_as_uint(b), __float_as_uint(c), __float_as_uint(d));
  }
  __device__ static float number(const void* data, DType type, std::int64_t at) {
    if (type == DType::f32) return static_cast<const float*>(data)[at];
    const std::uint32_t bits = static_cast<const std::uint16_t*>(data)[at];
    return type == DType::f16 ? low<__half>(bits) : low<__nv_bfloat16>(bits);
  }
  __device__ static void put(void* data, DType type, std::int64_t at, float x) {
    if (type == DType::f32)
      static_cast<float*>(data)[at] = x;
    else
      static_cast<std::uint16_t*>(data)[at] = type == DType::f16 ? f32_to_f16(x) : f32_to_bf16(x);
  }
};

// The weighted mean of a chunk.
template <bool clamps>
struct Mean {
  float sum[channels] = {}, least[channels], most[channels];

  __device__ Mean() {
#pragma unroll
    for (int c = 0; c < channels; ++c) least[c] = infinity, most[c] = -infinity;
  }
  __device__ void add(float weight, float (&x)[channels]) {
    if constexpr (clamps) {
#pragma unroll
      for (int c = 0; c < channels; ++c) least[c] = fminf(least[c], x[c]), most[c] = fmaxf(most[c], x[c]);
    }
    if (weight == 0) {  // too small for fp32: what is not finite counts whatever its weight
      weight = 1;
#pragma unroll
      for (float& number : x) number = is_finite(number) ? 0 : number;
    }
#pragma unroll
    for (int c = 0; c < channels; ++c) sum[c] += weight * x[c];
  }
  // A mean lies between the numbers that it is of, whatever rounding does. NaN stays. Not for a row in which no part counts.
  __device__ void clamp() {
#pragma unroll
    for (int c = 0; c < channels; ++c) sum[c] = sum[c] > most[c] ? most[c] : sum[c] < least[c] ? least[c] : sum[c];
  }
};

// exp(x) for x <= 0. The error of the product does not matter: it grows as the weight falls.
__device__ __forceinline__ float exponential(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}

// What the LSEs of a row's parts say. A part that has seen no key counts nothing, whatever it holds.
struct Weights {
  const float* lses;
  float top = -infinity, sum = 0, one_over_sum;

  __device__ Weights(const float* lses, int count) : lses(lses) {
#pragma unroll 2
    for (int i = 0; i < count; ++i) top = fmaxf(top, lses[i]);  // drops a NaN
#pragma unroll 2
    for (int i = 0; i < count; ++i) sum += counts(i) ? exponential(lses[i] - top) : 0;
    one_over_sum = 1 / sum;
  }
  __device__ bool counts(int part) const { return lses[part] != -infinity; }
  __device__ float of(int part) const { return exponential(lses[part] - top) * one_over_sum; }
  __device__ bool none() const { return sum == 0; }
  __device__ float lse() const { return none() ? -infinity : top + logf(sum); }
};

template <class Numbers>
__global__ void __launch_bounds__(threads, Numbers::resident) merge_kernel(const __grid_constant__ MergeParams p) {
  __shared__ float all_lses[threads / least_lanes][merged_at_once + 1];  // one more, so that the rows of a warp lie in different banks
  ptx::wait_for_previous();
  ptx::let_next_start();
  const int lanes = lanes_of(p.dim), in_block = threadIdx.x >> (31 - __clz(lanes)), lane = threadIdx.x & (lanes - 1);
  const int head = blockIdx.x / p.blocks_of_head, block = blockIdx.x % p.blocks_of_head;
  const Row row{head / p.heads, head % p.heads, block * (threads / lanes) + in_block};
  const bool exists = row.token < p.tokens;
  const auto channel_of = [&](int chunk) { return (chunk * lanes + lane) * channels; };
  const auto has = [&](int chunk) { return exists && channel_of(chunk) < p.dim; };

  typename Numbers::Raw raw[Numbers::at_once][chunks];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < Numbers::at_once; ++i) {
      if (first + i >= p.count) break;
      const std::int64_t at = row.out(p.parts[first + i]);
#pragma unroll
      for (int chunk = 0; chunk < chunks; ++chunk)
        if (has(chunk)) raw[i][chunk] = Numbers::load(p, first + i, at, channel_of(chunk));
    }
  };
  load(0);
  float* const lses = all_lses[in_block];
#pragma unroll 1
  for (int i = lane; i < p.count; i += lanes) lses[i] = exists ? row.lse(p.parts[i]) : -infinity;
  __syncwarp();
  const Weights weights(lses, p.count);
  Mean<Numbers::clamps> mean[chunks];
  for (int first = 0;;) {
#pragma unroll
    for (int i = 0; i < Numbers::at_once; ++i) {
      if (first + i >= p.count) break;
      if (!weights.counts(first + i)) continue;
      const float weight = weights.of(first + i);
#pragma unroll
      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (!has(chunk)) continue;
        float x[channels];
        Numbers::numbers(p, first + i, raw[i][chunk], x);
        mean[chunk].add(weight, x);
      }
    }
    first += Numbers::at_once;
    if (first >= p.count) break;
    load(first);
  }
#pragma unroll
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (!has(chunk)) continue;
    if (Numbers::clamps && !weights.none()) mean[chunk].clamp();
    Numbers::store(p, row.out(p.result), channel_of(chunk), mean[chunk].sum);
  }
  if (exists && lane == 0) row.lse(p.result) = weights.lse();
}

bool all_are(const MergeParams& p, DType type) {
  bool same = p.result_vectors && p.result_type == type;
  for (int i = 0; i < p.count; ++i) same = same && p.types[i] == type && p.vectors >> i & 1;
  return same;
}

}  // namespace

int merged_rows(int dim) { return threads / lanes_of(dim); }

void launch_merge(const MergeParams& p, unsigned blocks, cudaStream_t stream) {
  const Grid grid{.blocks = blocks, .threads = threads, .overlaps = true};
  launch(all_are(p, DType::bf16)  ? merge_kernel<Same<__nv_bfloat16>>
         : all_are(p, DType::f16) ? merge_kernel<Same<__half>>
                                  : merge_kernel<Any>,
         grid, stream, p);
}

}  // namespace chitu::cuda
