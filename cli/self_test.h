// SPDX-License-Identifier: Apache-2.0
// doctor's numerics test: each method on each kernel that this machine can run, on a small hard problem, in a type
// that every kernel takes and in the one that some have instructions for.
#pragma once

#include <string>
#include <vector>

namespace chitu::cli {

struct SelfTest {
  std::string kernel, method, dtype;
  double relative_l1 = 0, lse_max_diff = 0;  // to cpu.reference running the same recipe
  bool passed = false;
};

inline constexpr double self_test_l1 = 2e-3, self_test_lse = 2e-3;

std::vector<SelfTest> run_self_tests(int threads);
bool all_passed(const std::vector<SelfTest>& tests);

}  // namespace chitu::cli
