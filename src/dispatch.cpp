// SPDX-License-Identifier: Apache-2.0
// Which kernel runs a problem, and why the others do not.
#include "dispatch.h"

#include <algorithm>
#include <initializer_list>

#include "cpu/rows.h"
#include "cuda/rows.h"

namespace chitu {
namespace {

// Empty, or why a product whose operands the recipe stores as `quant` cannot be computed in `arithmetic`.
std::string mismatch(Arithmetic arithmetic, const Quant& quant, std::initializer_list<const Operand*> operands, const char* product) {
  const auto stored_as = [&](DType type) {
    if (quant.scaling != Scaling::none) return quant.type == type;
    return std::all_of(operands.begin(), operands.end(), [&](const Operand* o) { return o->tensor().type == type; });
  };
  const std::string computes = std::string("computes ") + product + " in " + name(arithmetic) + ", ";
  switch (arithmetic) {
    case Arithmetic::any:
      return {};
    case Arithmetic::f32:
      return stored_as(DType::i8) ? computes + "the recipe in int8" : "";
    case Arithmetic::f16:
      return stored_as(DType::f16) ? "" : computes + "the operands are not f16";
    case Arithmetic::bf16:
      return stored_as(DType::bf16) ? "" : computes + "the operands are not bf16";
    case Arithmetic::fp8:
      return stored_as(DType::e4m3) ? "" : computes + "the recipe does not";
    case Arithmetic::int8:
      return stored_as(DType::i8) ? "" : computes + "the recipe does not";
  }
  return {};
}

// Throws unless Options::kernel, if given, is a row's name.
void check_kernel(const Problem& p) {
  std::string names, last;
  for (const Kernel& k : kernel_table()) {
    if (p.kernel.empty() || p.kernel == k.name) return;
    if (last != k.name) names += (names.empty() ? "" : ", ") + std::string(k.name);
    last = k.name;
  }
  throw Error(ErrorCode::bad_argument, "kernel is '" + std::string(p.kernel) + "'; the kernels are " + names);
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
  if (!p.kernel.empty() && p.kernel != k.name) return "options ask for " + std::string(p.kernel);
  if (k.device != p.device()) return k.device == Device::cpu ? "is for tensors in CPU memory" : "is for tensors on a GPU";
  if (k.refuses)
    if (std::string why = k.refuses(p); !why.empty()) return why;
  if (!k.available()) return "this machine lacks its instructions";
  if (std::string why = mismatch(k.scores, p.recipe.key, {&p.query, &p.key}, "scores"); !why.empty()) return why;
  return mismatch(k.weights, p.recipe.value, {&p.value}, "weights . values");
}

const Kernel& select(const Problem& p) {
  check_kernel(p);
  std::string reasons;
  for (const Kernel& k : kernel_table()) {
    const std::string why = refusal(k, p);
    if (why.empty()) return k;
    reasons += "\n  " + std::string(k.name) + " (" + name(k.scores) + ", " + name(k.weights) + "): " + why;
  }
  throw Error(ErrorCode::unsupported, "no kernel takes this call:" + reasons);
}

std::string explain(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options) {
  const Problem p = describe(query, key, value, output, options);
  check_kernel(p);
  std::string text;
  for (const Kernel& k : kernel_table()) {
    const std::string why = refusal(k, p);
    text += std::string(k.name) + " (scores in " + name(k.scores) + ", weights in " + name(k.weights) +
            "): " + (why.empty() ? "takes it" : why) + "\n";
    if (why.empty()) break;
  }
  return text;
}

std::vector<KernelInfo> kernels() {
  std::vector<KernelInfo> all;
  for (const Kernel& k : kernel_table()) all.push_back({k.name, name(k.scores), name(k.weights), k.available(), k.device});
  return all;
}

}  // namespace chitu
