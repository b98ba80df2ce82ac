// SPDX-License-Identifier: Apache-2.0
// The command's GPU: what there is, tensors in its memory, times of methods there. gpu.cpp, or no_gpu.cpp in a build without CUDA.
// The command uses GPU 0 of those that the driver shows (CUDA_VISIBLE_DEVICES chooses).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/files/files.h"
#include "cli/measure/meter.h"

namespace chitu::cli::gpu {

struct Info {
  std::string name;                // "NVIDIA H200"
  std::string compute_capability;  // "9.0"
  std::int64_t bytes = 0;          // of memory
  int multiprocessors = 0;
  std::string driver;  // "580.159.04"; "unknown" where it does not tell
  std::string cuda;    // "13.0": the runtime of this build
};

std::vector<Info> all();
std::string why_none();  // why all() is empty: one line, for a person

// Throws Error(unsupported) that says so unless there is a GPU.
void require_one();

// A tensor in the memory of GPU 0.
struct GpuTensor {
  std::shared_ptr<void> memory;
  Tensor tensor;
};

GpuTensor allocate(DType type, const Shape& shape);      // dense; every byte is 0xff: NaN, so that what is not written shows
GpuTensor upload(const Tensor& tensor);                  // from CPU memory, strides kept
void download(const GpuTensor& from, const Tensor& to);  // to.shape and to.stride are those of `from`; waits for the GPU

Meters meters(const Workload& workload, std::span<const Method* const> methods, const Truth& truth);

}  // namespace chitu::cli::gpu
