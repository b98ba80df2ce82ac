// SPDX-License-Identifier: Apache-2.0
// The fixed orthogonal matrix that queries and keys of a rotated recipe are multiplied by: signs, then a Hadamard matrix on each
// block of the largest power of two that divides the dim. Without the signs an offset common to all channels becomes one spike.
#pragma once

#include <cstdint>

namespace chitu {

constexpr int rotation_block(int dim) { return dim & -dim; }

// (-1)^(c0 c2 + c1 c3 + c4 c5), c0 ... the bits of the channel.
constexpr bool rotation_negates(int channel) {
  const auto bit = [&](int i) { return channel >> i & 1; };
  return (bit(0) & bit(2)) ^ (bit(1) & bit(3)) ^ (bit(4) & bit(5));
}

// The Hadamard matrix is scaled by this once, after the butterflies.
constexpr float rotation_scale(int block) {
  float scale = 1;
  for (; block >= 4; block /= 4) scale /= 2;
  return block == 2 ? scale * 0.70710678118654752440f : scale;
}

// Numbers are multiplied by this before they are rotated, and their scale is divided by it. That is exact, and sums of max_dim numbers of
// twice fp32's largest stay finite.
constexpr float rotation_headroom = 0x1p-10f;

}  // namespace chitu
