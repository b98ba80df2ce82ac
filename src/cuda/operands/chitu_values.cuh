// SPDX-License-Identifier: Apache-2.0
// Values of the chitu recipe: λ, a scale for each tile, INT8, transposed by the choice of the registers that are packed together; flags and
// the residual planes of flagged tiles.
#pragma once

#include "cuda/operands/chitu_common.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/order.h"

namespace chitu::cuda {
namespace {  // part of quantise.cu

// A warp has 64 keys x 32 channels of a tile. A thread has 8 keys x 8 channels: of 16 keys (`chunk`) numbers 0 ... 3 and 8 ... 11, or those
// + 4, because their integers follow each other.
template <class T, int dim>
struct ValuePart {
  static constexpr int keys = 8, parts = dim / 32, warps = 2 * parts, groups = 8 / warps;  // warps: of a tile; groups: tiles of a CTA
  int lane, block, column, group, warp, channel0;
  int chunk;
  bool exists;
  TileLocation at;
  int valid;              // keys behind the thread's first
  const T* from;          // its first key's first channel
  const float* channels;  // λ of its first channel

  __device__ __forceinline__ ValuePart(const Job& job, int unit) {
    const QuantizeParams& p = job.params;
    lane = threadIdx.x % 32;
    block = lane / 4;
    column = lane % 4;
    group = threadIdx.x / 32 / warps;
    warp = threadIdx.x / 32 % warps;
    channel0 = warp % parts * 32 + column * 8;
    chunk = warp / parts * 4 + block / 2;
    const int index = unit * groups + group, first = chunk * 16 + block % 2 * 4;
    exists = index < p.key_tiles * p.kv_heads;
    if (!exists) return;
    at = locate_tile(job, index);
    const SequenceLayout sequence = sequence_layout(p, at.sequence);
    valid = sequence.keys - at.tile * tile_tokens - first;
    from = static_cast<const T*>(p.value.data) + key_offset(p.value, sequence, at.head, at.tile * tile_tokens + first) + channel0;
    channels = p.channels + (static_cast<std::int64_t>(at.sequence) * p.kv_heads + at.head) * dim + channel0;
  }
  static constexpr __device__ int key(int i) { return i % 4 + i / 4 * 8; }  // behind the first
  static_assert(key(0) == stored_key(0) && key(1) == stored_key(1) && key(4) == stored_key(2) && key(5) == stored_key(3) &&
                key(2) == stored_key(4) && key(3) == stored_key(5) && key(6) == stored_key(6) && key(7) == stored_key(7));
  // Its integers of a channel to a tile, in the order of stored_key().
  template <class Number>
  __device__ __forceinline__ void store(std::uint8_t* tile, int c, const Number& number) const {
    std::uint8_t* to = tile + (channel0 + c) * tile_tokens + swizzled<128>(chunk, c) * 16 + block % 2 * 8;
    *reinterpret_cast<uint2*>(to) = make_uint2(ptx::pack_i8(number(0), number(1), number(4), number(5)) ^ value_offsets,
                                               ptx::pack_i8(number(2), number(3), number(6), number(7)) ^ value_offsets);
  }
};

// The residual plane of a flagged tile. Rare: the tile is read again, an element at a time.
template <class T, int dim>
__device__ __forceinline__ void quantize_residuals(const Job& job, int unit, float scale, float inverse) {
  const QuantizeParams& p = job.params;
  using Part = ValuePart<T, dim>;
  const Part part(job, ptx::opaque(unit));
  auto* out = reinterpret_cast<std::uint8_t*>(p.residuals) + residual_offset(chitu_form<dim>, part.at.index);
#pragma unroll 1
  for (int c = 0; c < 8; ++c) {
    const float f = invert(__ldcg(part.channels + c));
    const auto rest = [&](int i) {
      const int key = Part::key(i);
      float v = key < part.valid ? static_cast<float>(part.from[key * p.value.token + c]) : 0.f;
      if (!(fabsf(v) < infinity)) v = 0;
      return __fsub_rn(v * f, __fmul_rn(rintf(v * (f * inverse)), scale)) * (residual_parts * inverse);
    };
    part.store(out, c, rest);
  }
}

template <class T>
__device__ __forceinline__ std::uint32_t pack_half(float a, float b) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 r = __floats2half2_rn(a, b);
    return *reinterpret_cast<const std::uint32_t*>(&r);
  } else {
    const __nv_bfloat162 r = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const std::uint32_t*>(&r);
  }
}

template <class T, int dim>
__device__ __forceinline__ void quantize_values(const Job& job, int unit, Shared& shared) {
  const QuantizeParams& p = job.params;
  using Part = ValuePart<T, dim>;
  constexpr int keys = Part::keys, parts = Part::parts, warps = Part::warps;
  const Part part(job, unit);
  if (!part.exists) return;
  const T* from = part.from;
#pragma unroll
  for (int i = 0; i < keys; ++i, from += (Part::key(i) - Part::key(i - 1)) * p.value.token)
    fetch(shared.pieces, i, from, Part::key(i) < part.valid);
  ptx::wait_for_previous();  // for the sample
  float factor[8];
#pragma unroll
  for (int c = 0; c < 8; c += 4) {
    const uint4 l = load_sampled(part.channels + c);
#pragma unroll
    for (int w = 0; w < 4; ++w) factor[c + w] = invert(__uint_as_float(word(l, w)));
  }

  // Keys' sizes, the sums of |v / λ|, by the tensor core: an even column of b has 1/λ in 16 bits, the next what is left of it, times a
  // power of two which brings it into f16's range. Pair j of keys is summed in columns 2 j and 2 j + 1, and so ends in lane j of 4.
  const float unit_of_sizes = __uint_as_float(load_sampled(part.channels - part.channel0).x & 0x7f800000u);
  std::uint32_t weight[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const auto share = [&](float f) {
      f *= unit_of_sizes;
      const float upper = __uint_as_float(__float_as_uint(f) & (std::is_same_v<T, __half> ? 0xffffe000u : 0xffff0000u));
      return part.block % 2 ? f - upper : upper;
    };
    weight[w] = pack_half<T>(share(factor[2 * w]), share(factor[2 * w + 1]));
  }
  float size[4];
  std::uint32_t largest[4];  // |v| of a channel, among the bits as integers, two at a time: its |v / λ| is the largest too
  bool nonfinite = false;    // is a number? Of the warp's, then of the tile
  ptx::wait_for_copies();
  for (;;) {
#pragma unroll
    for (int i = 0; i < 4; ++i) size[i] = largest[i] = 0;
#pragma unroll
    for (int j = 0; j < keys / 2; ++j) {
      const uint4 x0 = shared.pieces[2 * j][threadIdx.x], x1 = shared.pieces[2 * j + 1][threadIdx.x];
      std::uint32_t a[4], b[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        a[w] = word(x0, w) & 0x7fff7fffu;
        b[w] = word(x1, w) & 0x7fff7fffu;
        largest[w] = __vmaxu2(largest[w], __vmaxu2(a[w], b[w]));
      }
      const bool mine = part.block / 2 == j;
      ptx::mma<T>(size, make_uint4(a[0], b[0], a[1], b[1]), {mine ? weight[0] : 0, mine ? weight[1] : 0}, true);
      ptx::mma<T>(size, make_uint4(a[2], b[2], a[3], b[3]), {mine ? weight[2] : 0, mine ? weight[3] : 0}, true);
    }
    if (!__any_sync(~0u, has_nonfinite<T>(largest))) break;
    nonfinite = true;
#pragma unroll
    for (auto& piece : shared.pieces) piece[threadIdx.x] = finite_part<T>(piece[threadIdx.x]);
  }
  float top = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) top = fmaxf(top, fmaxf(low<T>(largest[w]) * factor[2 * w], high<T>(largest[w]) * factor[2 * w + 1]));
  top = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(top)));
  float* sizes = shared.numbers + part.group * parts * tile_tokens;  // [parts][keys, in any order]
  float* tops = shared.numbers + Part::groups * parts * tile_tokens + part.group * warps;
  *reinterpret_cast<float2*>(sizes + part.warp % parts * tile_tokens + part.warp / parts * 64 + part.lane * 2) =
      make_float2(size[0] + size[1], size[2] + size[3]);
  if (part.lane == 0) tops[part.warp] = top;
  nonfinite = barrier_or(1 + part.group, warps * 32, nonfinite);
  if (part.warp == 0 && part.lane == 0) mark(p, p.nonfinite_values, part.at.index, nonfinite);
#pragma unroll
  for (int i = 0; i < warps; ++i) top = fmaxf(top, tops[i]);
  const float limit = top * unit_of_sizes * (dim / flag_ratio);
  bool small = false;  // is a key so small that the tile is flagged?
  if (const int key = part.warp * 32 + part.lane; key < tile_tokens) {
    float whole = 0;
#pragma unroll
    for (int i = 0; i < parts; ++i) whole += sizes[i * tile_tokens + key];
    small = whole > 0 && whole < limit;
  }
  top = fmaxf(top, smallest_maximum);
  const float inverse = divide(127, top);

#pragma unroll
  for (float& f : factor) f *= inverse;
  uint4 x[keys];
#pragma unroll
  for (int i = 0; i < keys; ++i) x[i] = shared.pieces[i][threadIdx.x];
  std::uint8_t* out = p.tiles + value_tile_offset(chitu_form<dim>, part.at.index);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    part.store(out, 2 * w, [&](int i) { return low<T>(word(x[i], w)) * factor[2 * w]; });
    part.store(out, 2 * w + 1, [&](int i) { return high<T>(word(x[i], w)) * factor[2 * w + 1]; });
  }
  const bool flagged = barrier_or(1 + part.group, warps * 32, small);
  const float scale = divide(top, 127);
  if (part.warp == 0 && part.lane == 0) write_passes(p, part.at.index, scale, flagged);
  if (flagged) quantize_residuals<T, dim>(job, unit, scale, inverse);
}

}  // namespace
}  // namespace chitu::cuda
