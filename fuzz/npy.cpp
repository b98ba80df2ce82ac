// SPDX-License-Identifier: Apache-2.0
// Any bytes as a .npy file: refused with an Error, or a tensor that lies within them.
#include "fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto bytes = chitu::fuzz::input(data, size);
    const chitu::cli::Stored stored = chitu::cli::parse_npy(bytes, size);
    chitu::fuzz::check_stored(stored, size);
    // Written again and read again, it is the same tensor.
    const std::string header = chitu::cli::npy_header(stored.type, stored.shape);
    const auto again = std::as_bytes(std::span(header));
    const chitu::cli::Stored reread = chitu::cli::parse_npy(again, header.size() + (size - stored.offset));
    chitu::fuzz::check(reread.type == stored.type && reread.shape == stored.shape && reread.offset == header.size());
  } catch (const chitu::Error&) {
  }
  return 0;
}
