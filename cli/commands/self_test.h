// SPDX-License-Identifier: Apache-2.0
// doctor's numerics test: each method on each kernel that this machine can run, on a small hard problem. On the CPU it uses a type that
// every kernel takes, and the one that some have instructions for; on GPU 0 it uses f16.
#pragma once

#include <string>
#include <vector>

namespace chitu::cli {

struct SelfTest {
  std::string kernel, method, dtype;
  double relative_l1 = 0, lse_max_diff = 0;  // to cpu.reference running the same recipe
  bool passed = false;
  bool refused = false;  // the kernel does not take the method, which is no failure
};

struct SelfTestBound {
  double relative_l1, lse;
};
// GPUs sum in other types and orders, and an integer of a query or key may round the other way. A broken kernel is far beyond these bounds.
inline constexpr SelfTestBound cpu_bound{2e-3, 2e-3}, gpu_bound{1e-2, 2e-2};

std::vector<SelfTest> run_self_tests(int threads);
bool all_passed(const std::vector<SelfTest>& tests);

}  // namespace chitu::cli
