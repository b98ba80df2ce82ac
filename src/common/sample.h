// SPDX-License-Identifier: Apache-2.0
// The tokens that sampled vectors (the keys' centre, λ) are made from: one in each stratum, at a scrambled offset, for an even stride
// would alias with the rows of images and video frames.
#pragma once

#include <algorithm>
#include <cstdint>

namespace chitu {

struct Sample {
  std::int64_t count, stride;
  constexpr explicit Sample(std::int64_t tokens)
      : count(std::min(tokens, std::clamp<std::int64_t>(tokens / 16, 64, 256))), stride(count ? tokens / count : 1) {}
  static constexpr std::uint32_t scrambler = 2654435769u;
  constexpr std::int64_t token(std::int64_t i) const {
    const std::int64_t scrambled = (static_cast<std::uint32_t>(i) * scrambler) >> 16;
    return i * stride + (scrambled * stride >> 16);
  }
};

}  // namespace chitu
