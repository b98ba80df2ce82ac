// SPDX-License-Identifier: Apache-2.0
// A Quantized as bytes: what travels. A reader gets views of the bytes, no copy of the numbers.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "chitu/attention.h"

namespace chitu::dist {

using Bytes = std::vector<std::byte>;

inline constexpr std::size_t wire_alignment = 64;  // of each part within the bytes, and of the bytes' length

// Appends it. `to` has a multiple of wire_alignment bytes, before and after.
void write(const Quantized& quantized, Bytes& to);

// What write() has written at the start of the bytes, which it then takes off. The result views them. quant and role are not on the wire.
Quantized read(std::span<std::byte>& from, Role role, const Quant& quant);

// Copies numbers between views of one shape and type.
void copy(const Tensor& from, const Tensor& to);

// A view of heads [first, first + count) of t, or of its tokens.
Tensor heads_of(Tensor t, std::int64_t first, std::int64_t count);
Tensor tokens_of(Tensor t, std::int64_t first, std::int64_t count);

std::int64_t elements(const Shape& shape);

}  // namespace chitu::dist
