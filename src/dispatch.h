// SPDX-License-Identifier: Apache-2.0
// From a problem to a kernel: a Kernel is a row of a table, select() takes the first row that does not refuse.
#pragma once

#include <span>
#include <string>

#include "problem.h"

namespace chitu {

// What a kernel computes a product in.
enum class Arithmetic : std::uint8_t { any, f32, f16, bf16, fp8, int8 };
constexpr const char* name(Arithmetic a) {
  constexpr const char* names[] = {"any", "f32", "f16", "bf16", "fp8", "int8"};
  return names[static_cast<int>(a)];
}

struct Kernel {
  const char* name;
  Device device;
  bool (*available)();  // does this machine have the instructions?
  Arithmetic scores;    // query . key
  Arithmetic weights;   // weights . values
  // What a call may ask for beyond the default. A row that has heard of something, but cannot do it, may list it here and refuse it
  // below, in better words.
  Needs takes;
  void (*run)(const Problem&);
  std::string (*refuses)(const Problem&) = nullptr;    // what else it does not take, and why; empty: takes it
  std::size_t (*workspace)(const Problem&) = nullptr;  // bytes; null: none
};

std::string refusal(const Kernel& kernel, const Problem& problem);  // empty: takes it
const Kernel& select(const Problem& problem);
std::string explain(const Problem& problem);
std::span<const Kernel> kernel_table();  // the GPU's rows, then the CPU's; of each best first

}  // namespace chitu
