// SPDX-License-Identifier: Apache-2.0
// The two tensor file formats without files: bytes in, places of tensors out, and the reverse. The fuzzers run these functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chitu/error.h"
#include "chitu/tensor.h"
#include "cli/files/files.h"

namespace chitu::cli {

// Where a file holds a tensor: dense, little-endian, within the file.
struct Stored {
  DType type = DType::f32;
  Shape shape{};
  std::uint64_t offset = 0;  // in bytes
};

// A reader gets the file's first bytes, `start`: all of them, or at least this many. A longer header is refused.
inline constexpr std::uint64_t npy_header_limit = std::uint64_t{1} << 16;
inline constexpr std::uint64_t safetensors_header_limit = std::uint64_t{1} << 24;

Stored parse_npy(std::span<const std::byte> start, std::uint64_t file_bytes);
std::map<std::string, Stored> parse_safetensors(std::span<const std::byte> start, std::uint64_t file_bytes,
                                                std::span<const std::string> names, Others others = Others::ignored);

std::string npy_header(DType type, std::span<const std::int64_t> shape);
std::string safetensors_header(std::span<const NamedTensor> tensors);

// The sizes that a file has for a dense tensor of `rank`. With rank 3 they lack the last one, which must be 1.
std::vector<std::int64_t> file_shape(const Tensor& tensor, int rank);

Shape checked_shape(std::span<const std::int64_t> sizes);     // from a file: rank 4, none negative
std::uint64_t checked_bytes(DType type, const Shape& shape);  // throws where a size or stride would overflow

std::string text(std::span<const std::int64_t> sizes);  // "[2, 3]"
std::string in_quotes(std::string_view piece);          // a piece of a file within an error message: short

}  // namespace chitu::cli
