// SPDX-License-Identifier: Apache-2.0
// Keys of the chitu recipe: centre, rotation, INT8.
#pragma once

#include "cuda/operands/chitu_common.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/mma.h"

namespace chitu::cuda {
namespace {  // part of quantise.cu

// Of 16 rows a thread has two, `row` and `row` + 4: of a row it has channels 16 quad ... + 15 and (dim 128) those + 64, in pieces of 8.
template <int dim>
struct RowShare {
  int g, quad, row;
  __device__ __forceinline__ explicit RowShare(int lane) : g(lane / 4), quad(lane % 4), row((g & 3) + 8 * (g >> 2)) {}
  __device__ __forceinline__ int channel(int m) const { return quad * 16 + (m & 1) * 8 + (m >> 1) * 64; }  // of piece m
};

// A thread's share of a rotated row. Four channel bits by one mma.m16n8k16, the others by additions in registers. A 16-byte piece is an
// operand as it stands, and the integers of two pack into 16 bytes that stay together. The centre is subtracted by linearity, one more mma
// with the centre in every row: exact because it is in the type of the input.
template <class T, int dim>
struct RotatedRow {
  static constexpr int pieces = dim / 32;
  float x[pieces][2][4];

  // B fragments of the signed 16 x 16 Hadamard matrix on channel bits 0, 2, 4, 5; the sign of common/rotation.h goes along for nothing.
  // Words of a piece are (bit 1, bit 2) = 00, 10, 01, 11, so bit 1 tells row g from row g + 8 of the operand and bit 2 is the upper half of
  // k. Input bits: k = (bit 0, quad, bit 2); output bits: n = (bit 0, quad), j.
  struct Matrix {
    std::uint32_t b[2][2], minus_b[2][2];
    __device__ __forceinline__ explicit Matrix(const RowShare<dim>& share) {
      const int g = share.g, quad = share.quad, both = quad & (g >> 1);
      const std::uint32_t parity = (both ^ (both >> 1) ^ (quad & (quad >> 1))) & 1, flip = static_cast<std::uint32_t>(g & 1) << 31;
      const std::uint32_t plain = (rotation_one<T> | rotation_one<T> << 16) ^ parity * 0x80008000u;
      b[0][0] = b[1][0] = plain ^ flip;
      b[0][1] = plain ^ flip ^ 0x80000000u;
      b[1][1] = b[0][1] ^ 0x80008000u;
#pragma unroll
      for (int i = 0; i < 4; ++i) minus_b[i / 2][i % 2] = b[i / 2][i % 2] ^ 0x80008000u;
    }
  };

  // Piece m, less that of the centre.
  __device__ __forceinline__ void multiply(int m, const uint4& piece, const uint4& centre, const Matrix& matrix) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      ptx::mma<T>(x[m][j], centre, matrix.minus_b[j], false);
      ptx::mma<T>(x[m][j], piece, matrix.b[j], true);
    }
  }

  // Butterflies over channel bits 3 and (dim 128) 6, which lie in a thread's registers; the first with the sign of bits 1 and 3, which
  // swaps sum and difference where bit 1 is set. The one that is left, over bit 1, is u + w and u - w: the larger of |u + w| and |u - w| is
  // |u| + |w|, and the factor goes into the sums.
  __device__ __forceinline__ void butterflies() {
#pragma unroll
    for (int bit = 1; bit < pieces; bit *= 2)
#pragma unroll
      for (int m = 0; m < pieces; ++m) {
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
  // Two sums that together have every channel of the row, as any other two would: they tell if one is not finite.
  __device__ __forceinline__ bool finite() const { return size(0, 0, 0) < infinity; }
  __device__ __forceinline__ float largest() const {
    float top[4] = {0, 0, 0, 0};
#pragma unroll
    for (int m = 0; m < pieces; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) top[i] = fmaxf(top[i], size(m, i / 2, i % 2));
    return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
  }

  // Pieces m and m + 1 as integers. Times 0 all numbers become 0, NaN too.
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

// A warp has 16 (dim 128) or 32 (dim 64) rows of a tile: `chunks` of 16. Half h of a chunk is its rows 4 h ... 4 h + 3 and those + 8: whole
// scale groups, so that 32 accumulators are enough.
template <class T, int dim>
struct KeyPart {
  static constexpr int chunks = 128 / dim, warps = 8 / chunks;  // warps: of a tile
  int lane, group, warp;
  RowShare<dim> share;
  bool exists;
  TileLocation at;
  int row;            // the thread's first in the tile; the others are 16 c + 4 h behind it
  int left;           // of which so many exist
  std::int64_t step;  // between rows
  const T* from;      // the first row
  const T* centre;

  __device__ __forceinline__ KeyPart(const Job& job, int unit)
      : lane(threadIdx.x % 32), group(threadIdx.x / 32 / warps), warp(threadIdx.x / 32 % warps), share(lane) {
    const QuantizeParams& p = job.params;
    const int index = unit * chunks + group;
    exists = chunks == 1 || index < p.key_tiles * p.kv_heads;
    if (!exists) return;
    at = locate_tile(job, index);
    const SequenceLayout sequence = sequence_layout(p, at.sequence);
    row = warp * 16 * chunks + share.row;
    left = sequence.keys - at.tile * tile_tokens - row;
    step = p.key.token;
    from = static_cast<const T*>(p.key.data) + key_offset(p.key, sequence, at.head, at.tile * tile_tokens + row);
    centre = static_cast<const T*>(p.centre) + (static_cast<std::int64_t>(at.sequence) * p.kv_heads + at.head) * dim;
  }
  static constexpr __device__ int piece(int h, int c, int m) { return (h * chunks + c) * (dim / 32) + m; }
  __device__ __forceinline__ bool exists_row(int h, int c) const { return c * 16 + h * 4 < left; }
  // Where integers of a row go in a tile, its chunk quad + 2 m. Between rows of one thread the swizzle differs as little as this.
  __device__ __forceinline__ int to(int h, int c, int m) const {
    const int first = row * dim + swizzled<dim>(share.quad, row) * 16;
    return dim == 128 ? first + h * 4 * dim + ((m >> 1) ^ h) * 64 : (first ^ (h * 32)) + (c * 16 + h * 4) * dim;
  }
};

template <class T, int dim>
__device__ __forceinline__ void quantize_keys(const Job& job, int unit, Shared& shared) {
  using Part = KeyPart<T, dim>;
  using Row = RotatedRow<T, dim>;
  constexpr int pieces = Row::pieces, chunks = Part::chunks, warps = Part::warps;
  const QuantizeParams& p = job.params;
  const Part part(job, unit);
  if (!part.exists) return;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const bool exists = part.exists_row(h, c);
      const T* from = part.from + (exists ? c * 16 + h * 4 : 0) * part.step;
#pragma unroll
      for (int m = 0; m < pieces; ++m) fetch(shared.chunks, Part::piece(h, c, m), from + part.share.channel(m), exists);
    }
  const typename Row::Matrix matrix(part.share);
  std::uint8_t* out = p.tiles + key_tile_offset(chitu_form<dim>, part.at.index);
  ptx::wait_for_previous();  // for the sample
  ptx::wait_for_copies();

  bool nonfinite = false;  // is a key? Of the thread's, then of the tile
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Row rows[chunks];
#pragma unroll
    for (int m = 0; m < pieces; ++m) {
      const uint4 centre = load_sampled(part.centre + part.share.channel(m));
#pragma unroll
      for (int c = 0; c < chunks; ++c) rows[c].multiply(m, shared.chunks[Part::piece(h, c, m)][threadIdx.x], centre, matrix);
    }
    float top = 0;
    bool good[chunks];
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      rows[c].butterflies();
      const bool exists = part.exists_row(h, c), finite = rows[c].finite();
      nonfinite |= exists && !finite;
      good[c] = exists && finite;
      top = fmaxf(top, good[c] ? rows[c].largest() : 0);
    }
    // 32 rows of the tile share a scale: these lanes', all chunks', all warps' of the tile.
#pragma unroll
    for (const int lanes : {1, 2, 16, 4}) top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
    const int key_group = 2 * h + (part.share.g >> 1 & 1);
    const bool speaks = (part.lane & 0x17) == 0;
    float* slot = shared.numbers + (part.group * 4 + key_group) * warps;
    if (speaks) slot[part.warp] = top;
    nonfinite = barrier_or(1 + part.group, warps * 32, nonfinite);
#pragma unroll
    for (int i = 0; i < warps; i += 4) {
      const float4 of = *reinterpret_cast<const float4*>(slot + i);
      top = fmaxf(top, fmaxf(fmaxf(of.x, of.y), fmaxf(of.z, of.w)));
    }
    PassScales* passes = p.passes + 2 * part.at.index;
    if (speaks && part.warp == 0) passes[0].key[key_group] = passes[1].key[key_group] = scale_of<dim>(top);
    if (h == 1 && part.warp == 0 && part.lane == 0) mark(p, p.nonfinite_keys, part.at.index, nonfinite);
    const float inverse = inverse_of<dim>(top);
#pragma unroll
    for (int c = 0; c < chunks; ++c)
#pragma unroll
      for (int m = 0; m < pieces; m += 2) *reinterpret_cast<uint4*>(out + part.to(h, c, m)) = rows[c].pack(m, good[c] ? inverse : 0);
  }
}

}  // namespace
}  // namespace chitu::cuda
