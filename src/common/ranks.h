// SPDX-License-Identifier: Apache-2.0
// Quant::sorted: how the tokens of a tile are ranked, and where a GPU's tile keeps them. Ranks compare whole numbers, so that every backend
// finds the same. constexpr, for host and device.
#pragma once

#include <bit>
#include <cstdint>

#include "chitu/method.h"

namespace chitu {

// What is compared of the token at `place` in its tile: the larger has the lower rank. maximum: its largest magnitude as it is when scales
// are taken; 0 for a token that is not finite, and for a place behind the end of the sequence. The place is in the lowest bits, so no two
// numbers of a tile are equal, and of equal maxima the earlier token comes first. As the sign is 0, signed numbers compare alike.
constexpr std::uint32_t ranking_number(float maximum, int place) {
  return (std::bit_cast<std::uint32_t>(maximum) & ~std::uint32_t{tile_tokens - 1}) | static_cast<std::uint32_t>(tile_tokens - 1 - place);
}
static_assert((tile_tokens & (tile_tokens - 1)) == 0);

// The scale, of those of its tile, that a token with this rank takes.
constexpr int sorted_group(const Groups& groups, int rank) { return rank / (tile_tokens / groups.lanes); }

// The row of a GPU's tile where a key with this rank stands, for 4 scales a tile: the two columns of 8 that a lane of an accumulator holds
// share a scale, as with keys that are not sorted.
constexpr int row_of_rank(int rank) { return rank % 32 / 2 * 8 + rank / 32 * 2 + rank % 2; }

}  // namespace chitu
