// SPDX-License-Identifier: Apache-2.0
// The machine and the build, as reports name them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/report.h"

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

// "AMD EPYC, 2 threads, cpu.avx512, g++ 12.2.0, chitu 0.1.0"; kernel: empty for the best.
std::string machine_text(int threads, std::string_view kernel);
Json machine_json(int threads, std::string_view kernel);

}  // namespace chitu::cli
