// SPDX-License-Identifier: Apache-2.0
// quantize() on a GPU against a copy of as many bytes as it reads and writes, and attention from keys and values that came quantised
// against attention from the tensors, in turn, in one process:
//   cmake --build build-gpu --target quantized_bench && build-gpu/bench/quantized_bench
// A time is the mean of calls that are queued back to back, the median of rounds.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
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

void* on_gpu(std::size_t bytes, const void* from = nullptr) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes));
  if (from) check(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice));
  return memory;
}

Tensor normal(const Shape& shape, unsigned seed) {
  std::minstd_rand random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> some(1 << 20);
  for (auto& x : some) {
    const float f = normal(random);
    std::uint32_t bits;
    std::copy_n(reinterpret_cast<const char*>(&f), sizeof f, reinterpret_cast<char*>(&bits));
    x = static_cast<std::uint16_t>(bits >> 16);
  }
  std::vector<std::uint16_t> all(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = some[(i + i / some.size() * 977) % some.size()];
  Tensor t = dense(on_gpu(all.size() * 2, all.data()), DType::bf16, shape);
  t.device = Device::cuda;
  return t;
}

double time_of(const std::function<void()>& call) {
  constexpr int lead = 5, calls = 50;
  cudaEvent_t begin{}, end{};
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  for (int i = 0; i < lead; ++i) call();
  check(cudaEventRecord(begin));
  for (int i = 0; i < calls; ++i) call();
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin, end));
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  return static_cast<double>(ms) / calls;
}

// The median times of several calls, in turn.
std::vector<double> times_of(const std::vector<std::function<void()>>& calls) {
  std::vector<std::vector<double>> all(calls.size());
  for (int round = 0; round < 9; ++round)
    for (std::size_t i = 0; i < calls.size(); ++i) all[i].push_back(time_of(calls[i]));
  std::vector<double> medians;
  for (auto& x : all) {
    std::sort(x.begin(), x.end());
    medians.push_back(x[x.size() / 2]);
  }
  return medians;
}

// With memory of the caller's.
struct Quantizing {
  Tensor x;
  Role role;
  Recipe recipe;
  QuantizeOptions options;
  Quantizing(const Tensor& x, Role role, const Recipe& recipe, const Quantized* keys) : x(x), role(role), recipe(recipe) {
    if (role == Role::value && recipe.key.sorted) options.keys = keys;
    options.memory_bytes = quantized_bytes(x, role, recipe, options);
    options.workspace_bytes = quantize_workspace_size(x, role, recipe, options);
    options.memory = on_gpu(options.memory_bytes);
    options.workspace = on_gpu(options.workspace_bytes);
  }
  Quantized run() const { return quantize(x, role, recipe, options); }
};

// Keys and values at once, with memory of the caller's.
struct QuantizingBoth {
  Tensor key, value;
  Recipe recipe;
  QuantizeOptions options;
  QuantizingBoth(const Tensor& key, const Tensor& value, const Recipe& recipe) : key(key), value(value), recipe(recipe) {
    options.memory_bytes = quantized_bytes(key, Role::key, recipe) + quantized_bytes(value, Role::value, recipe);
    options.workspace_bytes = quantize_workspace_size(key, Role::key, recipe);
    options.memory = on_gpu(options.memory_bytes);
    options.workspace = on_gpu(options.workspace_bytes);
  }
  KeysAndValues run() const { return quantize_keys_and_values(key, value, recipe, options); }
};

// The median time that the host takes to start a call, in us.
double host_time_of(const std::function<void()>& call) {
  std::vector<double> all;
  for (int i = 0; i < 200; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    all.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
    check(cudaDeviceSynchronize());
  }
  std::nth_element(all.begin(), all.begin() + 100, all.end());
  return all[100];
}

void measure(const char* what, const char* method, const Shape& query, const Shape& keys) {
  const Recipe& recipe = find_method(method).recipe;
  const Tensor q = normal(query, 1), k = normal(keys, 2), v = normal(keys, 3);
  Tensor out = q;
  out.data = on_gpu(static_cast<std::size_t>(query[0] * query[1] * query[2] * query[3]) * 2);
  const Quantizing of_key(k, Role::key, recipe, nullptr);
  const Quantized key = of_key.run();
  const Quantizing of_value(v, Role::value, recipe, &key);
  const Quantized value = of_value.run();
  const QuantizingBoth of_both(k, v, recipe);
  const Options o{.recipe = recipe};
  const auto with_workspace = [&](const Operand& b, const Operand& c) {
    Options own = o;
    own.workspace_bytes = workspace_size(q, b, c, out, own);
    own.workspace = on_gpu(own.workspace_bytes);
    return own;
  };
  const Options of_tensors = with_workspace(k, v), of_quantized = with_workspace(key, value);
  // What quantising reads and writes, without residual planes and where it lies.
  const auto numbers = static_cast<std::size_t>(keys[0] * keys[1] * keys[2] * keys[3]), moved = 2 * numbers * 3;
  void* const memory = on_gpu(moved);
  const std::vector<double> ms = times_of(
      {[&] { attention(q, k, v, out, of_tensors); }, [&] { attention(q, key, value, out, of_quantized); }, [&] { (void)of_key.run(); },
       [&] { (void)of_value.run(); }, [&] { (void)of_both.run(); },
       [&] { check(cudaMemcpyAsync(static_cast<std::byte*>(memory) + moved / 2, memory, moved / 2, cudaMemcpyDeviceToDevice, nullptr)); }});
  std::printf(
      "%-10s %-6s from tensors %.4f ms, from quantised %.4f ms (%.2fx)  quantize key %.4f, value %.4f, both at once %.4f, copy %.4f ms "
      "(%.2fx)  host: key %.1f us, both %.1f us\n",
      what, method, ms[0], ms[1], ms[0] / ms[1], ms[2], ms[3], ms[4], ms[5], ms[4] / ms[5], host_time_of([&] { (void)of_key.run(); }),
      host_time_of([&] { (void)of_both.run(); }));
  for (void* data :
       {q.data, k.data, v.data, out.data, memory, of_tensors.workspace, of_quantized.workspace, of_key.options.memory,
        of_key.options.workspace, of_value.options.memory, of_value.options.workspace, of_both.options.memory, of_both.options.workspace})
    check(cudaFree(data));
}

}  // namespace

int main() {
  for (const char* const method : {"chitu", "sage2"}) {
    measure("SDXL cross", method, {2, 10, 4096, 64}, {2, 10, 77, 64});
    measure("Wan cross", method, {1, 40, 32760, 128}, {1, 40, 512, 128});
    measure("32K x 16", method, {1, 16, 1024, 128}, {1, 16, 32768, 128});
  }
}
