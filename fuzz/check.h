// SPDX-License-Identifier: Apache-2.0
// What every fuzz target demands of an input that was taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cli/files/formats.h"

namespace chitu::fuzz {

inline std::span<const std::byte> input(const std::uint8_t* data, std::size_t size) { return std::as_bytes(std::span(data, size)); }

inline void check(bool holds) {
  if (!holds) __builtin_trap();
}

// A tensor that a reader found lies within its file, and its sizes can be multiplied.
inline void check_stored(const cli::Stored& stored, std::uint64_t file_bytes) {
  std::uint64_t needed = static_cast<std::uint64_t>(bytes(stored.type));
  for (const std::int64_t size : stored.shape) {
    check(size >= 0);
    needed *= static_cast<std::uint64_t>(size);
  }
  check(stored.offset <= file_bytes && needed <= file_bytes - stored.offset);
  const Shape stride = contiguous_strides(stored.shape);  // the undefined-behaviour sanitizer watches
  check(stride[3] == 1);
}

}  // namespace chitu::fuzz
