// SPDX-License-Identifier: Apache-2.0
// Operands that are rows, of any recipe: queries, keys, 16-bit values. A CTA has a tile. A row of Form::dim channels belongs to 8, 16 or 32
// lanes of one warp, so what a token needs as a whole takes shuffles only.
#pragma once

#include "common/limits.h"
#include "common/rotation.h"
#include "cuda/operands/any_recipe.cuh"
#include "cuda/operands/ranking.cuh"
#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"

namespace chitu::cuda {
namespace {  // part of any_recipe.cu

constexpr int thread_rows = 8, row_step = 16;  // rows of a thread, and how far apart they are

struct RowsShared {  // a number for each row of the tile
  float top[tile_tokens], group[tile_tokens], factor[tile_tokens], dot[tile_tokens];
  alignas(16) std::uint32_t number[tile_tokens];  // with Quant::sorted: ranking_number()
  int place[tile_tokens];                         // where the row goes in the tile
};

// A thread has a number for each of its rows. Joins these numbers over the `lanes` lanes of a row. Lane i gets the result of row i % 8.
template <class Join>
__device__ __forceinline__ float over_row(float (&x)[thread_rows], int lane, int lanes, Join join) {
  // Each step halves the rows that a lane still joins: it gives one half away and joins the other.
#pragma unroll
  for (int n = thread_rows / 2; n; n /= 2)
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float keep = lane & n ? x[i + n] : x[i], give = lane & n ? x[i] : x[i + n];
      x[i] = join(keep, __shfl_xor_sync(~0u, give, n));
    }
  for (int n = thread_rows; n < lanes; n *= 2) x[0] = join(x[0], __shfl_xor_sync(~0u, x[0], n));
  return x[0];
}

// The largest `top` of the scale group of row `threadIdx.x`. All threads of a CTA call it; the first tile_tokens get an answer.
__device__ float over_group(const Groups& groups, float top, RowsShared& shared) {
  const int alike = groups.block == 1 ? 1 : 8 / groups.lanes;  // how many neighbours of 8 share a group
#pragma unroll
  for (int n = 1; n < 32; n *= 2)
    if (n < 8 ? n < alike : n < groups.block) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
  if (groups.block <= 32) return top;
  if (threadIdx.x < tile_tokens) shared.group[threadIdx.x] = top;
  __syncthreads();
  if (threadIdx.x < tile_tokens)
    for (int n = 32; n < groups.block; n += 32) top = fmaxf(top, shared.group[threadIdx.x ^ n]);
  return top;
}

// With Quant::sorted: ranks the tile's rows by `top`, that of row `threadIdx.x`, leaves their places in shared.place, and returns the
// largest `top` of the row's scale group. All threads of a CTA call it; the first tile_tokens get an answer. order: of the tile.
__device__ float over_sorted_group(const Groups& groups, float top, RowsShared& shared, std::uint8_t* order) {
  const int row = threadIdx.x;
  const bool has_row = row < tile_tokens;
  if (has_row) shared.number[row] = ranking_number(top, row);
  __syncthreads();
  int group = 0;
  if (has_row) {
    const int rank = count_larger<1>(shared.number, shared.number[row], 0), place = row_of_rank(rank);
    shared.group[rank] = top;
    shared.place[row] = place;
    order[place] = static_cast<std::uint8_t>(row);
    group = sorted_group(groups, rank);
  }
  __syncthreads();
  const int count = tile_tokens / groups.lanes;
  if (has_row)
    for (int i = 0; i < count; ++i) top = fmaxf(top, shared.group[group * count + i]);
  return top;
}

// Rotates a row. Each lane has 8 channels of it, those of chunk `chunk`, and all lanes of the row call it together.
__device__ __forceinline__ void rotate(float (&y)[8], int chunk, int block) {
#pragma unroll
  for (int c = 0; c < 8; ++c)
    if (rotation_negates(chunk * 8 + c)) y[c] = -y[c];
      // Butterflies of span 1, 2, 4 within the lane, then of 8 and more between lanes.
#pragma unroll
  for (int n = 1; n < 8; n *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      if (c & n) continue;
      const float a = y[c], b = y[c + n];
      y[c] = a + b;
      y[c + n] = a - b;
    }
  for (int n = 1; n * 8 < block; n *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float other = __shfl_xor_sync(~0u, y[c], n);
      y[c] = chunk & n ? other - y[c] : other + y[c];
    }
  const float scale = rotation_scale(block);
#pragma unroll
  for (float& x : y) x *= scale;
}

// A thread's part of a tile: the 16-byte chunk `chunk` of the rows row0 + row_step * j. The phases are members; quantize_rows() has their
// order.
template <class T, bool rotated>
struct RowsPart {
  // Rotated numbers are multiplied by this, and their scale is divided by it.
  static constexpr float headroom = rotated ? rotation_headroom : 1;

  const AnyRecipeCall& call;
  const Params& p;
  RowsShared& shared;
  const Role role;
  const bool is_query, is_value;
  const Quant& quant;
  const TileLocation at;
  const SequenceLayout sequence;
  const int lanes, lane, chunk, row0;  // lanes: of a row
  const bool real;                     // else the chunk is padding
  const bool centred;
  uint4 x[thread_rows], centre;
  std::uint32_t absent;                      // bit j: row j is no token, or is left out because it is not finite
  float kept[rotated ? thread_rows : 1][8];  // rotated rows, in fp32

  __device__ __forceinline__ RowsPart(const AnyRecipeCall& call, Role role, int unit, RowsShared& shared)
      : call(call),
        p(call.params),
        shared(shared),
        role(role),
        is_query(role == Role::query),
        is_value(role == Role::value),
        quant(quant_of(call.recipe, role)),
        at(is_query ? locate_tile<true>(p, unit) : locate_tile<false>(p, unit)),
        sequence(sequence_layout(p, at.sequence)),
        lanes(call.form.dim / 8),
        lane(threadIdx.x % 32),
        chunk(threadIdx.x % lanes),
        row0(threadIdx.x / lanes),
        real(chunk * 8 < p.dim),
        centred(!is_value && call.recipe.key.centre != Centre::none) {}

  // Loads the thread's numbers, all loads under way at once. Rows behind the sequence's end are zeros.
  __device__ __forceinline__ void load() {
    const View& in = input_of(p, role);
    const int tokens = (is_query ? sequence.queries : sequence.keys) - at.tile * tile_tokens;
    const int first = at.tile * tile_tokens + row0;
    const T* from = static_cast<const T*>(in.data) +
                    (is_query ? query_offset(in, sequence, at.head, first) : key_offset(in, sequence, at.head, first)) + chunk * 8;
    absent = 0;
#pragma unroll
    for (int j = 0; j < thread_rows; ++j) {
      const bool is_token = row0 + j * row_step < tokens;
      x[j] = is_token && real ? load_input(from + j * row_step * in.token) : make_uint4(0, 0, 0, 0);
      absent |= static_cast<std::uint32_t>(!is_token) << j;
    }
  }

  // Replaces what is not finite by zeros: a query or key as a whole, a value number by number. True if the thread has such a number. One
  // test of the largest sizes serves all rows, because such numbers are rare.
  __device__ __forceinline__ bool leave_out_nonfinite() {
    std::uint32_t sizes = 0;
#pragma unroll
    for (int j = 0; j < thread_rows; ++j) sizes = larger_sizes(sizes, largest_sizes(x[j]));
    const bool nonfinite = has_nonfinite<T>(sizes);
    if (!__any_sync(~0u, nonfinite)) return nonfinite;
    const std::uint32_t row_lanes = (lanes == 32 ? ~0u : (1u << lanes) - 1) << (lane & -lanes);
#pragma unroll
    for (int j = 0; j < thread_rows; ++j) {
      if (is_value)
        x[j] = finite_part<T>(x[j]);
      else if (__ballot_sync(~0u, has_nonfinite<T>(largest_sizes(x[j]))) & row_lanes) {
        x[j] = make_uint4(0, 0, 0, 0);
        absent |= 1u << j;
      }
    }
    return nonfinite;
  }

  // Loads the thread's channels of the keys' centre. It is subtracted from keys; queries need it for their correction.
  __device__ __forceinline__ void load_centre() {
    centre = make_uint4(0, 0, 0, 0);
    if (!centred || !real) return;
    const int kv_head = is_query ? at.head / (p.heads / p.kv_heads) : at.head;
    centre = __ldcg(reinterpret_cast<const uint4*>(static_cast<const T*>(p.centre) +
                                                   (std::int64_t{at.sequence} * p.kv_heads + kv_head) * p.dim + chunk * 8));
  }

  // Computes the queries' corrections, q . centre, and leaves them in shared.dot. It does so before anything else is done to a query.
  __device__ __forceinline__ void find_corrections() {
    float dot[thread_rows], c[8];
    unpack<T>(centre, c);
#pragma unroll
    for (int j = 0; j < thread_rows; ++j) {
      float y[8];
      unpack<T>(x[j], y);
      dot[j] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) dot[j] = fmaf(y[i], c[i], dot[j]);
    }
    put(shared.dot, over_row(dot, lane, lanes, [](float a, float b) { return a + b; }));
  }

  // Leaves the largest size in each row in shared.top. It keeps rotated rows, because to rotate them again would cost time. Other rows are
  // made again in write_numbers().
  __device__ __forceinline__ void find_tops() {
    float top[thread_rows];
#pragma unroll
    for (int j = 0; j < thread_rows; ++j) {
      float y[8];
      make(j, y);
      top[j] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        top[j] = fmaxf(top[j], fabsf(y[i]));
        if constexpr (rotated) kept[j][i] = y[i];
      }
    }
    put(shared.top, over_row(top, lane, lanes, [](float a, float b) { return fmaxf(a, b); }));
  }

  // The scale of a row, and what its numbers are multiplied by. From here to write_flags() a thread has a whole row, threadIdx.x, instead
  // of chunks of eight rows.
  __device__ __forceinline__ float2 scaling() {
    const int row = threadIdx.x;
    if (quant.scaling == Scaling::tokens) {
      const float top = row < tile_tokens ? shared.top[row] : 0,
                  of_group = sorted() ? over_sorted_group(quant.groups, top, shared, p.orders + order_offset(at.index))
                                      : over_group(quant.groups, top, shared),
                  m = fmaxf(of_group, smallest_maximum * headroom);
      return make_float2(m / 127 / headroom, 127 / m);
    }
    float2 scaling = make_float2(1, 1);
    if (quant.scaling == Scaling::head) {
      const Statistics statistics(p);
      const std::int64_t index = std::int64_t{at.sequence} * heads_of(p, role) + at.head;
      if (is_value)
        scaling.y = __ldcg(reinterpret_cast<const float*>(p.statistics + statistics.value_factors) + index * p.dim);
      else
        scaling =
            __ldcg(reinterpret_cast<const float2*>(p.statistics + (is_query ? statistics.query_heads : statistics.key_heads)) + index);
    }
    return scaling;
  }

  // Leaves the row's factor in shared.factor, for the threads that have its numbers. Writes its scale and correction for the attention
  // kernel. If the scale of the scores is negative, queries are negated here, so that the attention kernel need not do it.
  __device__ __forceinline__ void write_scales(float2 scaling) {
    const int row = threadIdx.x;
    if (row >= tile_tokens) return;
    shared.factor[row] = is_query && p.scale < 0 ? -scaling.y : scaling.y;
    const std::int64_t token = at.index * tile_tokens + row;
    if (is_query) {
      p.correction[token] = centred ? shared.dot[row] : 0;
      if (call.form.query_scale_rows == 1) p.query_scale[token] = scaling.x;
      if (call.form.query_scale_rows == 2 && row % 16 < 8) p.query_scale[at.index * (tile_tokens / 2) + row / 16 * 8 + row % 8] = scaling.x;
    } else if (!is_value) {
      if (call.form.scale_each_key)
        p.key_scale[token] = scaling.x;
      else if (const int place = sorted() ? shared.place[row] : row; place % 2 == 0 && place < 8)
        p.passes[pass_index(at.index, 0)].key[place / 2] = p.passes[pass_index(at.index, 1)].key[place / 2] = scaling.x;
    }
  }

  __device__ __forceinline__ void write_flags(bool nonfinite) {
    if (threadIdx.x != 0) return;
    mark(p, is_query ? p.nonfinite_queries : is_value ? p.nonfinite_values : p.nonfinite_keys, at.index, nonfinite);
    if (is_value) write_passes(p, at.index, 1, false);
  }

  // Scales the thread's numbers and stores them as the recipe says.
  __device__ __forceinline__ void write_numbers() {
    // The compiler must not keep the rows as fp32 from the step before: they would take twice the registers.
    if constexpr (!rotated)
#pragma unroll
      for (uint4& row : x) asm volatile("" : "+r"(row.x), "+r"(row.y), "+r"(row.z), "+r"(row.w));
    const Number number = number_of<T>(quant);
    const int bytes = number == Number::same || number == Number::f16 ? 2 : 1, panel = panel_bytes(call.form.dim * bytes);
    std::uint8_t* const to = destination(bytes, panel, row0);
    if (number == Number::i8)
      write_8bit<Number::i8>(to, panel);
    else if (number == Number::e4m3)
      write_8bit<Number::e4m3>(to, panel);
    else if (number == Number::f16)
      write_f16(to, panel);
    else
      write_same(to, panel);
  }

 private:
  // Stores a result of over_row() for the row that it belongs to.
  __device__ __forceinline__ void put(float* of_rows, float result) const {
    if (threadIdx.x % lanes < thread_rows) of_rows[row0 + threadIdx.x % thread_rows * row_step] = result;
  }

  // Makes the thread's part of row j before it is scaled: the centre is subtracted, the row is rotated, and the numbers are times
  // `headroom`.
  __device__ __forceinline__ void make(int j, float (&y)[8]) const {
    unpack<T>(x[j], y);
    if (!is_query && centred) {
      float c[8];
      unpack<T>(centre, c);
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = absent >> j & 1 ? 0 : rotated ? fmaf(y[i], headroom, -(c[i] * headroom)) : y[i] - c[i];
    } else if constexpr (rotated) {
#pragma unroll
      for (float& z : y) z *= headroom;
    }
    if constexpr (rotated) rotate(y, chunk, rotation_block(p.dim));
  }

  // The same, scaled: ready to be rounded and stored.
  __device__ __forceinline__ void make_scaled(int j, float (&y)[8]) const {
    const float factor = shared.factor[row0 + j * row_step];
    if constexpr (rotated)
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = kept[j][i];
    else
      make(j, y);
#pragma unroll
    for (float& z : y) z *= factor;
  }

  // Keys only.
  __device__ __forceinline__ bool sorted() const { return role == Role::key && quant.sorted; }

  // Where the thread's numbers of row `row` go. They are 16 or, if a number has one byte, 8 bytes of a panel's row; the thread's next rows
  // follow row_step * panel bytes apart, unless they are sorted.
  __device__ __forceinline__ std::uint8_t* destination(int bytes, int panel, int row) const {
    const int row_bytes = call.form.dim * bytes, panel_rows = is_query ? tiles_of(sequence.queries) * tile_tokens : tile_tokens;
    const int in_row = chunk * 8 * bytes, stored_chunk = in_row % panel / 16,
              place = panel == 128 ? swizzled<128>(stored_chunk, row) : swizzled<64>(stored_chunk, row);
    std::uint8_t* tile = is_query ? p.queries + (at.index - at.tile) * tile_tokens * row_bytes + std::int64_t{at.tile} * tile_tokens * panel
                         : is_value ? p.value_numbers + value_tile_offset(call.form, at.index)
                                    : p.key_numbers + key_tile_offset(call.form, at.index);
    return tile + (panel_offset(row_bytes, in_row / panel, panel_rows) + row * panel + place * 16 + in_row % 16);
  }

  template <Number number>
  __device__ __forceinline__ void write_8bit(std::uint8_t* to, int panel) const {
#pragma unroll
    for (int j = 0; j < thread_rows; ++j) {
      float y[8];
      make_scaled(j, y);
      std::uint8_t* const row = sorted() ? destination(1, panel, shared.place[row0 + j * row_step]) : to + j * row_step * panel;
      *reinterpret_cast<uint2*>(row) = make_uint2(pack_8bit<number>(y[0], y[1], y[2], y[3]), pack_8bit<number>(y[4], y[5], y[6], y[7]));
    }
  }

  __device__ __forceinline__ void write_f16(std::uint8_t* to, int panel) const {
#pragma unroll
    for (int j = 0; j < thread_rows; ++j) {
      float y[8];
      make_scaled(j, y);
      *reinterpret_cast<uint4*>(to + j * row_step * panel) =
          make_uint4(ptx::pack_f16(y[0], y[1]), ptx::pack_f16(y[2], y[3]), ptx::pack_f16(y[4], y[5]), ptx::pack_f16(y[6], y[7]));
    }
  }

  // Stores the numbers as they came, but for the sign.
  __device__ __forceinline__ void write_same(std::uint8_t* to, int panel) const {
    const std::uint32_t sign = is_query && p.scale < 0 ? 0x80008000u : 0;
#pragma unroll
    for (int j = 0; j < thread_rows; ++j)
      *reinterpret_cast<uint4*>(to + j * row_step * panel) = make_uint4(x[j].x ^ sign, x[j].y ^ sign, x[j].z ^ sign, x[j].w ^ sign);
  }
};

template <class T, bool rotated>
__device__ __forceinline__ void quantize_rows(const AnyRecipeCall& call, Role role, int unit, RowsShared& shared) {
  RowsPart<T, rotated> part(call, role, unit, shared);
  part.load();
  ptx::wait_for_previous();  // for the statistics
  const bool has_nonfinite = part.leave_out_nonfinite();
  part.load_centre();
  if (part.is_query && part.centred) part.find_corrections();
  if (rotated || part.quant.scaling == Scaling::tokens) part.find_tops();
  const bool nonfinite = __syncthreads_or(has_nonfinite);  // shared.dot and shared.top are complete
  part.write_scales(part.scaling());
  part.write_flags(nonfinite);
  __syncthreads();  // shared.factor is complete
  part.write_numbers();
}

}  // namespace
}  // namespace chitu::cuda
