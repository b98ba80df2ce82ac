// SPDX-License-Identifier: Apache-2.0
// The attention kernel: its barriers, its warps' roles, its launch. The files of instances/ include this.
#pragma once

#include "cuda/launch.h"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/kernels.h"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/tensor_map.h"

namespace chitu::cuda::sm90 {

struct Launch {
  Params params;
  CUtensorMap queries_as_given;  // with quantizes_queries: [batch][head][token][channel]
  float opaque_zero;             // of weigh() and produce_items()
};

template <class C>
__global__ void __launch_bounds__(C::threads, 1) attention_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const typename C::At at{ptx::shared_address(shared)};
  // The shuffle tells the compiler that all threads of a warp agree, so descriptors stay in uniform registers.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);

  // Barriers.
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::item_slots; ++i) {
      ptx::barrier_init(at.item_written(i), 1);
      ptx::barrier_init(at.query_full(i), 1);
      ptx::barrier_init(at.query_empty(i), C::consumers + 2);
    }
    for (int i = 0; i < C::key_slots; ++i) {
      ptx::barrier_init(at.full(i), 1);
      ptx::barrier_init(at.empty(i), C::consumers);
    }
    for (int i = 0; C::separate_value_barriers && i < C::value_slots; ++i) {
      ptx::barrier_init(at.value_full(i), 1);
      ptx::barrier_init(at.value_empty(i), C::consumers);
    }
    ptx::barrier_init(at.block_read(), C::consumers);
    ptx::barrier_init_fence();
  }

  // Prepare what all items share.
  if constexpr (C::quantizes_queries) write_hadamard<C>(launch.params.dim, at.hadamard(), threadIdx.x, C::threads);
  __syncthreads();

  // Roles. The last warpgroup produces, and leaves its registers to the others.
  if (warpgroup == C::warpgroups) {
    ptx::give_registers<C::producer_registers>();
    if (threadIdx.x == C::consumers) produce_tiles<C>(launch.params, at);
    if (threadIdx.x == C::consumers + 32) produce_items<C>(launch.params, at, launch.opaque_zero);
    if (threadIdx.x == C::consumers + 64) produce_queries<C>(launch.params, launch.queries_as_given, at);
  } else {
    ptx::take_registers<C::registers>();
    Consumer<C>{launch.params, at, warpgroup, launch.opaque_zero}.run();
  }
}

template <class C>
void start(const Params& params, const Tensor& query, int processors, cudaStream_t stream) {
  const std::int64_t items = params.split_on_gpu ? processors : params.split.whole + std::int64_t{params.split_items} * params.split.pieces;
  launch(attention_kernel<C>,
         {.blocks = static_cast<unsigned>(items < processors ? items : processors),
          .threads = C::threads,
          .shared_bytes = sizeof(typename C::Shared),
          .overlaps = true},
         stream, Launch{params, C::quantizes_queries ? query_map(query, C::form.block_queries) : CUtensorMap{}, 0.f});
}

}  // namespace chitu::cuda::sm90
