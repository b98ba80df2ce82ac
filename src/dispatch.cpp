// SPDX-License-Identifier: Apache-2.0
// Which kernel runs a problem, and why the others do not.
#include "dispatch.h"

#include <algorithm>
#include <initializer_list>

#include "cpu/rows.h"
#include "cuda/rows.h"

namespace chitu {
namespace {

using Operands = std::initializer_list<const Operand*>;

// Can a product whose operands the recipe stores as `quant` be computed in `arithmetic`?
bool fits(Arithmetic arithmetic, const Quant& quant, Operands operands) {
  const auto stored_as = [&](DType type) {
    if (quant.scaling != Scaling::none) return quant.type == type;
    return std::all_of(operands.begin(), operands.end(), [&](const Operand* o) { return o->tensor().type == type; });
  };
  switch (arithmetic) {
    case Arithmetic::any:
      return true;
    case Arithmetic::f32:
      return !stored_as(DType::i8);
    case Arithmetic::f16:
      return stored_as(DType::f16);
    case Arithmetic::bf16:
      return stored_as(DType::bf16);
    case Arithmetic::fp8:
      return stored_as(DType::e4m3);
    case Arithmetic::int8:
      return stored_as(DType::i8);
  }
  return false;
}
bool scores_fit(const Kernel& k, const Problem& p) { return fits(k.scores, p.options.recipe.key, {&p.query, &p.key}); }
bool weights_fit(const Kernel& k, const Problem& p) { return fits(k.weights, p.options.recipe.value, {&p.value}); }

std::string misfit(Arithmetic arithmetic, const char* product) {
  const bool by_operands = arithmetic == Arithmetic::f16 || arithmetic == Arithmetic::bf16;
  return std::string("computes ") + product + " in " + name(arithmetic) + ", " +
         (by_operands                     ? std::string("the operands are not ") + name(arithmetic)
          : arithmetic == Arithmetic::f32 ? "the recipe in int8"
                                          : "the recipe does not");
}

// Empty: the row takes all that the call asks for.
std::string beyond(const Kernel& k, const Problem& p) {
  const Needs missing = p.needs.without(k.takes);
  if (missing.empty()) return {};
  std::string names;
  for (int i = 0; i < need_count; ++i)
    if (const Need need{static_cast<std::uint8_t>(i)}; missing.has(need)) names += (names.empty() ? "" : ", ") + std::string(name(need));
  return "does not take " + names;
}

// Throws unless Options::kernel, if given, is a row's name.
void check_kernel(const Problem& p) {
  std::string names, last;
  for (const Kernel& k : kernel_table()) {
    if (p.options.kernel.empty() || p.options.kernel == k.name) return;
    if (last != k.name) names += (names.empty() ? "" : ", ") + std::string(k.name);
    last = k.name;
  }
  throw Error(ErrorCode::bad_argument, "kernel is '" + std::string(p.options.kernel) + "'; the kernels are " + names);
}

// How an operand that came quantised lies in memory; empty for a tensor.
std::string layout_of(const Operand& operand, const char* name) {
  const Quantized* q = operand.quantized();
  if (!q) return {};
  const std::string what = std::string(name) + " came quantised, ";
  if (q->quant.scaling == Scaling::none) return what + "but this recipe leaves it as it was\n";
  const std::string version = ", format version " + std::to_string(q->version) + "\n";
  if (q->values.device == Device::cpu) return what + "row by row in CPU memory" + version;
  return what + "in tiles of " + std::to_string(tile_tokens) + " tokens in one block of " + std::to_string(q->block_bytes) +
         " bytes on GPU " + std::to_string(q->values.device_id) + version;
}

}  // namespace

std::span<const Kernel> kernel_table() {
  static const auto rows = [] {
    std::vector<Kernel> all(cuda::kernels().begin(), cuda::kernels().end());
    all.insert(all.end(), cpu::kernels().begin(), cpu::kernels().end());
    return all;
  }();
  return rows;
}

std::string refusal(const Kernel& k, const Problem& p) {
  if (!p.options.kernel.empty() && p.options.kernel != k.name) return "options ask for " + std::string(p.options.kernel);
  if (k.device != p.device()) return k.device == Device::cpu ? "is for tensors in CPU memory" : "is for tensors on a GPU";
  if (std::string why = beyond(k, p); !why.empty()) return why;
  if (k.refuses)
    if (std::string why = k.refuses(p); !why.empty()) return why;
  if (!k.available()) return "this machine lacks its instructions";
  if (!scores_fit(k, p)) return misfit(k.scores, "scores");
  if (!weights_fit(k, p)) return misfit(k.weights, "weights . values");
  return {};
}

const Kernel& select(const Problem& p) {
  check_kernel(p);
  for (const Kernel& k : kernel_table())  // the cheap questions first: a GPU's row asks its driver
    if (scores_fit(k, p) && weights_fit(k, p) && refusal(k, p).empty()) return k;
  std::string reasons;
  for (const Kernel& k : kernel_table())
    reasons += "\n  " + std::string(k.name) + " (" + name(k.scores) + ", " + name(k.weights) + "): " + refusal(k, p);
  throw Error(ErrorCode::unsupported, "no kernel takes this call:" + reasons);
}

std::string explain(const Problem& p) {
  check_kernel(p);
  std::string text;
  for (const Kernel& k : kernel_table()) {
    const std::string why = refusal(k, p);
    text += std::string(k.name) + " (scores in " + name(k.scores) + ", weights in " + name(k.weights) +
            "): " + (why.empty() ? "takes it" : why) + "\n";
    if (why.empty()) break;
  }
  return text + layout_of(p.query, "query") + layout_of(p.key, "key") + layout_of(p.value, "value");
}

std::string explain(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options) {
  return with_own_errors([&] { return explain(describe(query, key, value, output, options, Data::unread)); });
}

std::vector<KernelInfo> kernels() {
  std::vector<KernelInfo> all;
  for (const Kernel& k : kernel_table()) all.push_back({k.name, name(k.scores), name(k.weights), k.available(), k.device});
  return all;
}

}  // namespace chitu
