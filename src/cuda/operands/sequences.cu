// SPDX-License-Identifier: Apache-2.0
// The table of a packed call's sequences, before all other kernels.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/params.h"

namespace chitu::cuda {
namespace {

constexpr int places_at_once = 62;

// A part of the table, as an argument of a kernel: so it is copied by the launch and the host's memory need not live on.
struct PlacesPart {
  Place* to;
  int count;
  Place places[places_at_once];
};
static_assert(sizeof(PlacesPart) <= 4096, "the arguments of a kernel");

__global__ void __launch_bounds__(places_at_once) describe_kernel(const __grid_constant__ PlacesPart part) {
  if (threadIdx.x < part.count) part.to[threadIdx.x] = part.places[threadIdx.x];
}

}  // namespace

void describe(const Place* places, int count, Place* to, cudaStream_t stream) {
  for (int first = 0; first < count; first += places_at_once) {
    PlacesPart part{to + first, std::min(count - first, places_at_once), {}};
    std::copy_n(places + first, part.count, part.places);
    launch(describe_kernel, {.blocks = 1, .threads = places_at_once}, stream, part);
  }
}

}  // namespace chitu::cuda
