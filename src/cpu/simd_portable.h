// SPDX-License-Identifier: Apache-2.0
// Plain loops over short arrays, which compilers turn into whatever vectors the target has, for the code in *-inl.h.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/numbers.h"

namespace chitu::cpu {

struct Portable {
  static constexpr int width = 8;
  static constexpr bool has_bf16 = false;
  static constexpr bool has_lookup = false, overlaps = false, has_tiles = false;
  struct Tiles {};
  static constexpr int block_rows = 2, block_vectors = 2;
  struct F {
    float lane[width];
  };
  struct I {
    std::int32_t lane[width];
  };

  template <class V, class Fn>
  static V make(Fn&& fn) {
    V v;
    for (int i = 0; i < width; ++i) v.lane[i] = fn(i);
    return v;
  }

  static F zero() { return set(0); }
  static F set(float x) {
    return make<F>([&](int) { return x; });
  }
  static F load(const float* p) {
    return make<F>([&](int i) { return p[i]; });
  }
  static F load_f16(const std::uint16_t* p) {
    return make<F>([&](int i) { return f16_to_f32(p[i]); });
  }
  static F load_bf16(const std::uint16_t* p) {
    return make<F>([&](int i) { return bf16_to_f32(p[i]); });
  }
  static void store(float* p, F x) { std::memcpy(p, x.lane, sizeof x.lane); }
  static void store_f16(std::uint16_t* p, F x) {
    for (int i = 0; i < width; ++i) p[i] = f32_to_f16(x.lane[i]);
  }
  static F add(F a, F b) {
    return make<F>([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(F a, F b) {
    return make<F>([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(F a, F b) {
    return make<F>([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  // Two roundings: a fused one in software would cost a hundred times as much. No integer depends on it.
  static F fma(F a, F b, F c) {
    return make<F>([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static F max(F a, F b) {
    return make<F>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(F a, F b) {
    return make<F>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F abs(F a) {
    return make<F>([&](int i) { return std::fabs(a.lane[i]); });
  }
  static float reduce_max(F x) {
    float y = x.lane[0];
    for (int i = 1; i < width; ++i) y = x.lane[i] > y ? x.lane[i] : y;
    return y;
  }
  static float reduce_add(F x) {
    float y = 0;
    for (int i = 0; i < width; ++i) y += x.lane[i];
    return y;
  }
  // Lanes first + lane outside [low, high) become `other`.
  static F keep(F x, int first, int low, int high, F other) {
    return make<F>([&](int i) { return first + i >= low && first + i < high ? x.lane[i] : other.lane[i]; });
  }
  static bool finite(F x) {
    bool all = true;
    for (int i = 0; i < width; ++i) all &= is_finite(x.lane[i]);
    return all;
  }

  static I load_u8(const void* p) {
    return make<I>([&](int i) { return static_cast<const std::uint8_t*>(p)[i]; });
  }
  static I load_u16(const void* p) {
    return make<I>([&](int i) { return static_cast<const std::uint16_t*>(p)[i]; });
  }
  static I load_i(const void* p) {
    I x;
    std::memcpy(x.lane, p, sizeof x.lane);
    return x;
  }
  static void store_i(void* p, I x) { std::memcpy(p, x.lane, sizeof x.lane); }
  static I set_i(std::int32_t x) {
    return make<I>([&](int) { return x; });
  }
  static I broadcast_i(const void* p) {  // 32 bits
    std::int32_t lane;
    std::memcpy(&lane, p, 4);
    return set_i(lane);
  }
  static I add_i(I a, I b) {
    return make<I>([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static I dot4(I sum, I u8, I s8) {
    std::uint8_t u[4 * width];
    std::int8_t s[4 * width];
    std::memcpy(u, u8.lane, sizeof u);
    std::memcpy(s, s8.lane, sizeof s);
    return make<I>([&](int i) {
      return sum.lane[i] + u[4 * i] * s[4 * i] + u[4 * i + 1] * s[4 * i + 1] + u[4 * i + 2] * s[4 * i + 2] + u[4 * i + 3] * s[4 * i + 3];
    });
  }
  static I to_int(F x) {
    return make<I>([&](int i) { return static_cast<std::int32_t>(std::nearbyint(x.lane[i])); });
  }
  static F to_float(I x) {
    return make<F>([&](int i) { return static_cast<float>(x.lane[i]); });
  }
  static I bits(F x) { return std::bit_cast<I>(x); }
  static F of_bits(I x) { return std::bit_cast<F>(x); }
  template <int n>
  static I shift_left(I x) {
    return make<I>([&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(x.lane[i]) << n); });
  }
  template <int n>
  static I shift_right(I x) {
    return make<I>([&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(x.lane[i]) >> n); });
  }
  static I and_i(I a, I b) {
    return make<I>([&](int i) { return a.lane[i] & b.lane[i]; });
  }
  static I xor_i(I a, I b) {
    return make<I>([&](int i) { return a.lane[i] ^ b.lane[i]; });
  }
  static void store_i8(std::int8_t* p, I x) {  // of -128 ... 127
    for (int i = 0; i < width; ++i) p[i] = static_cast<std::int8_t>(x.lane[i]);
  }
  static void store_u16(std::uint16_t* p, I x) {  // of 0 ... 65535
    for (int i = 0; i < width; ++i) p[i] = static_cast<std::uint16_t>(x.lane[i]);
  }
  static void store_u8(void* p, I x) {  // saturated at 255
    for (int i = 0; i < width; ++i) static_cast<std::uint8_t*>(p)[i] = static_cast<std::uint8_t>(x.lane[i] < 255 ? x.lane[i] : 255);
  }

  // Lane i gets lane i ^ n.
  template <int n>
  static F exchange(F x) {
    return make<F>([&](int i) { return x.lane[i ^ n]; });
  }
  // Lanes whose bit n is set from b, others from a.
  template <int n>
  static F choose(F a, F b) {
    return make<F>([&](int i) { return i & n ? b.lane[i] : a.lane[i]; });
  }
  // Changes the sign of the lanes whose bit n is set.
  template <int n>
  static F negate_odd(F x) {
    return make<F>([&](int i) { return i & n ? -x.lane[i] : x.lane[i]; });
  }
};

}  // namespace chitu::cpu
