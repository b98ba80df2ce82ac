// SPDX-License-Identifier: Apache-2.0
// Number formats, one conversion each way: to nearest even, saturating where the format has no infinity. constexpr and
// branch-light, for host and device; vector code must give the same bits.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "chitu/tensor.h"

namespace chitu {

constexpr float f16_to_f32(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Re-bias by a product, which also makes subnormals right.
  const float x = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) | sign);
}

constexpr std::uint16_t f32_to_f16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;              // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;             // from 65520 on: infinity
  if (magnitude < 0x38800000u) {                                   // below 2^-14: a multiple of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;  // ulp of [0.5, 1) is 2^-24
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

constexpr float bf16_to_f32(std::uint16_t h) { return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16); }

constexpr std::uint16_t f32_to_bf16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// e4m3 (OCP 8-bit, no infinity, NaN 0x7f): normal from 2^-6 to 448, subnormal multiples of 2^-9.
inline constexpr float e4m3_max = 448;

constexpr float e4m3_to_f32(std::uint8_t e) {
  const std::uint32_t sign = (e & 0x80u) << 24, magnitude = e & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  const float x = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) | sign);
}

constexpr std::uint8_t f32_to_e4m3(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7f;
  if (magnitude >= 0x43e00000u) return sign | 0x7e;                   // from 448 on
  if (magnitude < 0x3c800000u) {                                      // below 2^-6: a multiple of 2^-9
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;  // ulp of [2^14, 2^15) is 2^-9
    return static_cast<std::uint8_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x46800000u));
  }
  const std::uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  const std::uint32_t code = (rounded - 0x3c000000u) >> 20;
  return static_cast<std::uint8_t>(sign | (code > 0x7e ? 0x7e : code));
}

inline std::array<float, 256> e4m3_table() {
  std::array<float, 256> table;
  for (int i = 0; i < 256; ++i) table[static_cast<std::size_t>(i)] = e4m3_to_f32(static_cast<std::uint8_t>(i));
  return table;
}

constexpr bool is_finite(float x) { return (std::bit_cast<std::uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }

constexpr float largest(DType type) {
  constexpr float all[] = {0x1.fffffep127f, 65504, 0x1.fep127f, 127, 255, e4m3_max};  // in the order of DType
  return all[static_cast<int>(type)];
}

// x as an output of this type: a weighted mean of finite numbers never leaves their type, though its rounding or that of the weights may
// put it past the end. NaN stays.
template <class Float>
constexpr Float within(DType type, Float x) {
  const Float end = largest(type);
  return x > end ? end : x < -end ? -end : x;
}

constexpr bool is_float(DType type) { return type == DType::f32 || type == DType::f16 || type == DType::bf16; }

// Element `index` of memory of `type`.
inline float load(const void* data, DType type, std::int64_t index) {
  switch (type) {
    case DType::f32:
      return static_cast<const float*>(data)[index];
    case DType::f16:
      return f16_to_f32(static_cast<const std::uint16_t*>(data)[index]);
    case DType::bf16:
      return bf16_to_f32(static_cast<const std::uint16_t*>(data)[index]);
    case DType::i8:
      return static_cast<const std::int8_t*>(data)[index];
    case DType::u8:
      return static_cast<const std::uint8_t*>(data)[index];
    case DType::e4m3:
      return e4m3_to_f32(static_cast<const std::uint8_t*>(data)[index]);
  }
  return std::numeric_limits<float>::quiet_NaN();
}

inline void store(void* data, DType type, std::int64_t index, float x) {
  switch (type) {
    case DType::f32:
      static_cast<float*>(data)[index] = x;
      break;
    case DType::f16:
      static_cast<std::uint16_t*>(data)[index] = f32_to_f16(x);
      break;
    case DType::bf16:
      static_cast<std::uint16_t*>(data)[index] = f32_to_bf16(x);
      break;
    case DType::i8:
      static_cast<std::int8_t*>(data)[index] = static_cast<std::int8_t>(std::nearbyint(x));
      break;
    case DType::u8:
      static_cast<std::uint8_t*>(data)[index] = static_cast<std::uint8_t>(std::nearbyint(x));
      break;
    case DType::e4m3:
      static_cast<std::uint8_t*>(data)[index] = f32_to_e4m3(x);
      break;
  }
}

// Where row `token` of a head starts.
inline std::byte* row(const Tensor& t, std::int64_t batch, std::int64_t head, std::int64_t token) {
  return static_cast<std::byte*>(t.data) + (batch * t.stride[0] + head * t.stride[1] + token * t.stride[2]) * bytes(t.type);
}

}  // namespace chitu
