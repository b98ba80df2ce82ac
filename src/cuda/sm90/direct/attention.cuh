// SPDX-License-Identifier: Apache-2.0
// The direct kernel: its barriers, its warps' roles, its launch.
#pragma once

#include "cuda/launch.h"
#include "cuda/sm90/direct/consumer.cuh"
#include "cuda/sm90/direct/producer.cuh"
#include "cuda/sm90/tensor_map.h"

namespace chitu::cuda::sm90::direct {

struct Launch {
  Params params;
  CUtensorMap queries, keys, values;  // [batch][head][token][channel]
};

template <class C>
__global__ void __launch_bounds__(C::threads, 1) direct_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const typename C::At at{ptx::shared_address(shared)};
  // The shuffle tells the compiler that all threads of a warp agree, so descriptors stay in uniform registers.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);

  // Barriers.
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      ptx::barrier_init(at.item_written(i), 1);
      ptx::barrier_init(at.item_empty(i), C::consumers + 1);
    }
    for (int i = 0; i < C::query_slots; ++i) {
      ptx::barrier_init(at.query_full(i), 1);
      ptx::barrier_init(at.query_empty(i), C::consumers);
    }
    for (int i = 0; i < C::slots; ++i) {
      ptx::barrier_init(at.key_full(i), 1);
      ptx::barrier_init(at.key_empty(i), C::consumers);
      ptx::barrier_init(at.value_full(i), 1);
      ptx::barrier_init(at.value_empty(i), C::consumers);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();

  // Roles. The last warpgroup produces, and leaves its registers to the others.
  if (warpgroup == C::warpgroups) {
    ptx::give_registers<C::producer_registers>();
    if (threadIdx.x / 32 == C::warps) produce_items<C>(launch.params, launch.queries, at);
    if (threadIdx.x == C::consumers + 32) produce_tiles<C>(launch.keys, launch.values, at);
  } else {
    ptx::take_registers<C::registers>();
    Consumer<C>{launch.params, at, warpgroup}.run();
  }
}

template <class C>
void start(const Params& params, const Operands& operands, int processors, cudaStream_t stream) {
  const std::int64_t items = params.split.whole + std::int64_t{params.split_items} * params.split.pieces;
  // Without keys no tile is brought, and a tensor without elements has no map.
  const bool keys = operands.key.shape[2] > 0;
  launch(direct_kernel<C>,
         {.blocks = static_cast<unsigned>(items < processors ? items : processors),
          .threads = C::threads,
          .shared_bytes = sizeof(typename C::Shared),
          .overlaps = true},
         stream,
         Launch{params, tensor_map(operands.query, C::rows), tensor_map(keys ? operands.key : operands.query, C::keys),
                tensor_map(keys ? operands.value : operands.query, C::keys)});
}

}  // namespace chitu::cuda::sm90::direct
