// SPDX-License-Identifier: Apache-2.0
// The GPU's rows of the kernel table: for each architecture a row for each pair of arithmetics that its attention kernels compute in.
#include "cuda/rows.h"

#include <array>
#include <vector>

#include "cuda/call.h"
#include "cuda/device.h"

namespace chitu {
namespace {

Arithmetic arithmetic_of(const Quant& quant, DType input) {
  switch (quant.scaling == Scaling::none ? input : quant.type) {
    case DType::i8:
      return Arithmetic::int8;
    case DType::e4m3:
      return Arithmetic::fp8;
    case DType::bf16:
      return Arithmetic::bf16;
    default:
      return Arithmetic::f16;
  }
}

// Types that differ and operands that came quantised are in this list, but cuda::refusal() refuses them: it says what to give instead.
constexpr Needs takes_of_call() {
  using enum Need;
  return {window,           scale,       negative_scale,    query_positions, key_positions,   positions_of_sequences,
          packed_sequences, key_lengths, lengths_on_device, stream,          workspace,       lse,
          grouped_heads,    mixed_types, quantized_query,   quantized_key,   quantized_value, sorted_keys};
}

// A row's functions know its architecture.
template <const cuda::Architecture& architecture>
void append_rows(std::vector<Kernel>& rows) {
  const auto is_known = [&](Arithmetic scores, Arithmetic weights) {
    for (const Kernel& row : rows)
      if (row.name == architecture.name && row.scores == scores && row.weights == weights) return true;
    return false;
  };
  for (const cuda::AttentionKernel& k : architecture.kernels) {
    const Arithmetic scores = arithmetic_of(k.recipe->key, k.input), weights = arithmetic_of(k.recipe->value, k.input);
    if (!is_known(scores, weights))
      rows.push_back({architecture.name, Device::cuda, [] { return cuda::any_device(architecture.major, architecture.minor); }, scores,
                      weights, takes_of_call(), [](const Problem& p) { cuda::run(architecture, p); },
                      [](const Problem& p) { return cuda::refusal(architecture, p); },
                      [](const Problem& p) { return cuda::workspace_bytes(architecture, p); }});
  }
}

}  // namespace

std::span<const cuda::Architecture* const> cuda::architectures() {
  static constexpr std::array all{&sm90::architecture};
  return all;
}

std::span<const Kernel> cuda::kernels() {
  static const std::vector<Kernel> rows = [] {
    std::vector<Kernel> all;
    append_rows<sm90::architecture>(all);
    return all;
  }();
  return rows;
}

}  // namespace chitu
