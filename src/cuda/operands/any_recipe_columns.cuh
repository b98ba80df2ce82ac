// SPDX-License-Identifier: Apache-2.0
// Operands that are columns, of any recipe: 8-bit values, which are stored transposed. A CTA has a tile, a warp all keys of 32 channels.
// The transposition is a choice of the registers that are packed together.
#pragma once

#include "common/limits.h"
#include "cuda/operands/any_recipe.cuh"
#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {  // part of any_recipe.cu

constexpr int most_columns = 256;  // channels: threads of a CTA
constexpr int thread_keys = 16;    // they make one 16-byte chunk of a channel

struct ColumnsShared {                         // of each warp's part of a tile
  float size[most_columns / 32][tile_tokens];  // of keys
  float top[most_columns / 32];
};

// The mean size of the tile's smallest key that is not zero. sizes: for each warp of the tile, the sums over its channels.
__device__ __forceinline__ float smallest_key(const float (*sizes)[tile_tokens], int warps, int dim) {
  const int lane = threadIdx.x % 32;
  float size[4] = {};
  for (int w = 0; w < warps; ++w)
#pragma unroll
    for (int i = 0; i < 4; ++i) size[i] += sizes[w][i * 32 + lane];
  float least = infinity;
#pragma unroll
  for (const float x : size)
    if (x > 0) least = fminf(least, x);
#pragma unroll
  for (int n = 16; n; n /= 2) least = fminf(least, __shfl_xor_sync(~0u, least, n));
  return least / static_cast<float>(dim);
}

// A thread's part of a tile: 16 keys, those of 16 rows of it, which make chunk `chunk` of a channel, of 8 channels. The phases are members;
// quantize_columns() has their order.
template <class T>
struct ColumnsPart {
  const AnyRecipeCall& call;
  const Params& p;
  ColumnsShared& shared;
  const Quant& quant;
  const int warps, warp, lane, chunk, quad, channel0;  // quad: the lane among the four that share 16 keys
  const bool real;                                     // else the channels are padding
  const TileLocation at;
  uint4 x[thread_keys];
  std::uint32_t largest[4];  // the largest sizes of the 8 channels, as bits, two in a word
  float factor[8];           // what a channel's numbers are multiplied by; 0 for padding

  // Scaling::tile: the tile's scale, the factor of its numbers, and whether it is flagged.
  struct TileScale {
    float scale, inverse;
    bool flagged;
  };

  __device__ __forceinline__ ColumnsPart(const AnyRecipeCall& call, int unit, ColumnsShared& shared)
      : call(call),
        p(call.params),
        shared(shared),
        quant(call.recipe.value),
        warps(call.form.dim / 32),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        chunk(lane / 4),
        quad(lane % 4),
        channel0(warp * 32 + quad * 8),
        real(channel0 < p.dim),
        at(locate_tile<false>(p, unit)) {}

  // Loads the thread's numbers, all loads under way at once. Keys behind the sequence's end are zeros. With Form::sorted the kernel of the
  // rows must have ended: it has written which keys go to the thread's rows.
  __device__ __forceinline__ void load() {
    const SequenceLayout sequence = sequence_layout(p, at.sequence);
    const int first = at.tile * tile_tokens, keys = sequence.keys - first;
    const T* from = static_cast<const T*>(p.value.data) + key_offset(p.value, sequence, at.head, first) + channel0;
    uint4 order = make_uint4(0, 0, 0, 0);
    if (call.form.sorted) order = __ldcg(reinterpret_cast<const uint4*>(p.orders + order_offset(at.index)) + chunk);
#pragma unroll
    for (int i = 0; i < thread_keys; ++i) {
      const int key = call.form.sorted ? static_cast<int>(word(order, i / 4) >> i % 4 * 8 & 0xff) : chunk * thread_keys + i;
      x[i] = real && key < keys ? load_input(from + key * p.value.token) : make_uint4(0, 0, 0, 0);
    }
  }

  // Finds the largest sizes, and replaces numbers that are not finite by zeros. True if the thread has such a number.
  __device__ __forceinline__ bool leave_out_nonfinite() {
    find_largest();
    const bool nonfinite = has_nonfinite<T>(largest_sizes(largest));
    if (nonfinite) {
#pragma unroll
      for (uint4& key : x) key = finite_part<T>(key);
      find_largest();
    }
    return nonfinite;
  }

  __device__ __forceinline__ void load_factors() {
#pragma unroll
    for (float& f : factor) f = 0;
    if (!real) return;
    const Statistics statistics(p);
    const auto* factors = reinterpret_cast<const float4*>(reinterpret_cast<const float*>(p.statistics + statistics.value_factors) +
                                                          (std::int64_t{at.sequence} * p.kv_heads + at.head) * p.dim + channel0);
    const float4 a = __ldcg(factors), b = __ldcg(factors + 1);
    factor[0] = a.x, factor[1] = a.y, factor[2] = a.z, factor[3] = a.w;
    factor[4] = b.x, factor[5] = b.y, factor[6] = b.z, factor[7] = b.w;
  }

  // Leaves the largest |v / λ| of the warp's channels in shared.top. In a channel the largest |v| has it.
  __device__ __forceinline__ void find_top() {
    float top = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) top = fmaxf(top, low<T>(largest[c / 2] >> c % 2 * 16 & 0xffff) * factor[c]);
#pragma unroll
    for (int n = 16; n; n /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
    if (lane == 0) shared.top[warp] = top;
  }

  // Leaves the keys' sizes, sums of |v / λ| over the warp's channels, in shared.size. Four lanes share 16 keys. Each of two steps halves
  // the keys that a lane still sums, so a lane ends with the sums of four.
  __device__ __forceinline__ void find_sizes() {
    const auto size_of = [&](int i) {
      float sum = 0;
#pragma unroll
      for (int c = 0; c < 8; ++c) sum += low<T>(word(x[i], c / 2) >> c % 2 * 16 & 0x7fff) * factor[c];
      return sum;
    };
    const bool upper = quad & 2, odd = quad & 1;
    float size[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float a = size_of(i), b = size_of(i + 8);
      size[i] = (upper ? b : a) + __shfl_xor_sync(~0u, upper ? a : b, 2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      shared.size[warp][chunk * 16 + quad * 4 + i] = (odd ? size[i + 4] : size[i]) + __shfl_xor_sync(~0u, odd ? size[i] : size[i + 4], 1);
  }

  // The tile's scale and flag, from what all warps have found.
  __device__ __forceinline__ TileScale tile_scale() {
    float top = 0;
#pragma unroll 4
    for (int w = 0; w < warps; ++w) top = fmaxf(top, shared.top[w]);
    const bool flagged = top > flag_ratio * smallest_key(shared.size, warps, p.dim);
    top = fmaxf(top, smallest_maximum);
    return {top / 127, 127 / top, flagged};
  }

  __device__ __forceinline__ void write_flags(const TileScale& tile, bool nonfinite) {
    if (threadIdx.x != 0) return;
    mark(p, p.nonfinite_values, at.index, nonfinite);
    write_passes(p, at.index, tile.scale, tile.flagged);
  }

  // Stores the values. For a flagged tile it stores the residual plane, too: what rounding to integers has left, in a finer unit.
  __device__ __forceinline__ void write_numbers(const TileScale& tile) {
    void* to = p.value_numbers + value_tile_offset(call.form, at.index);
    const float scale = tile.scale, inverse = tile.inverse;
    if (quant.type == DType::e4m3)
      write<Number::e4m3>(to, [&](int i, int c) { return scaled(i, c); });
    else
      write<Number::i8>(to, [&](int i, int c) { return scaled(i, c) * inverse; });
    if (tile.flagged)
      write<Number::i8>(p.residuals + residual_offset(call.form, at.index), [&](int i, int c) {
        const float y = scaled(i, c);
        return __fsub_rn(y, __fmul_rn(rintf(y * inverse), scale)) * (residual_parts * inverse);
      });
  }

 private:
  __device__ __forceinline__ void find_largest() {
#pragma unroll
    for (std::uint32_t& sizes : largest) sizes = 0;
#pragma unroll
    for (const uint4& key : x)
#pragma unroll
      for (int w = 0; w < 4; ++w) largest[w] = larger_sizes(largest[w], word(key, w));
  }

  __device__ __forceinline__ float scaled(int i, int c) const { return low<T>(word(x[i], c / 2) >> c % 2 * 16 & 0xffff) * factor[c]; }

  // Stores stored(key, channel) of the thread's numbers, keys in the order of stored_key().
  template <Number number, class Stored>
  __device__ __forceinline__ void write(void* tile, const Stored& stored) {
    // The compiler must not keep all of x in fp32 from the step before: it does not fit into the registers.
#pragma unroll
    for (uint4& key : x) asm volatile("" : "+r"(key.x), "+r"(key.y), "+r"(key.z), "+r"(key.w));
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = pack_8bit<number>(stored(stored_key(4 * i), c), stored(stored_key(4 * i + 1), c), stored(stored_key(4 * i + 2), c),
                                     stored(stored_key(4 * i + 3), c)) ^
                   (number == Number::i8 ? value_offsets : 0);
      static_cast<uint4*>(tile)[(channel0 + c) * 8 + swizzled<128>(chunk, c)] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
};

template <class T>
__device__ __forceinline__ void quantize_columns(const AnyRecipeCall& call, int unit, ColumnsShared& shared) {
  ColumnsPart<T> part(call, unit, shared);
  if (call.form.sorted) ptx::wait_for_previous();  // for the order of the keys
  part.load();
  ptx::wait_for_previous();  // for the statistics
  const bool has_nonfinite = part.leave_out_nonfinite();
  part.load_factors();
  const bool by_tile = part.quant.scaling == Scaling::tile;
  if (by_tile) {
    part.find_top();
    part.find_sizes();
  }
  const bool nonfinite = __syncthreads_or(has_nonfinite);  // shared is complete
  typename ColumnsPart<T>::TileScale tile{1, 1, false};
  if (by_tile) tile = part.tile_scale();
  part.write_flags(tile, nonfinite);
  part.write_numbers(tile);
}

}  // namespace
}  // namespace chitu::cuda
