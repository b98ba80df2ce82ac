// SPDX-License-Identifier: Apache-2.0
// Joins the pieces of a split item (schedule.h). softmax.cuh says what C is.
#pragma once

#include <cstdint>

#include "cuda/params.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/order.h"
#include "cuda/ptx/shared.h"
#include "cuda/weights/rows.cuh"

namespace chitu::cuda {

// Each warp joins its own 16 rows, and none waits. A warp writes the results of its piece to Params::pieces and counts it. The warp that
// finds all other pieces of the item counted joins them: it returns true, and `rows` and the sums are those of the whole item. It adds the
// pieces in their order, its own among them, so the bits do not depend on which piece was the last. piece: its index among the pieces of
// all split items.
template <class C>
__device__ __forceinline__ bool join(const Params& p, int piece, Rows<C>& rows, float (&rounded)[2], float (&unrounded)[2]) {
  constexpr int vectors = piece_vectors(C::dim), output_vectors = C::dim / 8;
  const int t = ptx::thread_index_again(), lane = t & 31, warp = t >> 5;
  const int pieces = pieces_of_item(p), item = piece / pieces, first = item * pieces;
  // A lane's part of a piece: vectors [i * 32] are its output; then come references and rounded sums; then the other sums.
  const auto part_of = [&](int of) { return p.pieces + (static_cast<std::int64_t>(of) * C::warps + warp) * (vectors * 32) + lane; };
  // Four numbers of the output: two channels of each row.
  const auto output = [&](int i) { return &rows.output[i * 8 / C::width][4 * i % (C::width / 2)]; };

  // Leave this piece.
  float4* const to = part_of(piece);
#pragma unroll
  for (int i = 0; i < output_vectors; ++i) {
    const float* const x = output(i);
    to[i * 32] = make_float4(x[0], x[1], x[2], x[3]);
  }
  to[output_vectors * 32] = make_float4(rows.reference[0], rows.reference[1], rounded[0], rounded[1]);
  to[(output_vectors + 1) * 32] = make_float4(unrounded[0], unrounded[1], 0, 0);

  // Count it. Only the last goes on.
  __syncwarp();
  int done = 0;
  if (lane == 0) done = ptx::count(p.pieces_done + item * most_warps + warp);
  if (__shfl_sync(~0u, done, 0) != pieces - 1) return false;
  __syncwarp();

  // The item's reference is its pieces' largest.
  rows.reference[0] = rows.reference[1] = lowest;
#pragma unroll 1
  for (int i = first; i < first + pieces; ++i) {
    const float4 x = __ldcg(part_of(i) + output_vectors * 32);
    rows.reference[0] = fmaxf(rows.reference[0], x.x);
    rows.reference[1] = fmaxf(rows.reference[1], x.y);
  }

  // Add the pieces, each scaled to that reference.
  rows.clear_output();
  rounded[0] = rounded[1] = unrounded[0] = unrounded[1] = 0;
#pragma unroll 1
  for (int i = first; i < first + pieces; ++i) {
    const float4* const from = part_of(i);
    const float4 x = __ldcg(from + output_vectors * 32), y = __ldcg(from + (output_vectors + 1) * 32);
    const float factor[2] = {ptx::exp2_approx(x.x - rows.reference[0]), ptx::exp2_approx(x.y - rows.reference[1])};
    rounded[0] = fmaf(x.z, factor[0], rounded[0]);
    rounded[1] = fmaf(x.w, factor[1], rounded[1]);
    unrounded[0] = fmaf(y.x, factor[0], unrounded[0]);
    unrounded[1] = fmaf(y.y, factor[1], unrounded[1]);
#pragma unroll
    for (int k = 0; k < output_vectors; ++k) {
      float* const z = output(k);
      const float4 w = __ldcg(from + k * 32);
      z[0] = fmaf(w.x, factor[0], z[0]);
      z[1] = fmaf(w.y, factor[0], z[1]);
      z[2] = fmaf(w.z, factor[1], z[2]);
      z[3] = fmaf(w.w, factor[1], z[3]);
    }
  }
  return true;
}

}  // namespace chitu::cuda
