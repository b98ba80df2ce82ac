// SPDX-License-Identifier: Apache-2.0
// The end of an item in a kernel that reads 16-bit operands as they are: normalised rows and their log-sum-exp go to memory.
#pragma once

#include "cuda/ptx/convert.h"
#include "cuda/ptx/shared.h"
#include "cuda/weights/repair.cuh"
#include "cuda/weights/rows.cuh"

namespace chitu::cuda {

// Lane q of a quad has w[i], the i-th of four words of which the quad has one each. It gets the four words number q, in the order of the
// lanes.
__device__ __forceinline__ uint4 transposed(const std::uint32_t (&w)[4], int q) {
  const bool odd = q & 1, high = q & 2;
  const std::uint32_t x = __shfl_xor_sync(~0u, odd ? w[0] : w[1], 1), y = __shfl_xor_sync(~0u, odd ? w[2] : w[3], 1);
  const std::uint32_t a[2] = {odd ? x : w[0], odd ? w[1] : x}, b[2] = {odd ? y : w[2], odd ? w[3] : y};  // numbers q & 1 and 2 + (q & 1)
  const std::uint32_t c0 = __shfl_xor_sync(~0u, high ? a[0] : b[0], 2), c1 = __shfl_xor_sync(~0u, high ? a[1] : b[1], 2);
  return high ? make_uint4(c0, c1, b[0], b[1]) : make_uint4(a[0], a[1], c0, c1);
}

// Each warp normalises its own 16 rows and stores them from its registers: the four lanes of a row trade numbers until each has 16 bytes
// that follow each other. Rows with numbers that are not finite are then computed again. item: its address in shared memory.
template <class C>
__device__ __forceinline__ void finish(const Params& p, const typename C::At at, std::uint32_t item, const Rows<C>& rows,
                                       const float (&sums)[2]) {
  using Item = typename C::Item;
  const int t = ptx::thread_index_again(), quad = t & 3;
  const int4 place = ptx::load_int4(item + offsetof(Item, place));  // sequence, head, row, queries
  const SequenceLayout s = sequence_layout(p, place.x);
  const int first = place.z + (t >> 5) * 16;  // the warp's first row
  unsigned bad[2];                            // a bit for each lane that has such a number
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = (t >> 2 & 7) + 8 * r;
    const bool exists = first + row < place.w;

    // Log-sum-exp. Rows that see no key have zeros and minus infinity.
    if (p.lse.data && quad == 0 && exists)
      static_cast<float*>(p.lse.data)[query_offset(p.lse, s, place.y, first + row)] =
          sums[r] == 0 ? -infinity : ln_2 * (rows.reference[r] + __log2f(sums[r]));

    // Normalise, round and store.
    const float inverse = sums[r] == 0 ? 0.f : ptx::reciprocal(sums[r]);
    auto* const out = static_cast<std::uint16_t*>(p.out.data) + query_offset(p.out, s, place.y, first + row);
    float trace = 0;  // times 0, a number that is not finite is NaN
#pragma unroll
    for (int i = 0; i < C::dim; i += 32) {
      std::uint32_t words[4] = {};
#pragma unroll
      for (int w = 0; w < 4 && i + 8 * w < C::dim; ++w) {
        const float* const pair = &rows.output[0][i / 2 + 4 * w + 2 * r];
        trace = fmaf(pair[0], 0.f, fmaf(pair[1], 0.f, trace));
        const float x = pair[0] * inverse, y = pair[1] * inverse;
        words[w] = p.out_bf16 ? ptx::pack_bf16_finite(x, y) : ptx::pack_f16_finite(x, y);
      }
      const uint4 x = transposed(words, quad);
      if (exists && i + quad * 8 < p.dim) *reinterpret_cast<uint4*>(out + i + quad * 8) = x;
    }
    bad[r] = __ballot_sync(~0u, exists && trace != 0);
  }

  // Compute rows again.
  if (bad[0] | bad[1]) [[unlikely]] {
    __syncwarp();  // they are stored
#pragma unroll 1
    for (int row = 0; row < 16; ++row)
      if ((row < 8 ? bad[0] : bad[1]) >> row % 8 * 4 & 15)
        repair<C>(p, place.x, place.y, first + row, ptx::load_int2(at.range() + ((t >> 5) * 16 + row) * 8));
  }
}

}  // namespace chitu::cuda
