// SPDX-License-Identifier: Apache-2.0
// Queries of the chitu recipe: rotation, INT8, the LSE's correction. The warpgroups of the attention kernel quantise them, each its own
// rows when an item begins. A pass by the quantizer would write them and read them again.
#pragma once

#include "cuda/operands/rotation.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/shared.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/sm90/config.cuh"
#include "cuda/weights/softmax.cuh"

namespace chitu::cuda::sm90 {

// Writes the signed 64 x 64 Hadamard matrix as wgmma's B operand, or smaller ones on its diagonal: the blocks of the rotation of the
// tensors' dim. A thread gets columns 8 i + 2 quad and the next of the product; its rows are in such an order that these columns are
// channels 16 quad ... + 15. `threads` threads call it; this is `thread`.
template <class C>
__device__ __forceinline__ void write_hadamard(int tensor_dim, std::uint32_t to, int thread, int threads) {
  using T = typename C::Input;
  const int bits = C::padded ? rotation_block(tensor_dim) - 1 : ~0;  // of a channel's number in its block
  for (int i = thread; i < 64 * 8; i += threads) {
    const int n = i / 8, chunk = i % 8, channel = (n >> 1 & 3) * 16 + (n >> 3) * 2 + (n & 1);
    std::uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const auto number = [&](int k) {
        const int sign = (__popc(k & channel & bits) & 1) ^ rotation_negates(k);
        return (k ^ channel) & ~bits ? 0u : rotation_one<T> | sign << 15;
      };
      words[w] = number(chunk * 8 + 2 * w) | number(chunk * 8 + 2 * w + 1) << 16;
    }
    ptx::store_uint4(to + n * 128 + swizzled<128>(chunk, n) * 16, make_uint4(words[0], words[1], words[2], words[3]));
  }
  ptx::written_for_wgmma();
}

// The corrections q . centre of a warp's rows. They are exact, because the centre is in the type of the queries. The product is
// mma.m16n8k16. The sum does not depend on the order of the channels, so a 16-byte piece of a row is an operand as it stands.
//
// One query row is both rows g and g + 8 of the operand, each with half of its channels:
//
//   words of a piece          w0       w1       w2       w3
//   the operand's row         g        g + 8    g        g + 8
//   the centre in B           even columns: its channels of w0 and w2; odd columns: those of w1 and w3
//
// So dot[0] (row g, an even column) + dot[3] (row g + 8, an odd column) is q . centre.
template <class C>
__device__ __forceinline__ void correct_lse(const typename C::At at, std::uint32_t item, int warp, int lane) {
  using Item = typename C::Item;
  const int g = lane / 4, quad = lane % 4;
  float dot[2][4] = {};
#pragma unroll
  for (int panel = 0; panel < C::dim / 64; ++panel)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int chunk = quad * 2 + c;
      const uint4 centre = ptx::load_uint4(item + offsetof(Item, centre) + panel * 128 + chunk * 16);
      const std::uint32_t b[2] = {g & 1 ? centre.y : centre.x, g & 1 ? centre.w : centre.z};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = warp * 16 + h * 8 + g;
        ptx::mma<typename C::Input>(
            dot[h], ptx::load_uint4(at.block(0) + (panel * C::form.block_queries + row) * 128 + swizzled<128>(chunk, row) * 16), b, true);
      }
    }
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (quad == 0) ptx::store_float(item + offsetof(Item, correction) + (warp * 16 + h * 8 + g) * 4, dot[h][0] + dot[h][3]);
}

// The thread's numbers of its two rows, rotated but for the butterfly over the last channel bit of dim 128. Row r has those with
// i / 2 % 2 == r.
template <class C>
using RotatedQueries = float[C::dim / 64][32];  // [panel]: channels 64 panel ..., rotated among these 64

// Starts and commits the products with the Hadamard matrix.
template <class C>
__device__ __forceinline__ void rotate_queries(const typename C::At at, int warpgroup, RotatedQueries<C>& x) {
  const auto queries = ptx::Matrix<128>::at(at.block(0) + warpgroup * 64 * 128), hadamard = ptx::Matrix<128>::at(at.hadamard());
  ptx::wgmma_fence();
#pragma unroll
  for (int panel = 0; panel < C::dim / 64; ++panel)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const auto a = queries.plus(panel * C::form.block_queries * 128 + k * 32).descriptor(), b = hadamard.plus(k * 32).descriptor();
      k ? ptx::scores<C::input, true>(x[panel], a, b) : ptx::scores<C::input, false>(x[panel], a, b);
    }
  ptx::wgmma_commit();
}

// Puts zeros for rows that are not finite, and says so; and for rows behind the end of the sequence.
template <class C>
__device__ __forceinline__ void leave_out_nonfinite(const Params& p, std::uint32_t item, int warp, int lane, RotatedQueries<C>& x) {
  using Item = typename C::Item;
  constexpr int panels = C::dim / 64;
  // A rotated number is a sum of all numbers of its block, so one of each block tells if something is not finite. Without `padded` a block
  // has a panel or more. With `padded` it may have 8 channels; the thread has 16 in each panel.
  const int left = ptx::load_int(item + offsetof(Item, what)) - warp * 16 - lane / 4;
  bool good[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if constexpr (C::padded) {
      float sum = 0;
#pragma unroll
      for (const auto& panel : x) sum += fabsf(panel[2 * r]) + fabsf(panel[2 * r + 16]);
      good[r] = all_of_quad(8 * r < left && sum < infinity);
    } else {
      good[r] = 8 * r < left && fabsf(x[0][2 * r]) + fabsf(x[panels - 1][2 * r]) < infinity;
    }
  }
  if (!__all_sync(~0u, good[0] && good[1])) [[unlikely]] {
    if ((0 < left && !good[0]) || (8 < left && !good[1])) {
      const int4 queries = ptx::load_int4(item + offsetof(Item, queries));
      p.nonfinite_queries[queries.x + (queries.z + warp * 16) / tile_tokens] = 1;
      *p.any_nonfinite = 1;
    }
#pragma unroll
    for (auto& panel : x)
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (!good[i >> 1 & 1]) panel[i] = 0;
  }
}

// All warps of a warpgroup call it. It reads the block that the producer has brought, and writes Item's scales and corrections, and the
// operand at Config::At::query. A thread has a quarter of two of its warp's 16 rows, row lane / 4 and the one 8 behind it. The scales of
// two such rows stand side by side, and contain what Consumer::query_scales() says.
template <class C>
__device__ __forceinline__ void quantize_queries(const Params& p, const typename C::At at, std::uint32_t item, int warpgroup) {
  using Item = typename C::Item;
  constexpr int dim = C::dim, panels = dim / 64;
  // With two panels in one block the butterfly over the last channel bit is left. It gives u + w and u - w; the larger of their sizes is
  // |u| + |w|.
  constexpr bool joined = panels == 2 && !C::padded;
  const int t = ptx::thread_index_again(), lane = t & 31, warp = t >> 5, quad = t & 3;
  RotatedQueries<C> x;
  rotate_queries<C>(at, warpgroup, x);
  if (p.lse.data) correct_lse<C>(at, item, warp, lane);
  ptx::wgmma_wait(x);
  ptx::barrier_arrive(at.block_read());
  leave_out_nonfinite<C>(p, item, warp, lane, x);

  // Scales.
  float tops[4] = {0, 0, 0, 0};  // two for each row
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float u = fabsf(x[0][i]), w = fabsf(x[panels - 1][i]);
    tops[i % 4] = fmaxf(tops[i % 4], joined ? u + w : fmaxf(u, w));
  }
  const RotationBlock<dim, C::padded> block{p.dim};
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float top = quad_maximum(fmaxf(tops[2 * r], tops[2 * r + 1]));
    const float factor_of_scores = fabsf(p.scale) * log2_e * block.scale_of(top);
    if (quad == 0) ptx::store_float(item + offsetof(Item, query_scale) + ((warp * 8 + lane / 4) * 2 + r) * 4, factor_of_scores);
    const float inverse = block.inverse_of(top);
    factor[r] = p.scale < 0 ? -inverse : inverse;
  }

  // Integers.
#pragma unroll
  for (int i = 0; i < 32; ++i) x[0][i] *= factor[i >> 1 & 1];
  ptx::named_barrier(1 + warpgroup, 128);  // the integers go where the warps staged the item before: all must have stored it
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int panel = 0; panel < panels; ++panel) {
      const float sign = panel ? -factor[r] : factor[r];
      const auto number = [&](int i, int e) {
        const int n = 4 * i + 2 * r + e;
        if (joined) return fmaf(x[panels - 1][n], sign, x[0][n]);
        return panel ? x[panel][n] * factor[r] : x[0][n];
      };
      const auto word = [&](int i) { return ptx::pack_i8(number(i, 0), number(i, 1), number(i + 1, 0), number(i + 1, 1)); };
      const int row = (warp & 3) * 16 + r * 8 + lane / 4;
      ptx::store_uint4(at.query(0, warpgroup) + row * dim + swizzled<dim>(quad + 4 * panel, row) * 16,
                       make_uint4(word(0), word(2), word(4), word(6)));
    }
  ptx::written_for_wgmma();
  ptx::named_barrier(1 + warpgroup, 128);
}

}  // namespace chitu::cuda::sm90
