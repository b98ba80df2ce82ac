// SPDX-License-Identifier: Apache-2.0
// Packed calls whose starts lie in GPU memory against the same calls with starts on the host, in turn, in one process:
//   cmake --build build-gpu --target lengths_bench && build-gpu/bench/lengths_bench
// 8 sequences of 1K to 8K tokens, 16 heads, bf16. A time is the mean of calls that are queued back to back, the median of rounds.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "chitu/chitu.h"

namespace {

using namespace chitu;

void check(cudaError_t e) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(e));
  std::exit(1);
}

constexpr std::int64_t heads = 16;

void* on_gpu(std::size_t bytes, const void* from = nullptr) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes));
  if (from) check(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice));
  return memory;
}

Tensor normal(std::int64_t tokens, std::int64_t dim, unsigned seed) {
  std::minstd_rand random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> some(1 << 20);
  for (auto& x : some) {
    const float f = normal(random);
    std::uint32_t bits;
    static_assert(sizeof bits == sizeof f);
    std::copy_n(reinterpret_cast<const char*>(&f), sizeof f, reinterpret_cast<char*>(&bits));
    x = static_cast<std::uint16_t>(bits >> 16);
  }
  std::vector<std::uint16_t> all(static_cast<std::size_t>(heads * tokens * dim));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = some[(i + i / some.size() * 977) % some.size()];
  Tensor t = dense(on_gpu(all.size() * 2, all.data()), DType::bf16, {1, heads, tokens, dim});
  t.device = Device::cuda;
  return t;
}

struct Call {
  Tensor query, key, value, out;
  Options options;
  void make_workspace() {
    options.workspace_bytes = workspace_size(query, key, value, out, options);
    options.workspace = on_gpu(options.workspace_bytes);
  }
  void run() const { attention(query, key, value, out, options); }
};

double time_of(const Call& call) {
  constexpr int lead = 3, calls = 20;
  cudaEvent_t begin{}, end{};
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  for (int i = 0; i < lead; ++i) call.run();
  check(cudaEventRecord(begin));
  for (int i = 0; i < calls; ++i) call.run();
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin, end));
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  return static_cast<double>(ms) / calls;
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

void measure(const char* what, const std::vector<std::int64_t>& lengths, std::int64_t dim, const Window& window) {
  std::vector<std::int64_t> starts{0};
  for (const std::int64_t n : lengths) starts.push_back(starts.back() + n);
  const std::vector<std::int32_t> narrow(starts.begin(), starts.end());
  const auto* on_device = static_cast<const std::int32_t*>(on_gpu(narrow.size() * 4, narrow.data()));
  const std::int64_t tokens = starts.back();
  Call host{normal(tokens, dim, 1), normal(tokens, dim, 2), normal(tokens, dim, 3), normal(tokens, dim, 4), {}};
  host.options.window = window;
  Call device = host;
  host.options.query_starts = host.options.key_starts = starts;
  device.options.device_query_starts = device.options.device_key_starts = {on_device, narrow.size()};
  device.options.max_queries = device.options.max_keys = *std::max_element(lengths.begin(), lengths.end());
  host.make_workspace();
  device.make_workspace();
  std::vector<double> by_host, by_device;
  for (int round = 0; round < 9; ++round) by_host.push_back(time_of(host)), by_device.push_back(time_of(device));
  const double a = median(by_host), b = median(by_device);
  std::printf("%-22s dim %3d %-7s host %.4f ms  device %.4f ms  %+.1f%%  workspace %zu and %zu MB\n", what, static_cast<int>(dim),
              window == causal ? "causal" : "full", a, b, 100 * (b / a - 1), host.options.workspace_bytes >> 20,
              device.options.workspace_bytes >> 20);
  for (void* memory : {host.query.data, host.key.data, host.value.data, host.out.data, host.options.workspace, device.options.workspace})
    check(cudaFree(memory));
}

}  // namespace

int main() {
  for (const std::int64_t dim : {128, 64})
    for (const Window& window : {everything, causal}) {
      measure("8 of 1K...8K", {1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192}, dim, window);
      measure("8 of 1K", std::vector<std::int64_t>(8, 1024), dim, window);
      measure("2 of 512, 8K", {512, 8192}, dim, window);
    }
}
