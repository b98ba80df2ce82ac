// SPDX-License-Identifier: Apache-2.0
// Queries and keys of the chitu recipe: centre, rotation, INT8. Queries take the LSE's correction along.
#pragma once

#include "cuda/sm90/quantise_common.cuh"

namespace chitu::cuda::sm90 {
namespace {  // part of quantise.cu

// B fragments of the signed 16 x 16 Hadamard matrix on channel bits 0, 2, 4, 5; the sign of common/rotation.h goes along for nothing. A
// 16-byte piece is an A operand as it stands: its words are (bit 1, bit 2) = 00, 10, 01, 11, so bit 1 tells row g from row g + 8 of the
// operand and bit 2 is the upper half of k. Input bits: k = (bit 0, quad, bit 2); output bits: n = (bit 0, quad), j.
template <class T>
__device__ __forceinline__ void hadamard(int g, int quad, std::uint32_t (&b)[2][2]) {
  const int both = quad & (g >> 1);
  const std::uint32_t parity = (both ^ (both >> 1) ^ (quad & (quad >> 1))) & 1, flip = static_cast<std::uint32_t>(g & 1) << 31;
  const std::uint32_t plain = (one<T> | one<T> << 16) ^ parity * 0x80008000u;
  b[0][0] = b[1][0] = plain ^ flip;
  b[0][1] = plain ^ flip ^ 0x80000000u;
  b[1][1] = b[0][1] ^ 0x80008000u;
}

// Butterflies over channel bits 3 and (dim 128) 6, which lie in a thread's registers; the first with the sign of bits 1 and 3, which swaps
// sum and difference where bit 1 is set.
template <int pieces>
__device__ __forceinline__ void butterflies(float (&x)[pieces][2][4]) {
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

// The butterfly that is left, over bit 1: u + w and u - w. The larger of |u + w| and |u - w| is |u| + |w|, and the factor goes into the
// sums.
template <int pieces>
struct Last {
  float (&x)[pieces][2][4];
  __device__ __forceinline__ float u(int m, int j, int e) const { return x[m][j][e]; }
  __device__ __forceinline__ float w(int m, int j, int e) const { return x[m][j][e + 2]; }
  __device__ __forceinline__ float size(int m, int j, int e) const { return fabsf(u(m, j, e)) + fabsf(w(m, j, e)); }  // of the larger
  __device__ __forceinline__ float largest() const {
    float top[4] = {0, 0, 0, 0};
#pragma unroll
    for (int m = 0; m < pieces; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) top[i] = fmaxf(top[i], size(m, i / 2, i % 2));
    return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
  }
  __device__ __forceinline__ std::uint32_t pack(int m, int j, float f) const {
    const float a = u(m, j, 0) * f, b = u(m, j, 1) * f;
    return ptx::pack_i8(fmaf(w(m, j, 0), f, a), fmaf(w(m, j, 1), f, b), fmaf(w(m, j, 0), -f, a), fmaf(w(m, j, 1), -f, b));
  }
};

// A warp has 16 (dim 128) or 32 (dim 64) rows of a tile: `chunks` of 16. Half h of a chunk is its rows 4 h ... 4 h + 3 and those + 8: whole
// scale groups of queries and of keys, so that 32 accumulators are enough. Of a chunk's half a thread has one row: channels 16 quad ... +
// 15 and (dim 128) those + 64, in pieces of 8.
template <class T, int dim, bool is_key>
struct RowPart {
  static constexpr int pieces = dim / 32, chunks = 128 / dim, warps = 8 / chunks;  // warps: of a tile
  int lane, g, quad, group, warp;
  bool exists;
  TilePlace at;
  int tile_row, row;  // the warp's first row in the tile; the thread's: this and those 16 c + 4 h behind it
  int left;           // of which so many exist
  std::int64_t step;  // between rows
  const T* from;      // the first row's first channel
  const T* centre;    // the centre's

  __device__ __forceinline__ RowPart(const Job& job, int unit) {
    const Params& p = job.params;
    lane = threadIdx.x % 32;
    g = lane / 4;
    quad = lane % 4;
    group = threadIdx.x / 32 / warps;
    warp = threadIdx.x / 32 % warps;
    const int index = unit * chunks + group;
    exists = chunks == 1 || index < (is_key ? p.key_tiles * p.kv_heads : p.query_tiles * p.heads);
    if (!exists) return;
    at = place_of<!is_key>(job, index);
    const Place sequence = place(p, at.sequence);
    const View& in = is_key ? p.key : p.query;
    tile_row = warp * 16 * chunks;
    row = tile_row + (g & 3) + 8 * (g >> 2);
    left = (is_key ? sequence.keys : sequence.queries) - at.tile * tile_tokens - row;
    step = in.token;
    from = static_cast<const T*>(in.data) + sequence.batch * in.batch + at.head * in.head +
           ((is_key ? sequence.key_begin : sequence.query_begin) + at.tile * tile_tokens + row) * in.token + quad * 16;
    const int kv_head = is_key ? at.head : job.group.of(at.head);
    centre = static_cast<const T*>(p.centre) + (static_cast<std::int64_t>(at.sequence) * p.kv_heads + kv_head) * dim + quad * 16;
  }
  static constexpr __device__ int channel(int m) { return (m & 1) * 8 + (m >> 1) * 64; }  // of piece m, behind the first
  static constexpr __device__ int piece(int h, int c, int m) { return (h * chunks + c) * pieces + m; }
  __device__ __forceinline__ bool exists_row(int h, int c) const { return c * 16 + h * 4 < left; }
  // Where integers of a row go in a tile, its chunk quad + 2 m. Between rows of one thread the swizzle differs as little as this.
  __device__ __forceinline__ int to(int h, int c, int m) const {
    const int first = row * dim + swizzled<dim>(quad, row) * 16;
    return dim == 128 ? first + h * 4 * dim + ((m >> 1) ^ h) * 64 : (first ^ (h * 32)) + (c * 16 + h * 4) * dim;
  }
};

// The corrections q . centre, from the pieces that are still in shared memory: all that queries need the sample for.
template <class T, int dim>
__device__ __forceinline__ void correct(const Job& job, int unit, Shared& shared) {
  using Part = RowPart<T, dim, false>;
  constexpr int pieces = Part::pieces, chunks = Part::chunks;
  const Params& p = job.params;
  const Part part(job, again(unit));
  ptx::wait_for_previous();
  float dot[2][chunks][4] = {};
#pragma unroll
  for (int m = 0; m < pieces; ++m) {
    const uint4 centre = load_sampled(part.centre + Part::channel(m));
    const std::uint32_t b[2] = {part.g & 1 ? centre.y : centre.x, part.g & 1 ? centre.w : centre.z};  // even columns: bit 1 clear; odd: set
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int c = 0; c < chunks; ++c) mma<T>(dot[h][c], shared.pieces[Part::piece(h, c, m)][threadIdx.x], b, true);
  }
  if (part.quad != 0) return;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const float all = dot[h][c][0] + dot[h][c][3];  // not finite if a number of the row is not
      const bool finite = fabsf(all) < infinity;
      p.correction[part.at.index * tile_tokens + part.row + c * 16 + h * 4] = finite ? all : 0;
      if (!finite) p.spoilt_queries[part.at.index] = 1, *p.spoilt = 1;
    }
}

template <class T, int dim, bool is_key>
__device__ __forceinline__ void rotate(const Job& job, int unit, Shared& shared) {
  using Part = RowPart<T, dim, is_key>;
  constexpr int pieces = Part::pieces, chunks = Part::chunks, warps = Part::warps;
  constexpr float rotation_scale = dim == 128 ? 0.08838834764831845f : 0.125f;
  const Params& p = job.params;
  const Part part(job, unit);
  if (!part.exists) return;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const bool exists = part.exists_row(h, c);
      const T* from = part.from + (exists ? c * 16 + h * 4 : 0) * part.step;
#pragma unroll
      for (int m = 0; m < pieces; ++m) fetch(shared.pieces, Part::piece(h, c, m), from + Part::channel(m), exists);
    }
  std::uint32_t b[2][2], minus_b[2][2];
  hadamard<T>(part.g, part.quad, b);
#pragma unroll
  for (int i = 0; i < 4; ++i) minus_b[i / 2][i % 2] = b[i / 2][i % 2] ^ 0x80008000u;
  std::uint8_t* out = is_key ? p.tiles + part.at.index * 2 * tile_tokens * dim : p.queries + part.at.index * tile_tokens * dim;
  if (is_key) ptx::wait_for_previous();  // for the sample; queries do not need it yet
  wait_for_pieces();

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float y[chunks][pieces][2][4];
#pragma unroll
    for (int m = 0; m < pieces; ++m) {
      uint4 centre;
      if constexpr (is_key) centre = load_sampled(part.centre + Part::channel(m));
#pragma unroll
      for (int c = 0; c < chunks; ++c) {
        const uint4 x = shared.pieces[Part::piece(h, c, m)][threadIdx.x];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if constexpr (is_key) mma<T>(y[c][m][j], centre, minus_b[j], false);
          mma<T>(y[c][m][j], x, b[j], is_key);
        }
      }
    }
    float top[chunks];
    bool good[chunks];
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      butterflies(y[c]);
      const Last<pieces> last{y[c]};
      // Two sums that together have every channel of the row, as any other two would: they tell if one is not finite.
      const bool exists = part.exists_row(h, c), finite = last.size(0, 0, 0) < infinity;
      if (is_key && exists && !finite) p.spoilt_keys[part.at.index] = 1, *p.spoilt = 1;  // of queries, correct() does
      good[c] = exists && finite;
      top[c] = good[c] ? last.largest() : 0;
      top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], 1));
      top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], 2));
      top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], 16));  // rows r and r + 8
    }
    if constexpr (is_key) {  // 32 rows of the tile share a scale: these lanes, all chunks, all warps of the tile
#pragma unroll
      for (int c = 1; c < chunks; ++c) top[0] = fmaxf(top[0], top[c]);
      top[0] = fmaxf(top[0], __shfl_xor_sync(~0u, top[0], 4));
      const int key_group = 2 * h + (part.g >> 1 & 1);
      const bool speaks = (part.lane & 0x17) == 0;
      float* slot = shared.numbers + (part.group * 4 + key_group) * warps;
      if (speaks) slot[part.warp] = top[0];
      tile_barrier(1 + part.group, warps * 32);
#pragma unroll
      for (int i = 0; i < warps; i += 4) {
        const float4 of = *reinterpret_cast<const float4*>(slot + i);
        top[0] = fmaxf(top[0], fmaxf(fmaxf(of.x, of.y), fmaxf(of.z, of.w)));
      }
#pragma unroll
      for (int c = 1; c < chunks; ++c) top[c] = top[0];
      PassScales* passes = p.passes + 2 * part.at.index;
      if (speaks && part.warp == 0)
        passes[0].key[key_group] = passes[1].key[key_group] = divide(fmaxf(top[0] * rotation_scale, smallest_maximum), 127);
    }
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      if (!is_key && part.quad == 0 && part.g < 4)
        p.query_scale[(part.at.index * tile_tokens + part.tile_row) / 2 + part.g + c * 8 + h * 4] =
            divide(fmaxf(top[c] * rotation_scale, smallest_maximum), 127);
      // Times 0 all numbers become 0, NaN too.
      const float inverse = divide(good[c] ? 127 : 0, fmaxf(top[c], smallest_maximum)),
                  factor = !is_key && p.scale < 0 ? -inverse : inverse;
      const Last<pieces> last{y[c]};
#pragma unroll
      for (int m = 0; m < pieces; m += 2)
        *reinterpret_cast<uint4*>(out + part.to(h, c, m)) =
            make_uint4(last.pack(m, 0, factor), last.pack(m, 1, factor), last.pack(m + 1, 0, factor), last.pack(m + 1, 1, factor));
    }
  }
  if constexpr (!is_key) correct<T, dim>(job, unit, shared);
}

}  // namespace
}  // namespace chitu::cuda::sm90
