// SPDX-License-Identifier: Apache-2.0
// The end of an item: normalised rows and their log-sum-exp go to memory.
#pragma once

#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/shared.h"
#include "cuda/sm90/config.cuh"
#include "cuda/weights/rows.cuh"

namespace chitu::cuda::sm90 {

// Each warp normalises its own 16 rows and stores them, 64 channels at a time, through 2 KB of shared memory. With quantizes_queries the
// warpgroup's queries lie there until then. All reads of the item come before the first store, so that the item is handed back early. slot:
// the item's.
template <class C>
__device__ __forceinline__ void finish(const Params& p, const typename C::At at, int slot, const Rows<C>& rows, const float (&rounded)[2],
                                       const float (&unrounded)[2]) {
  using Item = typename C::Item;
  const int t = ptx::thread_index_again(), lane = t & 31, warp = t >> 5, quad = t & 3;
  const std::uint32_t item = at.item(slot), staged = at.out(warp);
  const int count = ptx::load_int(item + offsetof(Item, what)) - warp * 16;  // how many of the warp's rows exist, if positive
  auto* const out = static_cast<std::uint16_t*>(p.out.data) + ptx::load_long(item + offsetof(Item, out)) + row_offset(p.out, warp * 16);
  const float(&output_sum)[2] = C::rounded_output ? rounded : unrounded;
  const float(&lse_sum)[2] = C::rounded_lse ? rounded : unrounded;

  // Log-sum-exp. Centred keys have changed all scores of a query by the same number, the correction.
  if (p.lse.data && quad == 0) {
    float* const lse = static_cast<float*>(p.lse.data) + ptx::load_long(item + offsetof(Item, lse)) + row_offset(p.lse, warp * 16);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = (lane >> 2) + 8 * r;
      float value = ln_2 * (rows.reference[r] + (__log2f(lse_sum[r]) - C::log2_top));
      if constexpr (C::corrections) value += p.scale * ptx::load_float(item + offsetof(Item, correction) + (warp * 16 + i) * 4);
      if (i < count) lse[row_offset(p.lse, i)] = output_sum[r] > 0 ? value : __int_as_float(0xff800000);
    }
  }

  // Normalise and round. Rows that see no key are zeros.
  constexpr float unit = C::integer_values ? integer_unit_back : 1.f;
  const float inverse[2] = {output_sum[0] > 0 ? ptx::reciprocal(output_sum[0]) * unit : 0.f,
                            output_sum[1] > 0 ? ptx::reciprocal(output_sum[1]) * unit : 0.f};
  std::uint32_t packed[C::dim / 4];  // [2 i]: row r, channels 8 i + 2 quad and the next; [2 i + 1]: row r + 8
#pragma unroll
  for (int i = 0; i < C::dim / 8; ++i) {
    float2 channel = make_float2(1, 1);
    if constexpr (C::channel_scales) channel = ptx::load_float2(item + offsetof(Item, channels) + i * 32 + quad * 8);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* const pair = &rows.output[i * 8 / C::width][4 * i % (C::width / 2) + 2 * r];
      const float x = pair[0] * inverse[r] * channel.x, y = pair[1] * inverse[r] * channel.y;
      packed[2 * i + r] = p.out_bf16 ? ptx::pack_bf16_finite(x, y) : ptx::pack_f16_finite(x, y);
    }
  }

  // Hand the item back.
  ptx::barrier_arrive(at.query_empty(slot));
  if constexpr (C::quantizes_queries) ptx::named_barrier(1 + warp / 4, 128);  // from here on no warp needs the queries

    // Store: from registers to shared memory, in chunks that are swizzled against bank conflicts, and from there in whole rows.
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
      if (r < count && channel < p.dim) *reinterpret_cast<int4*>(out + row_offset(p.out, r) + channel) = x;
    }
  }
}

}  // namespace chitu::cuda::sm90
