// SPDX-License-Identifier: Apache-2.0
// The end of an item: normalised rows and their log-sum-exp go to memory.
#pragma once

#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/shared.h"
#include "cuda/sm90/config.cuh"

namespace chitu::cuda::sm90 {

// Joins the pieces of a split item, each warp on its own. True for the last to be done: it has the whole item's o, references m and sums
// then, made in the order of the pieces, so that the bits do not depend on which was the last.
template <class C>
__device__ __forceinline__ bool join(const Params& p, int piece, float (&o)[C::halves][C::width / 2], float (&m)[2], float (&rounded)[2],
                                     float (&unrounded)[2]) {
  constexpr int vectors = piece_vectors(C::dim), of_o = C::dim / 8;
  const int t = ptx::thread_index_again(), lane = t & 31, warp = t >> 5, pieces = p.split.pieces, item = piece / pieces,
            first = item * pieces;
  const auto piece_at = [&](int of) { return p.pieces + (static_cast<std::int64_t>(of) * C::warps + warp) * (vectors * 32) + lane; };
  float4* const mine = piece_at(piece);
#pragma unroll
  for (int i = 0; i < of_o; ++i) {
    const float* const x = &o[i * 8 / C::width][4 * i % (C::width / 2)];
    mine[i * 32] = make_float4(x[0], x[1], x[2], x[3]);
  }
  mine[of_o * 32] = make_float4(m[0], m[1], rounded[0], rounded[1]);
  mine[(of_o + 1) * 32] = make_float4(unrounded[0], unrounded[1], 0, 0);
  __syncwarp();
  int done = 0;
  if (lane == 0) done = ptx::count(p.pieces_done + item * most_warps + warp);
  if (__shfl_sync(~0u, done, 0) != pieces - 1) return false;
  __syncwarp();
  m[0] = m[1] = lowest;
#pragma unroll 1
  for (int i = first; i < first + pieces; ++i) {
    const float4 x = __ldcg(piece_at(i) + of_o * 32);
    m[0] = fmaxf(m[0], x.x);
    m[1] = fmaxf(m[1], x.y);
  }
#pragma unroll
  for (auto& half : o)
#pragma unroll
    for (float& x : half) x = 0;
  rounded[0] = rounded[1] = unrounded[0] = unrounded[1] = 0;
#pragma unroll 1
  for (int i = first; i < first + pieces; ++i) {
    const float4* const from = piece_at(i);
    const float4 x = __ldcg(from + of_o * 32), y = __ldcg(from + (of_o + 1) * 32);
    const float a[2] = {ptx::exp2_approx(x.x - m[0]), ptx::exp2_approx(x.y - m[1])};
    rounded[0] = fmaf(x.z, a[0], rounded[0]);
    rounded[1] = fmaf(x.w, a[1], rounded[1]);
    unrounded[0] = fmaf(y.x, a[0], unrounded[0]);
    unrounded[1] = fmaf(y.y, a[1], unrounded[1]);
#pragma unroll
    for (int k = 0; k < of_o; ++k) {
      float* const z = &o[k * 8 / C::width][4 * k % (C::width / 2)];
      const float4 w = __ldcg(from + k * 32);
      z[0] = fmaf(w.x, a[0], z[0]);
      z[1] = fmaf(w.y, a[0], z[1]);
      z[2] = fmaf(w.z, a[1], z[2]);
      z[3] = fmaf(w.w, a[1], z[3]);
    }
  }
  return true;
}

// Each warp on its own: normalises its 16 rows and stores them, 64 channels at a time, through its 2 KB of shared memory, which with
// quantizes_queries its warpgroup's queries have until then. Whatever has to be read is read before anything is stored. m: the
// references; o_unit: what o is to be multiplied by beside.
template <class C>
__device__ __forceinline__ void finish(const Params& p, const typename C::At at, int buffer, const float (&o)[C::halves][C::width / 2],
                                       const float (&m)[2], const float (&output_sum)[2], const float (&lse_sum)[2], float o_unit) {
  using Item = typename C::Item;
  const int t = ptx::thread_index_again(), lane = t & 31, warp = t >> 5, quad = t & 3;
  const std::uint32_t item = at.item(buffer), staged = at.out(warp);
  const int rows = ptx::load_int(item + offsetof(Item, what)) - warp * 16;
  auto* const out = static_cast<std::uint16_t*>(p.out.data) + ptx::load_long(item + offsetof(Item, out)) + warp * 16 * p.out.token;
  if (p.lse.data && quad == 0) {
    float* const lse = static_cast<float*>(p.lse.data) + ptx::load_long(item + offsetof(Item, lse)) + warp * 16 * p.lse.token;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = (lane >> 2) + 8 * r;
      float value = ln_2 * (m[r] + (__log2f(lse_sum[r]) - C::log2_top));
      if constexpr (C::corrections) value += p.scale * ptx::load_float(item + offsetof(Item, correction) + (warp * 16 + i) * 4);
      if (i < rows) lse[i * p.lse.token] = output_sum[r] > 0 ? value : __int_as_float(0xff800000);
    }
  }
  const float inverse[2] = {output_sum[0] > 0 ? ptx::reciprocal(output_sum[0]) * o_unit : 0.f,
                            output_sum[1] > 0 ? ptx::reciprocal(output_sum[1]) * o_unit : 0.f};
  std::uint32_t packed[C::dim / 4];  // [2 i]: row r, channels 8 i + 2 quad and the next; [2 i + 1]: row r + 8
#pragma unroll
  for (int i = 0; i < C::dim / 8; ++i) {
    float2 channel = make_float2(1, 1);
    if constexpr (C::channel_scales) channel = ptx::load_float2(item + offsetof(Item, channels) + i * 32 + quad * 8);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* const pair = &o[i * 8 / C::width][4 * i % (C::width / 2) + 2 * r];
      const float x = pair[0] * inverse[r] * channel.x, y = pair[1] * inverse[r] * channel.y;
      packed[2 * i + r] = p.out_bf16 ? ptx::pack_bf16(x, y) : ptx::pack_f16(x, y);
    }
  }
  ptx::barrier_arrive(at.query_empty(buffer));
  if constexpr (C::quantizes_queries) ptx::named_barrier(1 + warp / 4, 128);  // no warp needs the queries any more
#pragma unroll
  for (int part = 0; part < C::dim / 64; ++part) {
    if (part * 64 >= p.dim) break;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const std::uint32_t* x = packed + part * 16 + 2 * i;
      ptx::store_matrix(staged + (lane & 15) * 128 + swizzled<128>(i + (lane >> 4), lane) * 16, x[0], x[1], x[2], x[3]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i * 4 + (lane >> 3), chunk = lane & 7, channel = part * 64 + chunk * 8;
      const int4 x = ptx::load_int4(staged + r * 128 + swizzled<128>(chunk, r) * 16);
      if (r < rows && channel < p.dim) *reinterpret_cast<int4*>(out + r * p.out.token + channel) = x;
    }
  }
}

}  // namespace chitu::cuda::sm90
