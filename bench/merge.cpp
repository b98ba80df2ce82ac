// SPDX-License-Identifier: Apache-2.0
// merge() on a GPU against cudaMemcpyAsync() from GPU memory to GPU memory, in turn, in one process:
//   cmake --build build-gpu --target merge_bench && build-gpu/bench/merge_bench
// Both count the bytes that they read and write, and the copy moves as many as merge() does. Each call has memory of its own until 2 GiB is
// used up, so that nothing is in the cache.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "chitu/chitu.h"

namespace {

using namespace chitu;

void check(cudaError_t e) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(e));
  std::exit(1);
}

constexpr std::int64_t heads = 16, tokens = 4096, dim = 128;  // 64K rows
constexpr Shape shape{1, heads, tokens, dim};
constexpr std::size_t rows = heads * tokens, used = std::size_t{2} << 30;

// The mean time of a call in milliseconds. call(i): the i-th.
double time_of(const std::function<void(std::size_t)>& call) {
  constexpr std::size_t lead = 20, calls = 200;  // the first ones only keep the GPU busy
  cudaEvent_t begin{}, end{};
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  for (std::size_t i = 0; i < lead; ++i) call(i);
  check(cudaEventRecord(begin));
  for (std::size_t i = 0; i < calls; ++i) call(i);
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

void measure(std::byte* memory, std::size_t count, DType type) {
  const std::size_t out_bytes = rows * dim * static_cast<std::size_t>(bytes(type)), lse_bytes = rows * sizeof(float),
                    part_bytes = out_bytes + lse_bytes, moved = (count + 1) * part_bytes, sets = used / moved;
  const auto part = [&](std::size_t set, std::size_t i) {
    std::byte* at = memory + set * moved + i * part_bytes;
    Output o{dense(at, type, shape), dense(at + out_bytes, DType::f32, {1, heads, tokens, 1})};
    o.out.device = o.lse.device = Device::cuda;
    return o;
  };
  const auto merging = [&](std::size_t call) {
    std::vector<Output> parts;
    for (std::size_t i = 0; i < count; ++i) parts.push_back(part(call % sets, i));
    merge(parts, part(call % sets, count));
  };
  const auto copying = [&](std::size_t call) {
    std::byte* at = memory + call % sets * moved;
    check(cudaMemcpyAsync(at + moved / 2, at, moved / 2, cudaMemcpyDeviceToDevice, nullptr));
  };
  std::vector<double> merged, copied;
  for (int round = 0; round < 9; ++round) {
    check(cudaMemset(memory, 0, used));
    merged.push_back(time_of(merging));
    copied.push_back(time_of(copying));
  }
  const double merge_ms = median(merged), copy_ms = median(copied), gigabytes = static_cast<double>(moved) * 1e-9;
  std::printf(
      "%zu parts of %zu rows x %d, %-4s  merge %.4f ms, %5.0f GB/s   copy %.4f ms, %5.0f GB/s   merge is %.0f%% of the copy's speed\n",
      count, rows, int{dim}, name(type), merge_ms, gigabytes / merge_ms * 1e3, copy_ms, gigabytes / copy_ms * 1e3,
      100 * copy_ms / merge_ms);
}

}  // namespace

int main() {
  void* memory = nullptr;
  check(cudaMalloc(&memory, used));
  for (const DType type : {DType::bf16, DType::f16, DType::f32})
    for (const std::size_t count : {2, 8, 32}) measure(static_cast<std::byte*>(memory), count, type);
  check(cudaFree(memory));
}
