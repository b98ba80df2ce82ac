// SPDX-License-Identifier: Apache-2.0
// merge(): checks its arguments and chooses the device's function.
#include <array>
#include <string>
#include <utility>

#include "checks.h"
#include "chitu/attention.h"
#include "cpu/backend.h"
#include "cuda/merge.h"

namespace chitu {
namespace {

void check_part(const Output& part, const std::string& name, const Shape& shape) {
  const std::string out = "merge: out of " + name, lse = "merge: lse of " + name;
  check_tensor(part.out, out, false);
  require(part.out.shape == shape, out, " has shape ", AsText(part.out.shape), ", that of the first part ", AsText(shape),
          "; all must be of one shape");
  if (empty(part.out)) return;
  require(given(part.lse), "merge: ", name, " has no lse; all parts and the result need one");
  check_lse(part.lse, lse, shape);
}

void check_device(const Output& part, const std::string& name, const Tensor& first) {
  for (const auto& [t, what] : {std::pair{&part.out, "out"}, {&part.lse, "lse"}})
    require(t->device == first.device && (t->device == Device::cpu || t->device_id == first.device_id), "merge: ", what, " of ", name,
            " is on ", device_name(*t), ", out of the first part on ", device_name(first), "; all must be on one device");
}

// name_of(i): what messages call part i.
template <class NameOf>
void merge_named(std::span<const Output> parts, const Output& result, const MergeOptions& options, const NameOf& name_of) {
  require(!parts.empty(), "merge: there are no parts; at least one is needed");
  const Tensor& first = parts.front().out;
  for (std::size_t i = 0; i < parts.size(); ++i) check_part(parts[i], name_of(i), first.shape);
  check_part(result, "result", first.shape);
  check_written(result.out, "merge: out of result");
  check_written(result.lse, "merge: lse of result");
  check_threads(options.threads);
  const bool on_cpu = first.device == Device::cpu;
  require(!on_cpu || !options.stream, "merge: a stream is given, but the tensors are on the CPU");
  require(on_cpu || options.threads == 0, "merge: threads is ", options.threads, ", but the tensors are on a GPU; it must be 0 there");
  if (empty(first)) return;
  for (std::size_t i = 0; i < parts.size(); ++i) check_device(parts[i], name_of(i), first);
  check_device(result, "result", first);
  if (on_cpu)
    cpu::merge(parts, result, options.threads);
  else
    cuda::merge(parts, result, options.stream);
}

}  // namespace

void merge(std::span<const Output> parts, const Output& result, const MergeOptions& options) {
  with_own_errors([&] { merge_named(parts, result, options, [](std::size_t i) { return "part " + std::to_string(i); }); });
}

void merge(const Output& a, const Output& b, const Output& result, const MergeOptions& options) {
  with_own_errors([&] { merge_named(std::array{a, b}, result, options, [](std::size_t i) -> std::string { return i == 0 ? "a" : "b"; }); });
}

}  // namespace chitu
