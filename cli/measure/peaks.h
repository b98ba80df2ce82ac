// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, measured with the threads that the measurements use: fp32 multiply-adds, 8-bit and
// bf16 dot products from registers.
#pragma once

#include <string>

namespace chitu::cli {

struct Peaks {
  std::string instructions;               // what was measured: "amx", "avx512", "avxvnni", "avx2", "sse2", "portable"
  double fp32_tflops = 0, int8_tops = 0;  // a multiply-add counts 2
  double bf16_tflops = 0;                 // 0 where there is no such instruction
};
Peaks measure_peaks(int threads);

}  // namespace chitu::cli
