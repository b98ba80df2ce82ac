// SPDX-License-Identifier: Apache-2.0
// What the files of quantize_any_recipe() share: its call, where its statistics lie, how numbers are stored. statistics.cu looks at whole
// heads, then any_recipe.cu makes the operands.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/operands/numbers.cuh"
#include "cuda/params.h"
#include "cuda/ptx/convert.h"

namespace chitu::cuda {

// A call, as its kernels get it.
struct AnyRecipeCall {
  Params params;
  Recipe recipe;
  Form form;
  Making making;
};

constexpr const Quant& quant_of(const Recipe& r, Role role) { return role == Role::query ? r.query : role == Role::key ? r.key : r.value; }
__host__ __device__ inline const View& input_of(const Params& p, Role role) {
  return role == Role::query ? p.query : role == Role::key ? p.key : p.value;
}
constexpr int heads_of(const Params& p, Role role) { return role == Role::query ? p.heads : p.kv_heads; }

// Starts the two kernels that come first. They collect what must be known of whole heads, write Params::centre and Params::channels, and
// call prepare().
void collect(const AnyRecipeCall& call, bool bf16, cudaStream_t stream);

// ---- statistics

constexpr int ceiling(int a, int b) { return (a + b - 1) / b; }

constexpr bool sampled(const Quant& q) { return q.centre == Centre::sampled_mean || q.scaling == Scaling::tile; }

// Statistics of a head are collected in spans of whole tiles. Each span has a CTA and leaves a record. There are enough spans to fill a
// GPU, and few enough that one CTA can join a head's. The sample of a sequence is one span.
struct Spans {
  bool of_queries;
  int tiles;  // of a span
  int count;  // records of a head, in all sequences

  __host__ __device__ Spans(const Params& p, Role role, bool of_sample) : of_queries(role == Role::query) {
    const int all = of_queries ? p.query_tiles : p.key_tiles;
    tiles = of_sample ? 1 << 30 : std::max({1, ceiling(all * heads_of(p, role), 1024), ceiling(all, 256)});
    count = all / tiles + p.sequences;
  }
  __device__ int tokens(const SequenceLayout& s) const { return of_queries ? s.queries : s.keys; }
  __device__ int in(const SequenceLayout& s) const { return ceiling(tiles_of(tokens(s)), tiles); }
  // Index of a sequence's first record. Each packed sequence has at most one span that is not full, so one more record for each is enough.
  __device__ int first(const Params& p, const SequenceLayout& s, int sequence) const {
    return p.layouts ? (of_queries ? s.query_tile : s.key_tile) / tiles + sequence : sequence * in(s);
  }
};

// Offsets into Params::statistics.
struct Statistics {
  int record;                           // doubles in one: count of tokens, sums [dim], maxima [dim] in fp32
  std::int64_t queries, keys, values;   // records: [heads][Spans::count]
  std::int64_t query_heads, key_heads;  // float2 [sequences, heads], with Scaling::head: the scale, and what numbers are multiplied by
  std::int64_t value_factors;           // float [sequences, kv_heads, dim]: what numbers are multiplied by
  std::int64_t count = 0;

  __host__ __device__ explicit Statistics(const Params& p) : record(1 + p.dim + p.dim / 2) {
    const auto take = [&](std::int64_t doubles) {
      const std::int64_t at = count;
      count += (doubles + 1) / 2 * 2;  // parts start at multiples of 16 bytes, because some loads need that
      return at;
    };
    const auto records = [&](Role role) { return take(std::int64_t{Spans(p, role, false).count} * heads_of(p, role) * record); };
    queries = records(Role::query);
    keys = records(Role::key);
    values = records(Role::value);
    query_heads = take(std::int64_t{p.sequences} * p.heads);
    key_heads = take(std::int64_t{p.sequences} * p.kv_heads);
    value_factors = take(std::int64_t{p.sequences} * p.kv_heads * p.dim / 2);
  }
  __device__ std::int64_t records(Role role) const { return role == Role::query ? queries : role == Role::key ? keys : values; }
};

// ---- stored numbers

// Which operand tile `unit` of the keys, queries and values that are made belongs to, and its number there.
struct Unit {
  Role role;
  int index;
};
__host__ __device__ inline int made_tiles(const AnyRecipeCall& call, Role role) {
  const Params& p = call.params;
  return !call.making.makes(role) ? 0 : role == Role::query ? p.query_tiles * p.heads : p.key_tiles * p.kv_heads;
}

// How numbers are stored.
enum class Number { same, f16, i8, e4m3 };
template <class T>
__device__ Number number_of(const Quant& q) {
  if (q.scaling == Scaling::none || (q.type == DType::f16 && std::is_same_v<T, __half>)) return Number::same;
  return q.type == DType::f16 ? Number::f16 : q.type == DType::i8 ? Number::i8 : Number::e4m3;
}

template <Number number>
__device__ __forceinline__ std::uint32_t pack_8bit(float a, float b, float c, float d) {
  return number == Number::i8 ? ptx::pack_i8(a, b, c, d) : ptx::pack_e4m3(a, b, c, d);
}

}  // namespace chitu::cuda
