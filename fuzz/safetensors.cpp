// SPDX-License-Identifier: Apache-2.0
// Any bytes as a .safetensors file: refused with an Error, or tensors that lie within them.
#include "fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string names[] = {"q", "k", "v"};
  const auto bytes = chitu::fuzz::input(data, size);
  // One name alone too, or most inputs would be refused before a shape is looked at.
  for (const std::size_t count : {3u, 1u, 0u}) {
    const auto wanted = std::span(names).first(count);
    try {
      const auto tensors = chitu::cli::parse_safetensors(bytes, size, wanted);
      chitu::fuzz::check(tensors.size() == wanted.size());
      for (const auto& [name, stored] : tensors) chitu::fuzz::check_stored(stored, size);
    } catch (const chitu::Error&) {
    }
  }
  return 0;
}
