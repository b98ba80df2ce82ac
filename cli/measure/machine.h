// SPDX-License-Identifier: Apache-2.0
// The machine and the build, as reports name them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "chitu/tensor.h"
#include "cli/measure/gpu.h"
#include "cli/measure/report.h"

namespace chitu::cli {

struct InstructionSet {
  std::string_view name;
  bool found;
  std::string_view used_by;  // a kernel
};

std::string cpu_model();
std::string compiler();
const std::vector<InstructionSet>& instruction_sets();  // those that the kernels ask for
std::string_view best_kernel();                         // the first for CPU memory that this machine can run

// The machine of measurements on a device: "AMD EPYC, 2 threads, cpu.avx512, g++ 12.2.0, chitu 0.1.0", or "NVIDIA H200 (141 GB, compute
// capability 9.0), driver 580.159.04, CUDA 13.0, g++ 12.2.0, chitu 0.1.0". kernel: empty for the best.
std::string machine_text(Device device, int threads, std::string_view kernel);
Json machine_json(Device device, int threads, std::string_view kernel);
Json gpu_json(const gpu::Info& info);

}  // namespace chitu::cli
