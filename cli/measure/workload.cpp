// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/workload.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/files/formats.h"
#include "cli/measure/gpu.h"
#include "cli/words.h"
#include "common/parallel.h"
#include "common/visible.h"

namespace chitu::cli {
namespace {

Tensor first_tokens(Tensor tensor, std::int64_t tokens, const std::string& file) {
  if (tokens == 0) return tensor;
  require(tokens <= tensor.shape[2], "asked for ", tokens, " tokens, but ", file, " has ", tensor.shape[2]);
  tensor.shape[2] = tokens;
  return tensor;
}

Operands read(const std::string& file) {
  const std::string names[] = {"q", "k", "v"};
  auto tensors = read_safetensors(file, names, Others::refused);
  return {tensors.at("q"), tensors.at("k"), tensors.at("v")};
}

}  // namespace

std::int64_t Workload::pairs(std::int64_t first_query, std::int64_t queries) const {
  const std::int64_t keys = key.shape[2], offset = keys - query.shape[2];
  std::int64_t sum = 0;
  for (std::int64_t i = first_query; i < first_query + queries; ++i) {
    const Range seen = visible(window, i + offset, {}, keys);
    sum += std::max<std::int64_t>(seen.end - seen.begin, 0);
  }
  return sum * query.shape[0] * query.shape[1];
}

WorkloadSource::WorkloadSource(const WorkloadFlags& flags) : flags_(flags), window_(window_of(flags.causal, flags.window)) {
  const bool gpu = flags.device == "cuda";
  if (flags.dtype.empty()) flags_.dtype = gpu ? "bf16" : "f32";
  require(!gpu || !flags.threads, "--threads is for --device cpu; a GPU uses all of itself");
  require(!gpu || flags_.dtype != name(DType::f32), "--dtype f32 is for --device cpu; a GPU's kernels take f16 and bf16");
  device_ = device_of(flags.device);
  type_ = dtype_of(flags_.dtype);
  if (is_file()) {
    file_ = read(flags.input);
    data_ = {std::filesystem::path(flags.input).stem().string()};
    return;
  }
  data_ = distribution_names(flags.data);
  if (flags_.kv_heads == 0) flags_.kv_heads = flags.heads;
  require(flags_.heads % flags_.kv_heads == 0, "--heads ", flags_.heads, " is no multiple of --kv-heads ", flags_.kv_heads);
}

int WorkloadSource::threads() const { return thread_count(flags_.threads.value_or(0)); }

Workload WorkloadSource::check(std::span<const Method* const> methods, std::int64_t tokens, std::optional<std::int64_t> batch) const {
  Workload w;
  if (is_file()) {
    w = make(data_.front(), tokens);
    for (const auto& [name, tensor] : {std::pair{"q", &w.query}, {"k", &w.key}})
      require(std::find(tensor->shape.begin(), tensor->shape.end(), 0) == tensor->shape.end(), flags_.input, ": ", name, " has shape ",
              text(tensor->shape), ", so there is nothing to measure");
  } else {
    static float no_data;  // the library looks at none
    const auto tensor = [&](std::int64_t heads) {
      const Shape shape{batch.value_or(flags_.batch), heads, tokens, flags_.dim};
      naming("the data", [&] { checked_bytes(type_, shape); });
      return dense(&no_data, type_, shape);
    };
    w.query = tensor(flags_.heads);
    w.key = w.value = tensor(flags_.kv_heads);
  }
  // A method that the GPU's kernels do not take is listed with the results. So here explain() only checks words and sizes.
  for (const Method* m : methods) {
    const Options options{.recipe = m->recipe, .window = window_, .threads = threads(), .kernel = flags_.kernel};
    if (device_ == Device::cpu)
      workspace_size(w.query, w.key, w.value, w.query, options);
    else
      explain(w.query, w.key, w.value, w.query, options);
  }
  return w;
}

Workload WorkloadSource::make(const std::string& data, std::int64_t tokens, std::optional<std::int64_t> batch) const {
  Workload w{.data = data, .window = window_, .threads = threads(), .kernel = flags_.kernel, .device = device_};
  if (is_file()) {
    const auto view = [&](const HostTensor& x) { return first_tokens(as_bhsd(x.tensor, flags_.layout), tokens, flags_.input); };
    w.memory = file_;
    w.query = view(file_.query);
    w.key = view(file_.key);
    w.value = view(file_.value);
    return w;
  }
  const std::int64_t batches = batch.value_or(flags_.batch);
  w.memory =
      generate(data, {batches, flags_.heads, tokens, flags_.dim}, {batches, flags_.kv_heads, tokens, flags_.dim}, type_, flags_.seed);
  w.query = w.memory.query.tensor;
  w.key = w.memory.key.tensor;
  w.value = w.memory.value.tensor;
  return w;
}

std::vector<const Method*> methods_of(std::string_view list) {
  std::vector<const Method*> result;
  if (list == "all") {
    for (const Method& m : methods) result.push_back(&m);
    return result;
  }
  for (const std::string& name : list_of("--method", list)) {
    const Method* method = &find_method(name);
    require(std::find(result.begin(), result.end(), method) == result.end(), "--method names ", name, " twice");
    result.push_back(method);
  }
  return result;
}

DType dtype_of(std::string_view word) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    if (word == name(type)) return type;
  throw Error(ErrorCode::bad_argument, "--dtype '" + std::string(word) + "' must be f32, f16 or bf16");
}

Device device_of(std::string_view word) {
  if (word != "cuda") return Device::cpu;
  gpu::require_one();
  return Device::cuda;
}

std::string window_text(const Window& w) {
  if (w == everything) return "not causal";
  if (w == causal) return "causal";
  const auto side = [](std::int64_t n) { return n >= unbounded ? std::string("-1") : std::to_string(n); };
  return fmt::format("window {},{}", side(w.left), side(w.right));
}

}  // namespace chitu::cli
