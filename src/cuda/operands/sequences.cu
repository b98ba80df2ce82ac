// SPDX-License-Identifier: Apache-2.0
// Writes the table of a call's sequences, if they are not all alike, before all other kernels.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/params.h"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {

constexpr int layouts_at_once = 62;

// A part of the table, as the argument of a kernel: the launch copies it, so the host's memory need not live on.
struct LayoutsPart {
  SequenceLayout* to;
  int count;
  SequenceLayout layouts[layouts_at_once];
};
static_assert(sizeof(LayoutsPart) <= 4096, "the arguments of a kernel");

__global__ void __launch_bounds__(layouts_at_once) write_layouts_kernel(const __grid_constant__ LayoutsPart part) {
  if (threadIdx.x < part.count) part.to[threadIdx.x] = part.layouts[threadIdx.x];
}

// Counters of items and pieces, for kernels that no quantizer prepares.
__global__ void __launch_bounds__(256) clear_counters_kernel(const __grid_constant__ QuantizeParams p) {
  ptx::let_next_start();
  ptx::wait_for_previous();
  if (threadIdx.x == 0) *p.items_taken = 0;
  for (int i = threadIdx.x; i < split_item_count(p) * most_warps; i += 256) p.pieces_done[i] = 0;
}

}  // namespace

void clear_counters(const QuantizeParams& params, cudaStream_t stream) {
  launch(clear_counters_kernel, {.blocks = 1, .threads = 256, .overlaps = true}, stream, params);
}

void write_layouts(const SequenceLayout* layouts, int count, SequenceLayout* to, cudaStream_t stream) {
  for (int first = 0; first < count; first += layouts_at_once) {
    LayoutsPart part{to + first, std::min(count - first, layouts_at_once), {}};
    std::copy_n(layouts + first, part.count, part.layouts);
    launch(write_layouts_kernel, {.blocks = 1, .threads = layouts_at_once}, stream, part);
  }
}

}  // namespace chitu::cuda
