// SPDX-License-Identifier: Apache-2.0
// Hopper's row of the kernel table.
#pragma once

#include <optional>
#include <string>

#include "cuda/device.h"
#include "cuda/sm90/params.h"
#include "dispatch.h"

namespace chitu::cuda::sm90 {

std::string refusal(const Problem& problem);
void run(const Problem& problem);

// A call with at least one query, in its two steps: its workspace lives as long as this does. Benchmarks time the steps apart.
class Call {
 public:
  explicit Call(const Problem& problem);
  void quantise() const;
  void attend() const;

 private:
  Params params_;
  int dim_, device_;
  bool bf16_;
  cudaStream_t stream_;
  DeviceGuard guard_;
  std::optional<StreamMemory> memory_;
};

}  // namespace chitu::cuda::sm90
