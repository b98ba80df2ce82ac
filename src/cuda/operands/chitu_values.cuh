// SPDX-License-Identifier: Apache-2.0
// Values of the chitu recipe: λ, a scale for each tile, INT8, flags, and the residual planes of flagged tiles. Values are stored
// transposed, in the order of their keys' ranks. The order is a choice of the chunks that a thread reads, the transposition one of the
// registers that are packed together.
#pragma once

#include "cuda/operands/chitu_common.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/order.h"

namespace chitu::cuda {
namespace {  // part of chitu.cu

// A warp has 64 keys x 32 channels of a tile. A thread has 8 keys x 8 channels. 16 keys of a channel make a 16-byte chunk of the operand. A
// thread has numbers 0 ... 3 and 8 ... 11 of it, or those + 4; their integers follow each other in the order of stored_key().
template <class T, int dim, bool padded>
struct ValuePart {
  static constexpr int keys = 8, parts = dim / 32, warps = 2 * parts, groups = operand_warps / warps;  // of a tile; tiles of a CTA
  int lane, g, quad;  // g: the lane's group of four; quad: its lane there, as mma's operands have them
  int group, warp, channel0;
  int chunk;
  bool exists;
  TileLocation at;
  int valid;              // keys of the sequence from first() on
  const T* from;          // its first key's first channel
  const float* channels;  // λ of its first channel

  __device__ __forceinline__ ValuePart(const Job& job, int unit) {
    const QuantizeParams& p = job.params;
    lane = threadIdx.x % 32;
    g = lane / 4;
    quad = lane % 4;
    group = threadIdx.x / 32 / warps % groups;
    warp = threadIdx.x / 32 % warps;
    channel0 = warp % parts * 32 + quad * 8;
    chunk = warp / parts * 4 + g / 2;
    const int index = unit * groups + group;
    exists = index < key_tile_count(p) * p.kv_heads;
    if (!exists) return;
    at = locate_tile(job, index);
    const SequenceLayout sequence = sequence_layout(p, at.sequence);
    valid = sequence.keys - at.tile * tile_tokens - first();
    from = static_cast<const T*>(p.value.data) + key_offset(p.value, sequence, at.head, at.tile * tile_tokens + first()) + channel0;
    channels = p.channels + (static_cast<std::int64_t>(at.sequence) * p.kv_heads + at.head) * dim + channel0;
  }
  // Whether the tensor has the thread's channels of the key that is `key` behind its first.
  __device__ __forceinline__ bool in_tensor(const QuantizeParams& p, int key) const { return key < valid && (!padded || channel0 < p.dim); }
  __device__ __forceinline__ int first() const { return chunk * 16 + g % 2 * 4; }  // the thread's first key in the tile
  static constexpr __device__ int key(int i) { return i % 4 + i / 4 * 8; }         // behind it
  static_assert(key(0) == stored_key(0) && key(1) == stored_key(1) && key(4) == stored_key(2) && key(5) == stored_key(3) &&
                key(2) == stored_key(4) && key(3) == stored_key(5) && key(6) == stored_key(6) && key(7) == stored_key(7));
  // With the same numbers as keys, these are the rows of the tile whose integers the thread stores: number(i) is that of row first() +
  // key(i). They stand in the order of stored_key().
  template <class Number>
  __device__ __forceinline__ void store(std::uint8_t* tile, int c, const Number& number) const {
    std::uint8_t* to = tile + (channel0 + c) * tile_tokens + swizzled<128>(chunk, c) * 16 + g % 2 * 8;
    *reinterpret_cast<uint2*>(to) = make_uint2(ptx::pack_i8(number(0), number(1), number(4), number(5)) ^ value_offsets,
                                               ptx::pack_i8(number(2), number(3), number(6), number(7)) ^ value_offsets);
  }
  // True in one thread of the tile, which writes for all.
  __device__ __forceinline__ bool speaks() const { return warp == 0 && lane == 0; }
};

// Writes the residual plane of a flagged tile: what rounding to integers has left, in a finer unit. It is rare, so the tile is read again,
// an element at a time.
template <class T, int dim, bool padded>
__device__ __forceinline__ void quantize_residuals(const Job& job, int unit, const std::uint8_t* order, float scale, float inverse) {
  const QuantizeParams& p = job.params;
  using Part = ValuePart<T, dim, padded>;
  const Part part(job, ptx::opaque(unit));
  auto* out = reinterpret_cast<std::uint8_t*>(p.residuals) + residual_offset(chitu_form<dim>, part.at.index);
#pragma unroll 1
  for (int c = 0; c < 8; ++c) {
    const float f = invert(__ldcg(part.channels + c));
    const auto rest = [&](int i) {
      const int key = order[part.first() + Part::key(i)] - part.first();  // behind the thread's first
      float v = part.in_tensor(p, key) ? static_cast<float>(part.from[key * p.value.token + c]) : 0.f;
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

// Loads λ of the thread's channels and inverts it.
template <class T, int dim, bool padded>
__device__ __forceinline__ void load_factors(const ValuePart<T, dim, padded>& part, float (&factor)[8]) {
#pragma unroll
  for (int c = 0; c < 8; c += 4) {
    const uint4 l = load_sampled(part.channels + c);
#pragma unroll
    for (int w = 0; w < 4; ++w) factor[c + w] = invert(__uint_as_float(word(l, w)));
  }
}

// The B operand of measure(): 1/λ in 16 bits in even columns, and in odd columns what this rounding has left. Both are times `unit`, a
// power of two that brings them into the range of f16.
template <class T, int dim, bool padded>
__device__ __forceinline__ void size_weights(const ValuePart<T, dim, padded>& part, const float (&factor)[8], float unit,
                                             std::uint32_t (&weight)[4]) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const auto share = [&](float f) {
      f *= unit;
      const float upper = __uint_as_float(__float_as_uint(f) & (std::is_same_v<T, __half> ? 0xffffe000u : 0xffff0000u));
      return part.g % 2 ? f - upper : upper;
    };
    weight[w] = pack_half<T>(share(factor[2 * w]), share(factor[2 * w + 1]));
  }
}

// What a pass over the thread's numbers finds.
struct ValueSizes {
  float size[4];             // of keys: sums of |v / λ| times the weights' unit
  std::uint32_t largest[4];  // sizes of channels, as bits, two in a word: the largest |v| has the largest |v / λ|, too
};

// One pass. The tensor core sums the sizes of keys: pair j of keys is summed in columns 2 j and 2 j + 1, and so ends in lane j of four.
template <class T, int dim, bool padded>
__device__ __forceinline__ ValueSizes measure(const ValuePart<T, dim, padded>& part, const Chunks& chunks,
                                              const std::uint32_t (&weight)[4]) {
  ValueSizes found;
#pragma unroll
  for (int i = 0; i < 4; ++i) found.size[i] = found.largest[i] = 0;
#pragma unroll
  for (int j = 0; j < ValuePart<T, dim, padded>::keys / 2; ++j) {
    const uint4 x0 = chunks[2 * j][threadIdx.x], x1 = chunks[2 * j + 1][threadIdx.x];
    std::uint32_t a[4], b[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      a[w] = sizes_of(word(x0, w));
      b[w] = sizes_of(word(x1, w));
      found.largest[w] = __vmaxu2(found.largest[w], __vmaxu2(a[w], b[w]));
    }
    const bool mine = part.g / 2 == j;
    ptx::mma<T>(found.size, make_uint4(a[0], b[0], a[1], b[1]), {mine ? weight[0] : 0, mine ? weight[1] : 0}, true);
    ptx::mma<T>(found.size, make_uint4(a[2], b[2], a[3], b[3]), {mine ? weight[2] : 0, mine ? weight[3] : 0}, true);
  }
  return found;
}

// The largest |v / λ| of the warp's numbers.
template <class T>
__device__ __forceinline__ float largest_of_warp(const std::uint32_t (&largest)[4], const float (&factor)[8]) {
  float top = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) top = fmaxf(top, fmaxf(low<T>(largest[w]) * factor[2 * w], high<T>(largest[w]) * factor[2 * w + 1]));
  return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(top)));
}

// What the warps of a tile tell each other about it.
template <class T, int dim, bool padded>
struct ValueShared {
  using Part = ValuePart<T, dim, padded>;
  float* sizes;  // [parts][keys, in any order]
  float* tops;   // [warps]

  __device__ __forceinline__ ValueShared(const Part& part, Shared& shared)
      : sizes(shared.numbers + part.group * Part::parts * tile_tokens),
        tops(shared.numbers + Part::groups * Part::parts * tile_tokens + part.group * Part::warps) {}

  __device__ __forceinline__ void put(const Part& part, const float (&size)[4], float top) const {
    *reinterpret_cast<float2*>(sizes + part.warp % Part::parts * tile_tokens + part.warp / Part::parts * 64 + part.lane * 2) =
        make_float2(size[0] + size[1], size[2] + size[3]);
    if (part.lane == 0) tops[part.warp] = top;
  }
  // Is the thread's key so small that the tile is flagged? limit: the size below which it is.
  __device__ __forceinline__ bool small_key(const Part& part, float limit) const {
    bool small = false;
    if (const int key = part.warp * 32 + part.lane; key < tile_tokens) {
      float whole = 0;
#pragma unroll
      for (int i = 0; i < Part::parts; ++i) whole += sizes[i * tile_tokens + key];
      small = whole > 0 && whole < limit;
    }
    return small;
  }
};

// Stores values as integers, those of the keys that go to the thread's rows. They stand in the chunks of other threads. factor: what a
// channel's numbers are multiplied by.
template <class T, int dim, bool padded>
__device__ __forceinline__ void store_values(const QuantizeParams& p, const ValuePart<T, dim, padded>& part, const Chunks& chunks,
                                             const TileShared& tile, const float (&factor)[8]) {
  using Part = ValuePart<T, dim, padded>;
  // The chunk of the tile's key 0 that has the thread's channels.
  const auto* channels = reinterpret_cast<const std::uint8_t*>(
      &chunks[0][operand_threads + part.group * Part::warps * 32 + part.warp % Part::parts * 32 + part.quad]);
  uint4 x[Part::keys];
#pragma unroll
  for (int i = 0; i < Part::keys; i += 4) {
    const uint2 at = *reinterpret_cast<const uint2*>(tile.chunk_at + part.first() + Part::key(i));
    const std::uint32_t bytes[4] = {at.x & 0xffff, at.x >> 16, at.y & 0xffff, at.y >> 16};
#pragma unroll
    for (int k = 0; k < 4; ++k) x[i + k] = *reinterpret_cast<const uint4*>(channels + bytes[k]);
  }
  std::uint8_t* out = p.value_numbers + value_tile_offset(chitu_form<dim>, part.at.index);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    part.store(out, 2 * w, [&](int i) { return low<T>(word(x[i], w)) * factor[2 * w]; });
    part.store(out, 2 * w + 1, [&](int i) { return high<T>(word(x[i], w)) * factor[2 * w + 1]; });
  }
}

template <class T, int dim, bool padded>
__device__ __forceinline__ void quantize_values(const Job& job, int unit, Shared& shared) {
  const QuantizeParams& p = job.params;
  using Part = ValuePart<T, dim, padded>;
  const Part part(job, unit);
  if (!part.exists) return;
  const int barrier = value_barrier(part.group), threads = Part::warps * 32;  // of the tile

  // Start the copies of the thread's numbers; then get λ, for which the sample's kernel must have ended.
  const T* from = part.from;
#pragma unroll
  for (int i = 0; i < Part::keys; ++i, from += (Part::key(i) - Part::key(i - 1)) * p.value.token)
    fetch(shared.chunks, i, from, part.in_tensor(p, Part::key(i)));
  ptx::wait_for_previous();  // for the sample
  float factor[8];
  load_factors(part, factor);
  const float unit_of_sizes = __uint_as_float(load_sampled(part.channels - part.channel0).x & 0x7f800000u);
  std::uint32_t weight[4];
  size_weights(part, factor, unit_of_sizes, weight);

  // Measure keys and channels. If the warp has a number that is not finite, it puts zeros for such numbers and measures again.
  bool left_out = false;
  ptx::wait_for_copies();
  ValueSizes found;
  for (;;) {
    // The compiler must not keep all of measure()'s operands for a second pass.
#pragma unroll
    for (std::uint32_t& w : weight) asm volatile("" : "+r"(w));
    found = measure(part, shared.chunks, weight);
    if (!__any_sync(~0u, has_nonfinite<T>(found.largest))) break;
    left_out = true;
#pragma unroll
    for (auto& chunk : shared.chunks) chunk[threadIdx.x] = finite_part<T>(chunk[threadIdx.x]);
  }

  load_factors(part, factor);  // again: registers do not keep them meanwhile

  // The tile's warps exchange what they have found. From the largest number follow the scale and the size below which a key is small.
  const ValueShared<T, dim, padded> tile(part, shared);
  float top = largest_of_warp<T>(found.largest, factor);
  tile.put(part, found.size, top);
  const bool nonfinite = barrier_or(barrier, threads, left_out);
  if (part.speaks()) mark(p, p.nonfinite_values, part.at.index, nonfinite);
#pragma unroll
  for (int i = 0; i < Part::warps; ++i) top = fmaxf(top, tile.tops[i]);
  const bool small = tile.small_key(part, top * unit_of_sizes * (static_cast<float>(padded ? p.dim : dim) / flag_ratio));
  top = fmaxf(top, smallest_maximum);
  const float inverse = divide(127, top);

  // The integers go out before the tile's threads agree whether it is flagged, but not before the keys are ranked.
#pragma unroll
  for (float& f : factor) f *= inverse;
  ptx::named_barrier(rank_barrier(part.group), 2 * threads);
  store_values(p, part, shared.chunks, shared.tiles[part.group], factor);
  const bool flagged = barrier_or(barrier, threads, small);
  const float scale = divide(top, 127);
  if (part.speaks()) write_passes(p, part.at.index, scale, flagged);
  if (flagged) quantize_residuals<T, dim, padded>(job, unit, shared.tiles[part.group].order, scale, inverse);
}

}  // namespace
}  // namespace chitu::cuda
