// SPDX-License-Identifier: Apache-2.0
// A call on a GPU. All architectures share this code; each brings its own table of attention kernels (Architecture).
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cuda/architecture.h"
#include "cuda/device.h"
#include "dispatch.h"

namespace chitu::cuda {

std::span<const Architecture* const> architectures();  // of this build, in the order in which they are tried

std::string refusal(const Architecture& architecture, const Problem& problem);  // empty: takes it
std::string misaligned(const Tensor& t, const char* name);                      // empty: rows can be read and written 16 bytes at a time
std::size_t workspace_bytes(const Architecture& architecture, const Problem& problem);
void run(const Architecture& architecture, const Problem& problem);

// Waits for the stream and throws if what Options::device_query_starts and device_key_starts hold is not right.
void check_device_lengths(const Problem& problem);

// A call with at least one query, in two steps, so that benchmarks can time them apart. Its workspace lives as long as this object.
class Call {
 public:
  explicit Call(const Problem& problem);  // on the architecture whose row select() chooses
  Call(const Architecture& architecture, const Problem& problem);
  void quantize() const;
  void attend() const;
  bool attention_quantizes_queries() const {
    return params_.tuned_quantizer || kernel_.direct;
  }  // then quantize() makes keys and values only, or nothing

 private:
  bool is_bf16() const { return input_ == DType::bf16; }

  const AttentionKernel& kernel_;
  Operands operands_;
  DType input_;  // of the tensors that operands came from
  cudaStream_t stream_;
  DeviceGuard guard_;
  std::vector<SequenceLayout> layouts_;  // of a call whose sequences are not all alike
  SequenceLayout* layouts_on_gpu_ = nullptr;
  Lengths lengths_{};  // of a call whose lengths are on the GPU
  std::optional<StreamMemory> memory_;
  Params params_;
  Making making_;    // the operands that did not come quantised
  Joined joined_{};  // the others
};

}  // namespace chitu::cuda
