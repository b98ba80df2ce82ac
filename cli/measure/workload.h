// SPDX-License-Identifier: Apache-2.0
// What bench and accuracy measure: the flags that describe it, and the tensors that are made from them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chitu/chitu.h"
#include "cli/files/files.h"
#include "cli/measure/data.h"

namespace chitu::cli {

struct WorkloadFlags {
  std::string method = "all", data = "normal", input{}, layout = "bhsd", dtype{}, window{}, kernel{}, device = "cpu";
  std::int64_t batch = 1, heads = 8, kv_heads = 0, dim = 128;  // kv_heads 0: as many as heads
  std::uint64_t seed = 1;
  std::optional<int> threads{};
  bool causal = false;
};

struct Workload {
  std::string data;   // what the tables call it
  Operands memory{};  // of the tensors
  Tensor query{}, key{}, value{};
  Window window = everything;
  int threads = 1;
  std::string kernel{};
  Device device = Device::cpu;    // that the methods run on; the tensors are in CPU memory in any case
  std::vector<Role> quantized{};  // operands that come quantised, and not as tensors: on a GPU

  bool is_quantized(Role role) const { return std::find(quantized.begin(), quantized.end(), role) != quantized.end(); }

  std::int64_t pairs() const { return pairs(0, query.shape[2]); }
  std::int64_t pairs(std::int64_t first_query, std::int64_t queries) const;  // visible pairs of query and key, over all heads
  double operations() const { return 4. * static_cast<double>(pairs()) * static_cast<double>(query.shape[3]); }
};

// Makes workloads of named distributions, or of the tensors in a file. The constructor refuses flags that cannot be honoured. check()
// refuses sizes that attention() would refuse, and on a CPU kernels, too.
class WorkloadSource {
 public:
  explicit WorkloadSource(const WorkloadFlags& flags);
  const std::vector<std::string>& data() const { return data_; }
  bool is_file() const { return !flags_.input.empty(); }
  int threads() const;
  std::optional<int> asked_threads() const { return flags_.threads; }
  Device device() const { return device_; }
  // The workload's tensors; those of named distributions have no data yet.
  Workload check(std::span<const Method* const> methods, std::int64_t tokens, std::optional<std::int64_t> batch = {}) const;
  // Takes the first `tokens` tokens of a file, or all if it is 0. batch: in place of the flags' batch, for named data.
  Workload make(const std::string& data, std::int64_t tokens, std::optional<std::int64_t> batch = {}) const;

 private:
  WorkloadFlags flags_;
  Device device_ = Device::cpu;
  DType type_ = DType::f32;  // of data
  Window window_;
  std::vector<std::string> data_;
  Operands file_;
};

std::vector<const Method*> methods_of(std::string_view list);  // "all" or names
DType dtype_of(std::string_view word);                         // f32, f16, bf16
Device device_of(std::string_view word);                       // of --device; throws Error(unsupported) where there is no GPU
std::string window_text(const Window& window);

}  // namespace chitu::cli
