// SPDX-License-Identifier: Apache-2.0
// How many tiles of keys, or of queries, so many tokens make.
#pragma once

#include "chitu/method.h"

namespace chitu {

template <class Int>
constexpr Int tiles_of(Int tokens) {
  return (tokens + tile_tokens - 1) / tile_tokens;
}

}  // namespace chitu
