// SPDX-License-Identifier: Apache-2.0
// Keys of the chitu recipe: centre, rotation, INT8.
#pragma once

#include "cuda/operands/chitu_common.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/order.h"

namespace chitu::cuda {
namespace {  // part of chitu.cu

// A thread has two of 16 rows, `row` and `row` + 4. In each it has channels 16 quad ... 16 quad + 15 and, with dim 128, those + 64, in
// chunks of 8.
template <int dim>
struct RowShare {
  int g, quad, row;
  __device__ __forceinline__ explicit RowShare(int lane) : g(lane / 4), quad(lane % 4), row((g & 3) + 8 * (g >> 2)) {}
  __device__ __forceinline__ int channel(int m) const { return quad * 16 + (m & 1) * 8 + (m >> 1) * 64; }  // of chunk m
};

// A thread's share of a rotated row. One mma.m16n8k16 rotates along four bits of the channel, additions in registers along the others. A
// 16-byte chunk is an operand as it stands. The integers of two chunks make 16 bytes that stay together. One more mma, with the centre in
// every row, subtracts the rotated centre; that is exact, because the centre is in the type of the input.
//
// With `padded` the rotation has smaller blocks. Along bits 4 and 5 of the channel, as far as they are not the block's, the matrix is that
// of 1; bit 6 is never the block's, and bit 3 is not if the block has 8 channels.
template <class T, int dim, bool padded>
struct RotatedRow {
  using Block = RotationBlock<dim, padded>;
  static constexpr int chunks = dim / 32;
  float x[chunks][2][4];

  // The B operand: the 16 x 16 Hadamard matrix on the channel's bits 0, 2, 4, 5. The signs of common/rotation.h are multiplied into it,
  // which costs nothing. The four words of a chunk differ in bits 1 and 2 of the channel, in the order 00, 10, 01, 11. Bit 1 chooses row g
  // or g + 8 of the operand, bit 2 the lower or upper half of k. Bits of the input: k = (bit 0, quad, bit 2); of the output: n = (bit 0,
  // quad), j.
  struct Matrix {
    std::uint32_t b[2][2], minus_b[2][2];
    __device__ __forceinline__ Matrix(const RowShare<dim>& share, Block block) {
      // Bits 4 and 5 of the channel: in the input quad, in the output g / 2. Those of them that are the block's:
      const int g = share.g, quad = share.quad, bits = block.has(4) + 2 * block.has(5), both = quad & (g >> 1) & bits;
      const std::uint32_t parity = (both ^ (both >> 1) ^ (quad & (quad >> 1))) & 1, flip = static_cast<std::uint32_t>(g & 1) << 31;
      const std::uint32_t one = padded && ((quad ^ (g >> 1)) & ~bits) ? 0 : rotation_one<T> | rotation_one<T> << 16;
      const std::uint32_t plain = one ^ parity * 0x80008000u;  // a zero may get a sign
      b[0][0] = b[1][0] = plain ^ flip;
      b[0][1] = plain ^ flip ^ 0x80000000u;
      b[1][1] = b[0][1] ^ 0x80008000u;
#pragma unroll
      for (int i = 0; i < 4; ++i) minus_b[i / 2][i % 2] = b[i / 2][i % 2] ^ 0x80008000u;
    }
  };

  // Chunk m, rotated along the four bits, less the same of the centre.
  __device__ __forceinline__ void multiply(int m, const uint4& chunk, const uint4& centre, const Matrix& matrix) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      ptx::mma<T>(x[m][j], centre, matrix.minus_b[j], false);
      ptx::mma<T>(x[m][j], chunk, matrix.b[j], true);
    }
  }

  // Butterflies over channel bits 3 and (dim 128) 6, which lie in a thread's registers. The first has the sign of bits 1 and 3, which swaps
  // sum and difference where bit 1 is set. The butterfly over bit 1 is left: it gives u + w and u - w. The larger of their sizes is |u| +
  // |w|, so the scale needs no more, and pack() forms both when it multiplies.
  __device__ __forceinline__ void butterflies(Block block) {
    if (!block.has(3)) {  // only the sign is left: of bit 1, where bit 3 is set
#pragma unroll
      for (int m = 1; m < chunks; m += 2)
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (i % 4 >= 2) x[m][i / 4][i % 4] = -x[m][i / 4][i % 4];
      return;
    }
#pragma unroll
    for (int bit = 1; bit < (padded ? 2 : chunks); bit *= 2)
#pragma unroll
      for (int m = 0; m < chunks; ++m) {
        if (m & bit) continue;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float u = x[m][i / 4][i % 4], w = x[m | bit][i / 4][i % 4];
          const bool swap = bit == 1 && i % 4 >= 2;
          x[m][i / 4][i % 4] = swap ? u - w : u + w;
          x[m | bit][i / 4][i % 4] = swap ? u + w : u - w;
        }
      }
  }
  // Two sums that together contain every channel of their block, as any other two would, tell if a channel is not finite. With `padded` a
  // row has several blocks, and the thread a part of them. All threads that share the row call this.
  __device__ __forceinline__ bool finite() const {
    if constexpr (!padded) return size(0, 0, 0) < infinity;
    float sum = 0;
#pragma unroll
    for (int m = 0; m < chunks; ++m) sum += size(m, 0, 0);
    return all_of_quad(sum < infinity);
  }
  __device__ __forceinline__ float largest() const {
    float top[4] = {0, 0, 0, 0};
#pragma unroll
    for (int m = 0; m < chunks; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) top[i] = fmaxf(top[i], size(m, i / 2, i % 2));
    return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
  }

  // Chunks m and m + 1 as integers. With factor 0 all numbers become 0, NaN too.
  __device__ __forceinline__ uint4 pack(int m, float factor) const {
    return make_uint4(pack(m, 0, factor), pack(m, 1, factor), pack(m + 1, 0, factor), pack(m + 1, 1, factor));
  }

 private:
  __device__ __forceinline__ float u(int m, int j, int e) const { return x[m][j][e]; }
  __device__ __forceinline__ float w(int m, int j, int e) const { return x[m][j][e + 2]; }
  __device__ __forceinline__ float size(int m, int j, int e) const { return fabsf(u(m, j, e)) + fabsf(w(m, j, e)); }  // of the larger
  __device__ __forceinline__ std::uint32_t pack(int m, int j, float f) const {
    const float a = u(m, j, 0) * f, b = u(m, j, 1) * f;
    return ptx::pack_i8(fmaf(w(m, j, 0), f, a), fmaf(w(m, j, 1), f, b), fmaf(w(m, j, 0), -f, a), fmaf(w(m, j, 1), -f, b));
  }
};

// A warp has 16 (dim 128) or 32 (dim 64) keys of a tile: one or two strips of 16. Half h of a strip is its keys 4 h ... 4 h + 3 and those +
// 8. One half is rotated after the other, so 32 accumulators are enough.
template <class T, int dim, bool padded>
struct KeyPart {
  static constexpr int strips = 128 / dim, warps = operand_warps / strips, groups = operand_warps / warps;  // of a tile; tiles of a CTA
  int lane, group, warp;
  RowShare<dim> share;
  bool exists;
  TileLocation at;
  int first;          // the thread's first key in the tile; the others are 16 s + 4 h behind it, in strip s and half h
  int left;           // keys of the sequence from there on
  std::int64_t step;  // between keys
  const T* from;      // the first key
  const T* centre;    // from the thread's first channel on

  __device__ __forceinline__ KeyPart(const Job& job, int unit)
      : lane(threadIdx.x % 32), group(threadIdx.x / 32 / warps % groups), warp(threadIdx.x / 32 % warps), share(lane) {
    const QuantizeParams& p = job.params;
    const int index = unit * groups + group;
    exists = index < key_tile_count(p) * p.kv_heads;
    if (!exists) return;
    at = locate_tile(job, index);
    const SequenceLayout sequence = sequence_layout(p, at.sequence);
    first = warp * 16 * strips + share.row;
    left = sequence.keys - at.tile * tile_tokens - first;
    step = p.key.token;
    from = static_cast<const T*>(p.key.data) + key_offset(p.key, sequence, at.head, at.tile * tile_tokens + first);
    centre = static_cast<const T*>(p.centre) + (static_cast<std::int64_t>(at.sequence) * p.kv_heads + at.head) * dim + share.channel(0);
  }
  // Index of a chunk among the thread's Chunks.
  static constexpr __device__ int chunk(int h, int s, int m) { return (h * strips + s) * (dim / 32) + m; }
  __device__ __forceinline__ int key(int h, int s) const { return first + s * 16 + h * 4; }
  __device__ __forceinline__ bool exists_key(int h, int s) const { return s * 16 + h * 4 < left; }
};

// Starts the copies of the thread's numbers.
template <class T, int dim, bool padded>
__device__ __forceinline__ void fetch_keys(const KeyPart<T, dim, padded>& part, int tensor_dim, Chunks& chunks) {
  using Part = KeyPart<T, dim, padded>;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int s = 0; s < Part::strips; ++s) {
      const bool exists = part.exists_key(h, s);
      const T* from = part.from + (exists ? s * 16 + h * 4 : 0) * part.step;
#pragma unroll
      for (int m = 0; m < RotatedRow<T, dim, padded>::chunks; ++m) {
        const int channel = part.share.channel(m);
        const bool in_tensor = !padded || channel < tensor_dim;
        fetch(chunks, Part::chunk(h, s, m), from + (in_tensor ? channel : 0), exists && in_tensor);
      }
    }
}

// The thread's keys of half h.
template <class T, int dim, bool padded>
struct KeyRows {
  using Part = KeyPart<T, dim, padded>;
  using Row = RotatedRow<T, dim, padded>;
  using Block = typename Row::Block;
  static constexpr int strips = Part::strips;
  Row rows[strips];
  bool good[strips];  // the key exists and is finite

  // Subtracts the centre and rotates. nonfinite becomes true if a key is not finite.
  __device__ __forceinline__ void rotate(const Part& part, int h, const Chunks& chunks, const typename Row::Matrix& matrix, Block block,
                                         bool& nonfinite) {
    __syncwarp();  // so that the compiler loads the centre here, and does not keep it from the half before
#pragma unroll
    for (int m = 0; m < Row::chunks; ++m) {
      const uint4 centre = load_sampled(part.centre + (part.share.channel(m) - part.share.channel(0)));
#pragma unroll
      for (int s = 0; s < strips; ++s) rows[s].multiply(m, chunks[Part::chunk(h, s, m)][threadIdx.x], centre, matrix);
    }
#pragma unroll
    for (int s = 0; s < strips; ++s) {
      rows[s].butterflies(block);
      const bool exists = part.exists_key(h, s), finite = rows[s].finite();
      nonfinite |= exists && !finite;
      good[s] = exists && finite;
    }
  }
  // Writes down the largest size in each key.
  __device__ __forceinline__ void put_tops(const Part& part, int h, Block block, TileShared& tile) const {
#pragma unroll
    for (int s = 0; s < strips; ++s) {
      float top = good[s] ? rows[s].largest() : 0;
#pragma unroll
      for (const int lanes : {1, 2}) top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
      const int key = part.key(h, s);
      if (part.share.quad == 0) {
        tile.top[key] = top;
        tile.number[key] = ranking_number(block.scaled(top), key);
      }
    }
  }
  // Stores the keys as integers, each in its row; zeros for those that are not good. inverse: that of group lane % 4.
  __device__ __forceinline__ void store(const Part& part, int h, const TileShared& tile, std::uint8_t* to, float inverse) const {
#pragma unroll
    for (int s = 0; s < strips; ++s) {
      const int row = tile.row[part.key(h, s)];
      const float of_group = __shfl_sync(~0u, inverse, row % 8 / 2), factor = good[s] ? of_group : 0;
#pragma unroll
      for (int m = 0; m < Row::chunks; m += 2)
        *reinterpret_cast<uint4*>(to + row * dim + swizzled<dim>(part.share.quad + m * 2, row) * 16) = rows[s].pack(m, factor);
    }
  }
};

// Ranks the tile's keys and writes down where they go.
template <class T, int dim, bool padded>
__device__ __forceinline__ void rank_keys(const KeyPart<T, dim, padded>& part, TileShared& tile) {
  constexpr int threads = KeyPart<T, dim, padded>::warps * 32, lanes = threads / tile_tokens;  // lanes: that share a key
  const unsigned thread = static_cast<unsigned>(ptx::thread_index_again()) % threads, key = thread / lanes;
  const float top = tile.top[key];
  const int rank = count_larger<lanes>(tile.number, tile.number[key], thread % lanes), row = row_of_rank(rank);
  tile.row[key] = static_cast<std::uint8_t>(row);
  tile.order[row] = static_cast<std::uint8_t>(key);
  tile.chunk_at[row] = static_cast<std::uint16_t>(value_chunk_at<dim>(key));
  // The group of a row is row % 8 / 2. Its largest size may be another key's than the first's, because ranks do not compare all bits.
  unsigned mine = 0;
#pragma unroll
  for (int group = 0; group < 4; ++group) {
    const unsigned most = __reduce_max_sync(~0u, row % 8 / 2 == group ? __float_as_uint(top) : 0u);
    if (thread % 32 == unsigned(group)) mine = most;
  }
  if (thread % 32 < 4) tile.group_top[thread % 32][thread / 32] = __uint_as_float(mine);
}

template <class T, int dim, bool padded>
__device__ __forceinline__ void quantize_keys(const Job& job, int unit, Shared& shared) {
  using Part = KeyPart<T, dim, padded>;
  constexpr int warps = Part::warps, threads = warps * 32;
  const QuantizeParams& p = job.params;
  const Part part(job, unit);
  if (!part.exists) return;
  fetch_keys(part, p.dim, shared.chunks);
  TileShared& tile = shared.tiles[part.group];
  const RotationBlock<dim, padded> block{p.dim};
  const typename RotatedRow<T, dim, padded>::Matrix matrix(part.share, block);
  ptx::wait_for_previous();  // for the sample
  ptx::wait_for_copies();

  // The largest size in each key.
  bool nonfinite = false;  // whether the thread knows of a key of the tile that is not finite
#pragma unroll 1
  for (int h = 0; h < 2; ++h) {
    KeyRows<T, dim, padded> half;
    half.rotate(part, h, shared.chunks, matrix, block, nonfinite);
    half.put_tops(part, h, block, tile);
  }
  nonfinite = barrier_or(key_barrier(part.group), threads, nonfinite);

  // Ranks. The warps of the values wait for them.
  rank_keys(part, tile);
  ptx::named_barrier_arrive(rank_barrier(part.group), 2 * threads);
  ptx::named_barrier(key_barrier(part.group), threads);

  // Lanes of the same lane % 4 find the scale of that group. One warp writes scales, to both passes of the tile, flag and order.
  const int key_group = part.share.quad;
  float top = 0;
#pragma unroll
  for (int i = 0; i < warps; i += 4) {
    const float4 of = *reinterpret_cast<const float4*>(tile.group_top[key_group] + i);
    top = fmaxf(top, fmaxf(fmaxf(of.x, of.y), fmaxf(of.z, of.w)));
  }
  if (part.warp == 0) {
    PassScales* passes = p.passes + pass_index(part.at.index, 0);
    if (part.lane < 4) passes[0].key[key_group] = passes[1].key[key_group] = block.scale_of(top);
    if (part.lane == 0) mark(p, p.nonfinite_keys, part.at.index, nonfinite);
    reinterpret_cast<std::uint32_t*>(p.orders + order_offset(part.at.index))[part.lane] =
        reinterpret_cast<const std::uint32_t*>(tile.order)[part.lane];
  }

  // Integers. To rotate again costs less than registers for both halves.
  const float inverse = block.inverse_of(top);
  std::uint8_t* to = p.key_numbers + key_tile_offset(chitu_form<dim>, part.at.index);
#pragma unroll 1
  for (int h = 0; h < 2; ++h) {
    KeyRows<T, dim, padded> half;
    half.rotate(part, h, shared.chunks, matrix, block, nonfinite);
    half.store(part, h, tile, to, inverse);
  }
}

}  // namespace
}  // namespace chitu::cuda
