// SPDX-License-Identifier: Apache-2.0
// A view of somebody else's memory. Layout lives in the strides and nowhere else.
#pragma once

#include <array>
#include <cstdint>

namespace chitu {

enum class DType : std::uint8_t { f32, f16, bf16, i8, u8, e4m3 };

constexpr int bytes(DType type) { return type == DType::f32 ? 4 : type == DType::f16 || type == DType::bf16 ? 2 : 1; }

constexpr const char* name(DType type) {
  constexpr const char* names[] = {"f32", "f16", "bf16", "i8", "u8", "e4m3"};
  return type <= DType::e4m3 ? names[static_cast<int>(type)] : "unknown";
}

enum class Device : std::uint8_t { cpu, cuda };

// Sizes are [batch, heads, tokens, dim], always in this order; strides are in elements.
using Shape = std::array<std::int64_t, 4>;

struct Tensor {
  void* data = nullptr;  // inputs are never written
  DType type = DType::f32;
  Device device = Device::cpu;
  int device_id = 0;
  Shape shape{};
  Shape stride{};  // the last is 1; the others may be anything, but not 0 in outputs. That of a size of 1 is never looked at
};

constexpr Shape contiguous_strides(const Shape& shape) { return {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1}; }

// A dense tensor in CPU memory.
constexpr Tensor dense(void* data, DType type, const Shape& shape) {
  return {data, type, Device::cpu, 0, shape, contiguous_strides(shape)};
}

}  // namespace chitu
