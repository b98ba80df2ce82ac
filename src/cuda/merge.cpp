// SPDX-License-Identifier: Apache-2.0
// The host's half of merge() on a GPU: what it refuses, and its launches.
#include "cuda/merge.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "cuda/call.h"
#include "cuda/device.h"
#include "cuda/merge_params.h"

namespace chitu::cuda {
namespace {

View view(const Tensor& t) { return {t.data, t.stride[0], t.stride[1], t.stride[2]}; }

// Rows of whole chunks of 8 numbers, all of which start at multiples of 16 bytes.
bool in_vectors(const Tensor& t) {
  if (t.shape[3] % 8 || reinterpret_cast<std::uintptr_t>(t.data) % 16) return false;
  for (std::size_t i = 0; i < 3; ++i)
    if (t.shape[i] > 1 && t.stride[i] * bytes(t.type) % 16) return false;
  return true;
}

void check_device(std::span<const Output> parts, const Output& result, int device) {
  std::string why;
  for (const Architecture* a : architectures())
    if (why = trouble(device, a->major, a->minor); why.empty()) break;
  if (!why.empty()) throw Error(ErrorCode::unsupported, "merge: " + why);
  const auto check_memory = [&](const Output& part, const auto&... name) {
    for (const auto& [t, what] : {std::pair{&part.out, "out"}, {&part.lse, "lse"}})
      require(on_device(t->data, device), "merge: memory of ", what, " of ", name..., " is not on GPU ", device, ", as its tensor says");
  };
  for (std::size_t i = 0; i < parts.size(); ++i) check_memory(parts[i], "part ", i);
  check_memory(result, "result");
}

// At most merged_at_once parts.
void merge_at_once(std::span<const Output> parts, const Output& result, cudaStream_t stream) {
  const auto [batch, heads, tokens, dim] = result.out.shape;
  MergeParams p{};
  p.result = {view(result.out), view(result.lse)};
  p.result_type = result.out.type;
  p.result_vectors = in_vectors(result.out);
  p.count = static_cast<int>(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    p.parts[i] = {view(parts[i].out), view(parts[i].lse)};
    p.types[i] = parts[i].out.type;
    p.vectors |= std::uint32_t{in_vectors(parts[i].out)} << i;
  }
  p.heads = static_cast<int>(heads);
  p.tokens = static_cast<int>(tokens);
  p.dim = static_cast<int>(dim);
  const std::int64_t rows = merged_rows(p.dim), blocks_of_head = (tokens + rows - 1) / rows;
  require(batch * heads <= std::numeric_limits<int>::max() / blocks_of_head, "merge: ", batch, " batch entries of ", heads, " heads of ",
          tokens, " tokens are more than one launch can take on a GPU: give fewer heads a call");
  p.blocks_of_head = static_cast<int>(blocks_of_head);
  launch_merge(p, static_cast<unsigned>(batch * heads * blocks_of_head), stream);
}

// f32 memory of the stream for the sum of some parts.
class Sums {
 public:
  Sums(const Shape& shape, int device, cudaStream_t stream) : memory_(bytes_of(shape) + lse_bytes(shape), device, stream) {
    output_.out = dense(memory_.data(), DType::f32, shape);
    output_.lse = dense(memory_.data() + bytes_of(shape), DType::f32, {shape[0], shape[1], shape[2], 1});
    for (Tensor* t : {&output_.out, &output_.lse}) t->device = Device::cuda, t->device_id = device;
  }
  const Output& output() const { return output_; }

 private:
  static std::size_t lse_bytes(const Shape& s) { return static_cast<std::size_t>(s[0] * s[1] * s[2]) * sizeof(float); }
  static std::size_t bytes_of(const Shape& s) { return lse_bytes(s) * static_cast<std::size_t>(s[3]); }

  StreamMemory memory_;
  Output output_{Tensor{}};
};

}  // namespace

void merge(std::span<const Output> parts, const Output& result, void* cuda_stream) {
  const int device = result.out.device_id;
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  check_device(parts, result, device);
  const DeviceGuard guard(device);
  if (parts.size() <= merged_at_once) return merge_at_once(parts, result, stream);
  require(!is_capturing(stream), "merge: there are ", parts.size(), " parts, but the stream is being captured into a graph: merge at most ",
          max_captured_parts, " at a time");
  const Sums sums(result.out.shape, device, stream);
  std::vector<Output> some(parts.begin(), parts.begin() + merged_at_once);
  for (std::size_t next = merged_at_once;;) {
    const bool last = next == parts.size();
    merge_at_once(some, last ? result : sums.output(), stream);
    if (last) return;
    const std::size_t count = std::min<std::size_t>(parts.size() - next, merged_at_once - 1);
    some.assign(1, sums.output());
    some.insert(some.end(), parts.begin() + static_cast<std::ptrdiff_t>(next), parts.begin() + static_cast<std::ptrdiff_t>(next + count));
    next += count;
  }
}

}  // namespace chitu::cuda
