// SPDX-License-Identifier: Apache-2.0
// A Quantized as bytes: what travels. Its values, by far the most, go as they lie in memory; this file turns all the rest into bytes. A
// reader gets views of what arrived, no copy of the numbers.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "chitu/attention.h"

namespace chitu::dist {

// New elements are not set to zero: all of them will be written.
template <class T>
struct Uninitialised : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = Uninitialised<U>;
  };
  template <class U, class... Arguments>
  void construct(U* at, Arguments&&... arguments) {
    if constexpr (sizeof...(Arguments) == 0)
      ::new (static_cast<void*>(at)) U;
    else
      std::construct_at(at, std::forward<Arguments>(arguments)...);
  }
};
using Bytes = std::vector<std::byte, Uninitialised<std::byte>>;

inline constexpr std::size_t wire_alignment = 64;  // of each part within the bytes, and of the bytes' length

constexpr std::size_t aligned(std::size_t size) { return (size + wire_alignment - 1) / wire_alignment * wire_alignment; }

// Appends all but the values. `to` has a multiple of wire_alignment bytes, before and after.
void write_rest(const Quantized& quantized, Bytes& to);

// What write_rest() has written at the start of the bytes, which it then takes off, with these values. The result views both. quant and
// role are not on the wire.
Quantized read_rest(std::span<std::byte>& from, const Tensor& values, Role role, const Quant& quant);

bool is_dense(const Tensor& t);
std::span<std::byte> bytes_of(const Tensor& t);  // of a dense one

// Copies numbers between views of one shape and type.
void copy(const Tensor& from, const Tensor& to);

// A view of heads [first, first + count) of t, or of its tokens.
Tensor heads_of(Tensor t, std::int64_t first, std::int64_t count);
Tensor tokens_of(Tensor t, std::int64_t first, std::int64_t count);

std::int64_t elements(const Shape& shape);

}  // namespace chitu::dist
