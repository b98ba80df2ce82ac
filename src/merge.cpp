// SPDX-License-Identifier: Apache-2.0
// merge(): checks its arguments and chooses the device's function.
#include <utility>

#include "checks.h"
#include "chitu/attention.h"
#include "cpu/backend.h"

namespace chitu {
namespace {

void check_part(const Output& part, const std::string& name, const Shape& shape) {
  const std::string out = "merge: out of " + name, lse = "merge: lse of " + name;
  check_tensor(part.out, out, false);
  require(part.out.shape == shape, out, " has shape ", AsText(part.out.shape), ", that of a ", AsText(shape), "; all must be of one shape");
  require(part.out.device == Device::cpu, out, " is not in CPU memory; merge() takes no other");
  if (empty(part.out)) return;
  require(given(part.lse), "merge: ", name, " has no lse; both parts and the result need one");
  check_lse(part.lse, lse, shape);
  require(part.lse.device == Device::cpu, lse, " is not in CPU memory; merge() takes no other");
}

}  // namespace

void merge(const Output& a, const Output& b, const Output& result) {
  with_own_errors([&] {
    const Shape& shape = a.out.shape;
    for (const auto& [part, name] : {std::pair{&a, "a"}, {&b, "b"}, {&result, "result"}}) check_part(*part, name, shape);
    check_written(result.out, "merge: out of result");
    check_written(result.lse, "merge: lse of result");
    cpu::merge(a, b, result);
  });
}

}  // namespace chitu
