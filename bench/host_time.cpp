// SPDX-License-Identifier: Apache-2.0
// The host's time of a call on a GPU, from attention() until it returns, and what parts of it cost in CUDA:
//   cmake --build build-gpu --target host_time_bench && build-gpu/bench/host_time_bench
// A call of one tile, so that the GPU never makes the host wait. The median of calls with an idle stream before each.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "chitu/chitu.h"

namespace {

using namespace chitu;

void check(cudaError_t e) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(e));
  std::exit(1);
}

void report(const std::string& what, const std::function<void()>& function) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> us;
  for (int i = 0; i < 400; ++i) {
    if (i % 4 == 0) check(cudaDeviceSynchronize());
    const auto begin = Clock::now();
    function();
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  std::sort(us.begin(), us.end());
  std::printf("%-44s %7.2f us\n", what.c_str(), us[us.size() / 2]);
}

Tensor zeros(std::int64_t tokens, std::int64_t dim) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<std::size_t>(tokens * dim * 2)));
  check(cudaMemset(memory, 0, static_cast<std::size_t>(tokens * dim * 2)));
  Tensor t = dense(memory, DType::bf16, {1, 1, tokens, dim});
  t.device = Device::cuda;
  return t;
}

void measure(const Method& method, std::int64_t dim) {
  const Tensor query = zeros(64, dim), key = zeros(64, dim), value = zeros(64, dim), out = zeros(64, dim);
  Options options{.recipe = method.recipe}, with = options;
  with.workspace_bytes = workspace_size(query, key, value, {out}, options);
  check(cudaMalloc(&with.workspace, with.workspace_bytes));
  const std::string name = std::string(method.name) + ", dim " + std::to_string(dim);
  report(name + ": workspace_size()", [&] { (void)workspace_size(query, key, value, {out}, options); });
  report(name + ": call with a workspace", [&] { attention(query, key, value, {out}, with); });
  report(name + ": call without", [&] { attention(query, key, value, {out}, options); });
}

}  // namespace

int main() {
  for (const char* name : {"chitu", "exact", "sage2"})
    for (const std::int64_t dim : {64, 128}) measure(find_method(name), dim);

  void* memory = nullptr;
  check(cudaMalloc(&memory, 1 << 20));
  report("cudaPointerGetAttributes", [&] {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, memory));
  });
  report("cudaMemsetAsync, as a launch", [&] { check(cudaMemsetAsync(memory, 0, 1 << 10, nullptr)); });
  report("cudaMallocAsync and cudaFreeAsync", [&] {
    void* some = nullptr;
    check(cudaMallocAsync(&some, 1 << 20, nullptr));
    check(cudaFreeAsync(some, nullptr));
  });
  report("cudaGetDevice", [&] {
    int device = 0;
    check(cudaGetDevice(&device));
  });
}
