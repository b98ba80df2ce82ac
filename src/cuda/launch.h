// SPDX-License-Identifier: Apache-2.0
// The only place that starts a kernel, so that none forgets its stream, its shared memory or its check.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "chitu/error.h"
#include "cuda/device.h"

namespace chitu::cuda {

// Builtins give the place, because clang 14 has no std::source_location.
inline void check(cudaError_t e, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (e == cudaSuccess) return;
  (void)cudaGetLastError();  // clears the error: it is reported here, not by whoever calls CUDA next
  throw Error(e == cudaErrorMemoryAllocation ? ErrorCode::out_of_memory : ErrorCode::internal,
              std::string("CUDA: ") + cudaGetErrorString(e) + " (" + file + ":" + std::to_string(line) + ")");
}

struct Grid {
  unsigned blocks = 1, threads = 1;
  unsigned shared_bytes = 0;  // dynamic
  bool overlaps = false;      // may start while the kernel before it runs, and calls ptx::wait_for_previous() for its results
};

template <class Parameters>
void launch(void (*kernel)(Parameters), const Grid& grid, cudaStream_t stream, const Parameters& parameters,
            const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (grid.blocks == 0) return;
  if (grid.shared_bytes > 48 * 1024) allow_shared_memory(reinterpret_cast<const void*>(kernel), static_cast<int>(grid.shared_bytes));
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = grid.overlaps && launches_overlap() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, parameters), file, line);  // the launch's own error, not one that the caller left
}

}  // namespace chitu::cuda
