// SPDX-License-Identifier: Apache-2.0
#include "cli/self_test.h"

#include <algorithm>

#include "chitu/chitu.h"
#include "cli/data.h"
#include "cli/statistics.h"

namespace chitu::cli {
namespace {

constexpr std::string_view reference = "cpu.reference";
// Lengths and dim that no tile, block or vector divides; grouped heads; a sink, so that a residual plane is used.
constexpr Shape query_shape{1, 4, 301, 72}, key_shape{1, 2, 333, 72};

struct Result {
  HostTensor out = allocate(DType::f32, query_shape);
  HostTensor lse = allocate(DType::f32, {query_shape[0], query_shape[1], query_shape[2], 1});
};

Result run(const Operands& x, const Method& method, std::string_view kernel, int threads) {
  Result r;
  attention(x.query.tensor, x.key.tensor, x.value.tensor, {r.out.tensor, r.lse.tensor},
            {.recipe = method.recipe, .window = causal, .threads = threads, .kernel = kernel});
  return r;
}

// Names of kernels that can run here, each once, but for the reference.
std::vector<std::string> kernels_here() {
  std::vector<std::string> names;
  for (const KernelInfo& k : kernels())
    if (k.available && k.device == Device::cpu && k.name != reference && std::find(names.begin(), names.end(), k.name) == names.end())
      names.emplace_back(k.name);
  return names;
}

}  // namespace

std::vector<SelfTest> run_self_tests(int threads) {
  std::vector<SelfTest> tests;
  for (const DType type : {DType::f32, DType::bf16}) {
    const Operands x = generate("sink", query_shape, key_shape, type, 1);
    for (const Method& method : methods) {
      const Result expected = run(x, method, reference, threads);
      for (const std::string& kernel : kernels_here()) {
        const Result actual = run(x, method, kernel, threads);
        Comparison comparison(query_shape[0], query_shape[1]);
        comparison.add(actual.out.tensor, actual.lse.tensor, expected.out.tensor, expected.lse.tensor, 0);
        const Errors e = comparison.errors();
        tests.push_back({kernel, std::string(method.name), name(type), e.relative_l1, e.lse_max_diff,
                         e.relative_l1 <= self_test_l1 && e.lse_max_diff <= self_test_lse});
      }
    }
  }
  return tests;
}

bool all_passed(const std::vector<SelfTest>& tests) {
  return std::all_of(tests.begin(), tests.end(), [](const SelfTest& t) { return t.passed; });
}

}  // namespace chitu::cli
