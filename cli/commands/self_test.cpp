// SPDX-License-Identifier: Apache-2.0
#include "cli/commands/self_test.h"

#include <algorithm>

#include "chitu/chitu.h"
#include "cli/measure/data.h"
#include "cli/measure/gpu.h"
#include "cli/measure/statistics.h"

namespace chitu::cli {
namespace {

constexpr std::string_view reference = "cpu.reference";
// Lengths that no tile or block divides; grouped heads; a sink, so that a residual plane is used. No vector divides the CPU's dim.
constexpr std::int64_t batch = 1, heads = 4, kv_heads = 2, queries = 301, keys = 333;
constexpr Shape lse_shape{batch, heads, queries, 1};
constexpr std::int64_t cpu_dim = 72, gpu_dim = 64;

struct Result {
  HostTensor out, lse;
};

Options options(const Method& method, std::string_view kernel, int threads) {
  return {.recipe = method.recipe, .window = causal, .threads = threads, .kernel = kernel};
}

Result run(const Operands& x, const Method& method, std::string_view kernel, int threads) {
  const Result r{allocate(x.query.tensor.type, x.query.tensor.shape), allocate(DType::f32, lse_shape)};
  attention(x.query.tensor, x.key.tensor, x.value.tensor, {r.out.tensor, r.lse.tensor}, options(method, kernel, threads));
  return r;
}

Result run_on_gpu(const Operands& x, const Method& method, std::string_view kernel) {
  const Result r{allocate(x.query.tensor.type, x.query.tensor.shape), allocate(DType::f32, lse_shape)};
  const gpu::GpuTensor query = gpu::upload(x.query.tensor), key = gpu::upload(x.key.tensor), value = gpu::upload(x.value.tensor),
                       out = gpu::allocate(r.out.tensor.type, r.out.tensor.shape), lse = gpu::allocate(DType::f32, lse_shape);
  attention(query.tensor, key.tensor, value.tensor, {out.tensor, lse.tensor}, options(method, kernel, 0));
  gpu::download(out, r.out.tensor);
  gpu::download(lse, r.lse.tensor);
  return r;
}

// Names of the kernels that can run here, each once, without the reference.
std::vector<std::string> kernels_here(Device device) {
  std::vector<std::string> names;
  for (const KernelInfo& k : kernels())
    if (k.available && k.device == device && k.name != reference && std::find(names.begin(), names.end(), k.name) == names.end())
      names.emplace_back(k.name);
  return names;
}

class Tester {
 public:
  Tester(Device device, DType type, std::int64_t dim, int threads)
      : device_(device),
        threads_(threads),
        operands_(generate("sink", {batch, heads, queries, dim}, {batch, kv_heads, keys, dim}, type, 1)) {}

  void run_all(std::vector<SelfTest>& tests) const {
    for (const Method& method : methods) {
      const Result expected = run(operands_, method, reference, threads_);
      for (const std::string& kernel : kernels_here(device_)) tests.push_back(test(method, kernel, expected));
    }
  }

 private:
  SelfTest test(const Method& method, const std::string& kernel, const Result& expected) const {
    SelfTest t{.kernel = kernel, .method = std::string(method.name), .dtype = name(operands_.query.tensor.type)};
    const bool gpu = device_ == Device::cuda;
    const SelfTestBound& bound = gpu ? gpu_bound : cpu_bound;
    try {
      const Result actual = gpu ? run_on_gpu(operands_, method, kernel) : run(operands_, method, kernel, threads_);
      Comparison comparison(batch, heads);
      comparison.add(actual.out.tensor, actual.lse.tensor, expected.out.tensor, expected.lse.tensor, 0);
      const Errors e = comparison.errors();
      t.relative_l1 = e.relative_l1;
      t.lse_max_diff = e.lse_max_diff;
      t.passed = e.relative_l1 <= bound.relative_l1 && e.lse_max_diff <= bound.lse;
    } catch (const Error& error) {
      if (!gpu || error.code() != ErrorCode::unsupported) throw;
      t.refused = t.passed = true;
    }
    return t;
  }

  Device device_;
  int threads_;
  Operands operands_;
};

}  // namespace

std::vector<SelfTest> run_self_tests(int threads) {
  std::vector<SelfTest> tests;
  for (const DType type : {DType::f32, DType::bf16}) Tester(Device::cpu, type, cpu_dim, threads).run_all(tests);
  if (!kernels_here(Device::cuda).empty()) Tester(Device::cuda, DType::f16, gpu_dim, threads).run_all(tests);
  return tests;
}

bool all_passed(const std::vector<SelfTest>& tests) {
  return std::all_of(tests.begin(), tests.end(), [](const SelfTest& t) { return t.passed; });
}

}  // namespace chitu::cli
