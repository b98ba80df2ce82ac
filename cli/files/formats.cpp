// SPDX-License-Identifier: Apache-2.0
// What both formats need.
#include "cli/files/formats.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace chitu::cli {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian, and are read as they are");

std::string text(std::span<const std::int64_t> sizes) {
  std::string all = "[";
  for (const std::int64_t size : sizes) all.append(all.size() > 1 ? ", " : "").append(std::to_string(size));
  return all + "]";
}

std::string in_quotes(std::string_view piece) {
  constexpr std::size_t longest = 80;
  return std::string("'").append(piece.substr(0, longest)) + (piece.size() > longest ? "...'" : "'");
}

Shape checked_shape(std::span<const std::int64_t> sizes) {
  constexpr std::size_t shown = 8;
  require(sizes.size() == 4, "has rank ", sizes.size(), ", ", text(sizes.first(std::min(sizes.size(), shown))),
          sizes.size() > shown ? " ..." : "", "; it must have rank 4, batch, heads, tokens and dim, where a batch of one is said as 1");
  for (const std::int64_t size : sizes) require(size >= 0, "has shape ", text(sizes), "; no size may be negative");
  return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

std::uint64_t checked_bytes(DType type, const Shape& shape) {
  // Strides are products of sizes, so they must fit also where another size is 0.
  std::int64_t elements = 1;
  for (const std::int64_t size : shape) {
    require(size == 0 || elements <= std::numeric_limits<std::int64_t>::max() / 8 / size, "has shape ", text(shape),
            ", which is too large");
    elements *= std::max(size, std::int64_t{1});
  }
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  return empty ? 0 : static_cast<std::uint64_t>(elements) * static_cast<std::uint64_t>(bytes(type));
}

std::vector<std::int64_t> file_shape(const Tensor& tensor, int rank) {
  require(tensor.stride == contiguous_strides(tensor.shape), "only a dense tensor can be written");
  require(rank == 4 || (rank == 3 && tensor.shape[3] == 1), "rank is ", rank, ", shape ", text(tensor.shape),
          "; it must be 4, or 3 where the last size is 1");
  return {tensor.shape.begin(), tensor.shape.begin() + rank};
}

}  // namespace chitu::cli
