// SPDX-License-Identifier: Apache-2.0
// Writes the table of a call's sequences, if they are not all alike, before all other kernels.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/params.h"

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

}  // namespace

void write_layouts(const SequenceLayout* layouts, int count, SequenceLayout* to, cudaStream_t stream) {
  for (int first = 0; first < count; first += layouts_at_once) {
    LayoutsPart part{to + first, std::min(count - first, layouts_at_once), {}};
    std::copy_n(layouts + first, part.count, part.layouts);
    launch(write_layouts_kernel, {.blocks = 1, .threads = layouts_at_once}, stream, part);
  }
}

}  // namespace chitu::cuda
