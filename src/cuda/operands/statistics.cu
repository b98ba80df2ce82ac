// SPDX-License-Identifier: Apache-2.0
// What quantising needs of whole heads: the keys' centre, maxima, λ. docs/numerics.md, "Quantising", is the specification.
//
//   collect_kernel   a CTA for each span of a head leaves a record: a count of tokens, sums, maxima
//   conclude_kernel  a CTA for each head joins its records, in their order, so that the same call gives the same bits
#include "common/limits.h"
#include "common/numbers.h"
#include "common/sample.h"
#include "cuda/launch.h"
#include "cuda/operands/any_recipe.cuh"
#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {

constexpr int collect_threads = 256, conclude_threads = 512;

// Which operands have records. With f16 inputs, operands of type f16 need none: no number is too large for them.
__host__ __device__ bool collected(const AnyRecipeCall& call, Role role, bool bf16) {
  const Quant& q = quant_of(call.recipe, role);
  if (!call.making.makes(role) || (role == Role::key && call.making.centre) || (role == Role::value && call.making.channels)) return false;
  return q.centre != Centre::none || q.scaling == Scaling::channel || q.scaling == Scaling::tile ||
         (q.scaling == Scaling::head && (bf16 || q.type != DType::f16));
}
__host__ __device__ bool any_collected(const AnyRecipeCall& call, bool bf16) {
  return collected(call, Role::query, bf16) || collected(call, Role::key, bf16) || collected(call, Role::value, bf16);
}

__host__ __device__ Spans spans_of(const AnyRecipeCall& call, Role role) {
  return Spans(call.params, role, sampled(quant_of(call.recipe, role)));
}
// CTAs of an operand in collect_kernel.
__host__ __device__ int units_of(const AnyRecipeCall& call, Role role, bool bf16) {
  return collected(call, role, bf16) ? spans_of(call, role).count * heads_of(call.params, role) : 0;
}

// Whether a record has sums: of keys, or of sizes of values.
constexpr bool sums_of(Role role, const Quant& q) { return role == Role::key ? q.centre != Centre::none : q.scaling == Scaling::tile; }

template <class T>
constexpr bool is_bf16 = std::is_same_v<T, __nv_bfloat16>;

// ---- spans

// Tokens of a head: `count` that follow each other, or the sample's.
template <class T>
struct Tokens {
  const T* from;
  std::int64_t stride;
  int count;
  bool sampled;
  Sample sample;
  __device__ const T* at(int i) const { return from + (sampled ? sample.token(i) : i) * stride; }
};

// A thread's part of a span: 8 channels of some tokens.
template <class T, bool with_sums>
struct Part {
  double sum[8] = {};
  std::uint32_t largest[4] = {};

  // signs: ~0, or 0x7fff7fff to sum sizes.
  __device__ __forceinline__ void add(const uint4& x, std::uint32_t signs) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      largest[w] = larger_sizes(largest[w], word(x, w));
      if constexpr (with_sums) {
        sum[2 * w] += low<T>(word(x, w) & signs & 0xffff);
        sum[2 * w + 1] += low<T>((word(x, w) & signs) >> 16);
      }
    }
  }
  __device__ bool any_nonfinite() const { return has_nonfinite<T>(largest_sizes(largest)); }
};

struct CollectShared {
  double sum[8 * collect_threads];  // [groups][dim]
  std::uint16_t largest[8 * collect_threads];
  int taken[collect_threads / 32];
};

// Sums again without what is not finite: a whole query or key, or a number of a value. A warp has a token, so that it sees all of it.
// Returns how many tokens count.
template <class T, bool with_sums>
__device__ __forceinline__ int collect_finite(const Tokens<T>& tokens, int chunks, bool is_value, std::uint32_t signs,
                                              Part<T, with_sums>& part, CollectShared& shared) {
  constexpr int warps = collect_threads / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int taken = 0;  // tokens that count, of the warp's
  part = {};
  for (int i = warp; i < tokens.count; i += warps) {
    uint4 x = lane < chunks ? load_input(tokens.at(i) + lane * 8) : make_uint4(0, 0, 0, 0);
    if (is_value)
      x = finite_part<T>(x);
    else if (__any_sync(~0u, has_nonfinite<T>(largest_sizes(x))))
      continue;
    else
      ++taken;
    part.add(x, signs);
  }
  if (is_value) return tokens.count;
  if (lane == 0) shared.taken[warp] = taken;
  __syncthreads();
  int all = 0;
  for (const int n : shared.taken) all += n;
  return all;
}

// Leaves the record of `tokens`.
template <class T, bool with_sums>
__device__ void collect_span(const Tokens<T>& tokens, int dim, bool is_value, double* record, CollectShared& shared) {
  constexpr int batch = 8;
  const int chunks = dim / 8;
  const std::uint32_t signs = is_value ? 0x7fff7fffu : ~0u;

  // Each thread sums one chunk of its group's tokens, `batch` loads under way at once.
  int groups = collect_threads / chunks, group = threadIdx.x / chunks, chunk = threadIdx.x % chunks, taken = tokens.count;
  Part<T, with_sums> part;
  if (group < groups)
    for (int i = group; i < tokens.count; i += batch * groups) {
      uint4 x[batch];
#pragma unroll
      for (int j = 0; j < batch; ++j)
        x[j] = i + j * groups < tokens.count ? load_input(tokens.at(i + j * groups) + chunk * 8) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int j = 0; j < batch; ++j) part.add(x[j], signs);
    }
  if (__syncthreads_or(part.any_nonfinite())) {  // rare
    taken = collect_finite(tokens, chunks, is_value, signs, part, shared);
    groups = collect_threads / 32;
    group = threadIdx.x / 32;
    chunk = threadIdx.x % 32;
  }

  // The groups' sums and maxima are joined in shared memory, in the order of the groups.
  if (group < groups && chunk < chunks)
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const int to = group * dim + chunk * 8 + c;
      if constexpr (with_sums) shared.sum[to] = part.sum[c];
      shared.largest[to] = static_cast<std::uint16_t>(part.largest[c / 2] >> c % 2 * 16);
    }
  __syncthreads();
  if (threadIdx.x == 0) record[0] = taken;
  for (int c = threadIdx.x; c < dim; c += collect_threads) {
    double sum = 0;
    std::uint32_t most = 0;
    for (int g = 0; g < groups; ++g) {
      if constexpr (with_sums) sum += shared.sum[g * dim + c];
      most = max(most, std::uint32_t{shared.largest[g * dim + c]});
    }
    if constexpr (with_sums) record[1 + c] = sum;
    reinterpret_cast<float*>(record + 1 + dim)[c] = low<T>(most);
  }
}

// Prepares for later kernels. All threads of the call's first kernel call it.
__device__ __forceinline__ void begin(const Params& p) {
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (thread == 0) *p.any_nonfinite = 0;
  if (p.items_taken) prepare(p, thread, static_cast<int>(gridDim.x * blockDim.x));
}

template <class T>
__global__ void __launch_bounds__(collect_threads, 2) collect_kernel(const __grid_constant__ AnyRecipeCall call) {
  __shared__ CollectShared shared;
  ptx::let_next_start();
  const Params& p = call.params;
  begin(p);

  // Which operand: the CTAs of queries, of keys and of values follow each other.
  int unit = static_cast<int>(blockIdx.x);
  Role role = Role::query;
  if (const int queries = units_of(call, Role::query, is_bf16<T>); unit >= queries) {
    unit -= queries;
    role = Role::key;
    if (const int keys = units_of(call, Role::key, is_bf16<T>); unit >= keys) {
      unit -= keys;
      role = Role::value;
      if (unit >= units_of(call, Role::value, is_bf16<T>)) return;  // here for begin()
    }
  }

  // Which head, and which span of which of its sequences.
  const Spans spans = spans_of(call, role);
  const View& in = input_of(p, role);
  const Quant& quant = quant_of(call.recipe, role);
  const bool is_sample = sampled(quant);
  const int head = unit / spans.count, at = unit % spans.count;
  const int sequence =
      p.layouts ? sequence_of(p, at, [&](const SequenceLayout& s) { return spans.first(p, s, static_cast<int>(&s - p.layouts)); })
                : at / max(spans.in(p.same), 1);
  if (sequence >= p.sequences) return;
  const SequenceLayout s = sequence_layout(p, sequence);
  const int span = at - spans.first(p, s, sequence), all = spans.tokens(s);
  if (span >= spans.in(s)) return;

  // Its tokens, and where its record goes.
  const Sample sample(all);
  const int first = is_sample ? 0 : span * spans.tiles * tile_tokens;
  const Tokens<T> tokens{
      static_cast<const T*>(in.data) + (role == Role::query ? query_offset(in, s, head, first) : key_offset(in, s, head, first)), in.token,
      is_sample ? static_cast<int>(sample.count) : min(all - first, spans.tiles * tile_tokens), is_sample, sample};
  const Statistics statistics(p);
  double* record = p.statistics + statistics.records(role) + (std::int64_t{head} * spans.count + at) * statistics.record;
  if (sums_of(role, quant))
    collect_span<T, true>(tokens, p.dim, role == Role::value, record, shared);
  else
    collect_span<T, false>(tokens, p.dim, role == Role::value, record, shared);
}

// ---- heads

struct ConcludeShared {
  double sum[conclude_threads], count[conclude_threads];
  float maximum[conclude_threads];
  double of_warps[conclude_threads / 32];
};

// The totals of a head's records for the thread's channel; 0 in threads beyond the dim.
struct Total {
  double sum = 0, count = 0;
  float maximum = 0;
  __device__ float mean() const { return count > 0 ? static_cast<float>(sum / count) : 0.f; }
};

// Joins `count` records of `record` doubles.
__device__ Total total_of(const double* records, int count, int record, int dim, bool sums, ConcludeShared& shared) {
  const int parts = conclude_threads / dim, part = threadIdx.x / dim, c = threadIdx.x % dim;
  Total mine;
  if (part < parts)
#pragma unroll 4
    for (int i = part; i < count; i += parts) {
      const double* r = records + std::int64_t{i} * record;
      mine.count += __ldcg(r);
      if (sums) mine.sum += __ldcg(r + 1 + c);
      mine.maximum = fmaxf(mine.maximum, __ldcg(reinterpret_cast<const float*>(r + 1 + dim) + c));
    }
  shared.count[threadIdx.x] = mine.count;
  shared.sum[threadIdx.x] = mine.sum;
  shared.maximum[threadIdx.x] = mine.maximum;
  __syncthreads();
  Total all;
  if (threadIdx.x < dim)
    for (int i = 0; i < parts; ++i) {
      all.count += shared.count[i * dim + c];
      all.sum += shared.sum[i * dim + c];
      all.maximum = fmaxf(all.maximum, shared.maximum[i * dim + c]);
    }
  return all;
}

// Joins x over all threads of a CTA.
template <class Join>
__device__ double over_threads(double x, ConcludeShared& shared, Join join) {
#pragma unroll
  for (int n = 16; n; n /= 2) x = join(x, __shfl_xor_sync(~0u, x, n));
  if (threadIdx.x % 32 == 0) shared.of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared.of_warps[0];
  for (int w = 1; w < conclude_threads / 32; ++w) x = join(x, shared.of_warps[w]);
  return x;
}

// The scale for numbers up to `maximum`, and what they are multiplied by.
__device__ float2 scaling_of(float maximum, DType type) {
  const float m = fmaxf(maximum, smallest_maximum), most = largest(type);
  return type == DType::f16 && m >= least_plain_f16 && m <= most ? make_float2(1, 1) : make_float2(m / most, most / m);
}

__device__ float2 head_scaling(float maximum, DType type, ConcludeShared& shared) {
  return scaling_of(static_cast<float>(over_threads(maximum, shared, [](double a, double b) { return fmax(a, b); })), type);
}

// λ of the thread's channel. In threads beyond the dim it is 0, so that the mean is not changed by them.
__device__ float lambda_of(const Total& total, int dim, ConcludeShared& shared) {
  const float own = own_lambda(total.maximum, total.mean());
  return lambda_in_head(own, static_cast<float>(over_threads(own, shared, [](double a, double b) { return a + b; }) / dim));
}

template <class T>
__global__ void __launch_bounds__(conclude_threads) conclude_kernel(const __grid_constant__ AnyRecipeCall call) {
  __shared__ ConcludeShared shared;
  ptx::let_next_start();
  const Params& p = call.params;
  if (!any_collected(call, is_bf16<T>)) begin(p);
  ptx::wait_for_previous();

  const Statistics statistics(p);
  const int kv_heads = p.sequences * p.kv_heads, c = threadIdx.x;
  int unit = static_cast<int>(blockIdx.x);
  // The head's total; zeros if nothing was collected.
  const auto total = [&](Role role) {
    const Spans spans = spans_of(call, role);
    const int heads = heads_of(p, role), sequence = unit / heads, head = unit % heads;
    const SequenceLayout s = sequence_layout(p, sequence);
    return total_of(
        p.statistics + statistics.records(role) + (std::int64_t{head} * spans.count + spans.first(p, s, sequence)) * statistics.record,
        collected(call, role, is_bf16<T>) ? spans.in(s) : 0, statistics.record, p.dim, sums_of(role, quant_of(call.recipe, role)), shared);
  };

  // Values: the head's scale, or a scale or λ for each channel.
  if (unit < kv_heads) {
    if (!call.making.value) return;
    const Quant& quant = call.recipe.value;
    const Total all = total(Role::value);
    float2 scaling = make_float2(1, 1);
    // f16 values that stay f16 have no records: they are stored as they came.
    const bool has_maximum = collected(call, Role::value, is_bf16<T>);
    if (quant.scaling == Scaling::head && has_maximum) scaling = head_scaling(all.maximum, quant.type, shared);
    if (quant.scaling == Scaling::channel) scaling = scaling_of(all.maximum, quant.type);
    if (quant.scaling == Scaling::tile) {
      const float lambda = !call.making.channels ? lambda_of(all, p.dim, shared)
                           : c < p.dim           ? call.making.channels[std::int64_t{unit} * p.dim + c]
                                                 : 1;
      scaling = make_float2(lambda, 1 / lambda);
    }
    if (c < call.form.dim) p.channels[std::int64_t{unit} * call.form.dim + c] = c < p.dim ? scaling.x : 1;
    if (c < p.dim) reinterpret_cast<float*>(p.statistics + statistics.value_factors)[std::int64_t{unit} * p.dim + c] = scaling.y;
    return;
  }

  // Keys: the centre, the head's scale.
  unit -= kv_heads;
  if (unit < kv_heads) {
    const Quant& quant = call.recipe.key;
    if (call.making.key && call.making.centre && c < p.dim)
      static_cast<T*>(p.centre)[std::int64_t{unit} * p.dim + c] = static_cast<T>(call.making.centre[std::int64_t{unit} * p.dim + c]);
    if (!collected(call, Role::key, is_bf16<T>)) return;
    const Total all = total(Role::key);
    if (quant.centre != Centre::none && c < p.dim) static_cast<T*>(p.centre)[std::int64_t{unit} * p.dim + c] = static_cast<T>(all.mean());
    if (quant.scaling == Scaling::head) {
      const float2 scaling = head_scaling(all.maximum, quant.type, shared);
      if (c == 0) reinterpret_cast<float2*>(p.statistics + statistics.key_heads)[unit] = scaling;
    }
    return;
  }

  // Queries: the head's scale.
  unit -= kv_heads;
  if (!collected(call, Role::query, is_bf16<T>) || unit >= p.sequences * p.heads) return;  // here for begin()
  const Total all = total(Role::query);
  const float2 scaling = head_scaling(all.maximum, call.recipe.query.type, shared);
  if (c == 0) reinterpret_cast<float2*>(p.statistics + statistics.query_heads)[unit] = scaling;
}

template <class T>
void start(const AnyRecipeCall& call, cudaStream_t stream) {
  const Params& p = call.params;
  // Enough CTAs for begin() too, in the kernel that calls it.
  const int enough = std::min(ceiling(range_count(p), 512), 1024);
  const bool any = any_collected(call, is_bf16<T>);
  if (any) {
    int units = 0;
    for (const Role role : {Role::query, Role::key, Role::value}) units += units_of(call, role, is_bf16<T>);
    launch(collect_kernel<T>, {.blocks = static_cast<unsigned>(std::max(units, enough)), .threads = collect_threads}, stream, call);
  }
  const int heads = p.sequences * (2 * p.kv_heads + (collected(call, Role::query, is_bf16<T>) ? p.heads : 0));
  launch(conclude_kernel<T>,
         {.blocks = static_cast<unsigned>(any ? heads : std::max(heads, enough)), .threads = conclude_threads, .overlaps = any}, stream,
         call);
}

}  // namespace

std::int64_t statistics_count(const Params& params) { return Statistics(params).count; }

void collect(const AnyRecipeCall& call, bool bf16, cudaStream_t stream) {
  bf16 ? start<__nv_bfloat16>(call, stream) : start<__half>(call, stream);
}

}  // namespace chitu::cuda
