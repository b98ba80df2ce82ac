// SPDX-License-Identifier: Apache-2.0
// Hopper's rows of the kernel table: one function for all, since what differs between recipes is chosen by form_of().
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/params.h"
#include "dispatch.h"

namespace chitu::cuda {

std::string refusal(const Problem& problem);
std::size_t workspace_bytes(const Problem& problem);
void run(const Problem& problem);

// A call with at least one query, in its two steps: its workspace lives as long as this does. Benchmarks time the steps apart.
class Call {
 public:
  explicit Call(const Problem& problem);
  void quantize() const;
  void attend() const;
  bool attention_quantizes_queries() const { return params_.tuned_quantizer; }  // then quantize() has keys and values only

 private:
  Recipe recipe_;
  int device_;
  bool bf16_;
  cudaStream_t stream_;
  DeviceGuard guard_;
  std::vector<SequenceLayout> layouts_;  // of a packed call
  SequenceLayout* layouts_on_gpu_ = nullptr;
  std::optional<StreamMemory> memory_;
  Params params_;
};

}  // namespace chitu::cuda
