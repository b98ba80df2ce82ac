// SPDX-License-Identifier: Apache-2.0
// The only place that starts a kernel, so that none forgets its stream, its shared memory or its check.
#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <string>

#include "chitu/error.h"

namespace chitu::cuda {

inline void check(cudaError_t e, std::source_location at = std::source_location::current()) {
  if (e == cudaSuccess) return;
  (void)cudaGetLastError();  // reported here, not by whoever calls CUDA next
  throw Error(e == cudaErrorMemoryAllocation ? ErrorCode::out_of_memory : ErrorCode::internal,
              std::string("CUDA: ") + cudaGetErrorString(e) + " (" + at.file_name() + ":" + std::to_string(at.line()) + ")");
}

struct Grid {
  unsigned blocks = 1, threads = 1;
  unsigned shared_bytes = 0;  // dynamic
  bool overlaps = false;      // may start while the kernel before it runs, for whose results it waits itself (griddepcontrol)
};

template <class Parameters>
void launch(void (*kernel)(Parameters), const Grid& grid, cudaStream_t stream, const Parameters& parameters,
            std::source_location at = std::source_location::current()) {
  if (grid.blocks == 0) return;
  if (grid.shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes)), at);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = grid.overlaps ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, parameters), at);
  check(cudaGetLastError(), at);
}

}  // namespace chitu::cuda
