// SPDX-License-Identifier: Apache-2.0
// The quantiser, once for all instruction sets. Each step is one rounding of fp32, so every one gives the same integers and scales:
// docs/numerics.md, "Quantising", is its specification.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "common/limits.h"
#include "common/numbers.h"
#include "common/ranks.h"
#include "common/rotation.h"
#include "cpu/backend.h"

namespace chitu::cpu {

template <class S>
struct Quantizer {
  using F = typename S::F;
  static constexpr int W = S::width;
  static constexpr int padded_max = max_dim + 16;
  static constexpr float headroom = rotation_headroom;  // for centring too

  static void to_f32(const void* from, DType type, float* to, std::int64_t count) {
    std::int64_t i = 0;
    if (type == DType::f32) {
      std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
      return;
    }
    const auto* half = static_cast<const std::uint16_t*>(from);
    if (type == DType::f16)
      for (; i + W <= count; i += W) S::store(to + i, S::load_f16(half + i));
    if (type == DType::bf16)
      for (; i + W <= count; i += W) S::store(to + i, S::load_bf16(half + i));
    for (; i < count; ++i) to[i] = chitu::load(from, type, i);
  }

  // NaN of any but the usual payload may become another number in bf16: kernels make the usual one only.
  static void from_f32(const float* from, DType type, void* to, std::int64_t count) {
    if (type == DType::f32) {
      std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
      return;
    }
    auto* half = static_cast<std::uint16_t*>(to);
    std::int64_t i = 0;
    if (type == DType::f16)
      for (; i + W <= count; i += W) S::store_f16(half + i, S::load(from + i));
    if (type == DType::bf16)
      for (; i + W <= count; i += W) {
        const auto bits = S::bits(S::load(from + i));
        const auto odd = S::and_i(S::template shift_right<16>(bits), S::set_i(1));
        S::store_u16(half + i, S::template shift_right<16>(S::add_i(bits, S::add_i(odd, S::set_i(0x7fff)))));
      }
    for (; i < count; ++i) chitu::store(to, type, i, from[i]);
  }

  static bool finite(const float* x, int padded) {
    F sum = S::zero();  // 0 * infinity and 0 * NaN are NaN
    for (int c = 0; c < padded; c += W) sum = S::fma(S::load(x + c), S::zero(), sum);
    return S::finite(sum);
  }

  // (x - centre) * signs; the centre has been multiplied by them before.
  static F centred(const float* x, const float* signs, const float* centre, int c) {
    return S::sub(S::mul(S::load(x + c), S::load(signs + c)), S::load(centre + c));
  }

  template <int n>
  static F butterfly(F x, int block) {
    if constexpr (n < W) {
      if (n < block) return S::add(S::template exchange<n>(x), S::template negate_odd<n>(x));
    }
    return x;
  }

  // In registers, for whole blocks of `count` vectors: g++ 12 would go through memory at each span.
  template <int count>
  static void rotate_block(float* x, const float* signs, const float* centre) {
    F v[count];
    for (int i = 0; i < count; ++i) {
      v[i] = centred(x, signs, centre, i * W);
      v[i] = butterfly<1>(v[i], W * count);
      v[i] = butterfly<2>(v[i], W * count);
      v[i] = butterfly<4>(v[i], W * count);
      v[i] = butterfly<8>(v[i], W * count);
    }
    for (int n = 1; n < count; n *= 2)
      for (int i = 0; i < count; ++i)
        if (!(i & n)) {
          const F a = v[i], b = v[i | n];
          v[i] = S::add(a, b);
          v[i | n] = S::sub(a, b);
        }
    const F scale = S::set(rotation_scale(W * count));
    for (int i = 0; i < count; ++i) S::store(x + i * W, S::mul(v[i], scale));
  }

  static void rotate(float* x, const float* signs, const float* centre, int padded, int block) {
    if (block == 4 * W && padded == block) return rotate_block<4>(x, signs, centre);
    if (block == 8 * W && padded == block) return rotate_block<8>(x, signs, centre);
    for (int c = 0; c < padded; c += W) {
      F v = centred(x, signs, centre, c);
      v = butterfly<1>(v, block);
      v = butterfly<2>(v, block);
      v = butterfly<4>(v, block);
      v = butterfly<8>(v, block);
      S::store(x + c, v);
    }
    for (int n = W; n < block; n *= 2)
      for (int base = 0; base + 2 * n <= padded; base += 2 * n)
        for (int c = base; c < base + n; c += W) {
          const F a = S::load(x + c), b = S::load(x + c + n);
          S::store(x + c, S::add(a, b));
          S::store(x + c + n, S::sub(a, b));
        }
    const F scale = S::set(rotation_scale(block));
    for (int c = 0; c < padded; c += W) S::store(x + c, S::mul(S::load(x + c), scale));
  }

  static float maximum(const float* x, int padded) {
    F m = S::zero();
    for (int c = 0; c < padded; c += W) m = S::max(m, S::abs(S::load(x + c)));
    return S::reduce_max(m);
  }

  static float sum_of_sizes(const float* x, int padded) {
    F m = S::zero();
    for (int c = 0; c < padded; c += W) m = S::add(m, S::abs(S::load(x + c)));
    return S::reduce_add(m);
  }

  // round(x * factor) as i8, factor a number or a vector over channels.
  static void round_i8(const float* x, float factor, std::int8_t* to, int dim) {
    const F f = S::set(factor), high = S::set(127), low = S::set(-127);
    int c = 0;
    for (; c + W <= dim; c += W) S::store_i8(to + c, S::to_int(S::max(S::min(S::mul(S::load(x + c), f), high), low)));
    if (c < dim) {
      std::int8_t tail[W];
      S::store_i8(tail, S::to_int(S::max(S::min(S::mul(S::load(x + c), f), high), low)));
      std::memcpy(to + c, tail, static_cast<std::size_t>(dim - c));
    }
  }

  static void quantize(TokenChunk& t) {
    const int padded = (t.dim + W - 1) / W * W;
    alignas(64) static thread_local float rows[tile_tokens][padded_max];
    alignas(64) static constexpr float zeros[padded_max] = {};
    alignas(64) float centre[padded_max] = {}, with[padded_max] = {}, factors[padded_max] = {}, signs[padded_max];
    if (t.centre) std::copy_n(t.centre, t.dim, centre);
    if (t.correction_centre) std::copy_n(t.correction_centre, t.dim, with);
    if (t.channel_factors) std::copy_n(t.channel_factors, t.dim, factors);
    const float unit = t.centre || t.quant.rotated ? headroom : 1;
    for (int c = 0; c < padded; ++c) {
      signs[c] = t.quant.rotated && rotation_negates(c) ? -unit : unit;
      centre[c] *= signs[c];
      with[c] *= headroom;
    }

    for (int i = 0; i < t.count; ++i) {
      float* x = rows[i];
      const std::byte* from = static_cast<const std::byte*>(t.rows) + i * t.row_stride * bytes(t.type);
      // The rows come from memory: fetched while earlier ones are worked on, this takes two thirds of the time.
      if (i + 8 < t.count) {
        const std::byte* ahead = from + 8 * t.row_stride * bytes(t.type);
        for (int b = 0; b < t.dim * bytes(t.type); b += 64) __builtin_prefetch(ahead + b);
      }
      for (int c = t.dim; c < padded; ++c) x[c] = 0;
      to_f32(from, t.type, x, t.dim);
      if (!finite(x, padded)) {
        t.nonfinite.set(static_cast<std::size_t>(i));
        if (t.by_number)
          std::replace_if(
              x, x + padded, [](float number) { return !is_finite(number); }, 0.f);
        else
          std::fill_n(x, padded, 0.f);
      }
      if (t.corrections) {
        F sum = S::zero();
        for (int c = 0; c < padded; c += W) sum = S::fma(S::load(x + c), S::load(with + c), sum);
        t.corrections[i] = S::reduce_add(sum) / headroom;
      }
      if (!t.values) continue;  // Scaling::none: only looked at
      const float* minus = t.nonfinite[static_cast<std::size_t>(i)] ? zeros : centre;
      if (t.quant.rotated)
        rotate(x, signs, minus, padded, rotation_block(t.dim));
      else if (t.centre)
        for (int c = 0; c < padded; c += W) S::store(x + c, centred(x, signs, minus, c));
      if (t.channel_factors)
        for (int c = 0; c < padded; c += W) S::store(x + c, S::mul(S::load(x + c), S::load(factors + c)));
    }
    if (!t.values) return;
    switch (t.quant.scaling) {
      case Scaling::tokens:
        by_tokens(t, rows, padded, unit);
        break;
      case Scaling::tile:
        by_tile(t, rows, padded);
        break;
      default:
        by_factor(t, rows, padded);
        break;
    }
  }

  using Rows = float[tile_tokens][padded_max];

  // The ranks of a tile's first `count` tokens by their sizes: how many of its numbers are larger.
  static void rank(const std::array<float, tile_tokens>& sizes, int count, std::uint8_t* ranks) {
    alignas(64) std::int32_t numbers[tile_tokens], larger[tile_tokens] = {};
    for (int i = 0; i < tile_tokens; ++i) numbers[i] = static_cast<std::int32_t>(ranking_number(sizes[static_cast<std::size_t>(i)], i));
    for (int i = 0; i < tile_tokens; i += W)
      for (int j = 0; j < tile_tokens; ++j)
        for (int lane = 0; lane < W; ++lane) larger[i + lane] += numbers[j] > numbers[i + lane];
    for (int i = 0; i < count; ++i) ranks[i] = static_cast<std::uint8_t>(larger[i]);
  }

  // Rows are of numbers times `unit`.
  static void by_tokens(TokenChunk& t, const Rows& rows, int padded, float unit) {
    const Groups& groups = t.quant.groups;
    const auto count = static_cast<std::size_t>(t.count), scales = static_cast<std::size_t>(groups.count(t.count));
    std::array<float, tile_tokens> sizes{}, factors;  // of each token, of each group in the chunk
    std::array<std::size_t, tile_tokens> group;       // of each token
    for (std::size_t i = 0; i < count; ++i) sizes[i] = maximum(rows[i], padded);
    if (t.ranks) rank(sizes, t.count, t.ranks);
    for (int i = 0; i < t.count; ++i)
      group[static_cast<std::size_t>(i)] = static_cast<std::size_t>(t.ranks ? sorted_group(groups, t.ranks[i]) : groups.of(i));

    std::array<float, tile_tokens> maxima;
    maxima.fill(smallest_maximum * unit);
    for (std::size_t i = 0; i < count; ++i) maxima[group[i]] = std::max(maxima[group[i]], sizes[i]);
    const float back = 1 / unit;  // a power of two
    for (std::size_t g = 0; g < scales; ++g) t.scales[g] = maxima[g] / 127 * back;
    for (std::size_t g = 0; g < scales; ++g) factors[g] = 127 / maxima[g];
    for (std::size_t i = 0; i < count; ++i)
      round_i8(rows[i], factors[group[i]], reinterpret_cast<std::int8_t*>(t.values) + static_cast<std::int64_t>(i) * t.dim, t.dim);
  }

  static void by_tile(TokenChunk& t, Rows& rows, int padded) {
    float m = 0, smallest = std::numeric_limits<float>::infinity();  // mean size of the smallest key that is not zero
    for (int i = 0; i < t.count; ++i) {
      m = std::max(m, maximum(rows[i], padded));
      if (const float size = sum_of_sizes(rows[i], padded) / static_cast<float>(t.dim); size > 0) smallest = std::min(smallest, size);
    }
    if (!is_finite(m)) {  // numbers so much larger than λ are not exact, but spoil nothing
      const F high = S::set(largest(DType::f32)), low = S::set(-largest(DType::f32));
      for (int i = 0; i < t.count; ++i)
        for (int c = 0; c < padded; c += W) S::store(rows[i] + c, S::max(S::min(S::load(rows[i] + c), high), low));
      m = largest(DType::f32);
    }
    t.flagged = m > flag_ratio * smallest;
    m = std::max(m, smallest_maximum);
    const float scale = m / 127, factor = 127 / m, residual_factor = residual_parts * factor;
    t.scales[0] = scale;
    for (int i = 0; i < t.count; ++i) {
      auto* to = reinterpret_cast<std::int8_t*>(t.values) + std::int64_t{i} * t.dim;
      round_i8(rows[i], factor, to, t.dim);
      if (!t.flagged) continue;
      alignas(64) float rest[padded_max];
      for (int c = 0; c < padded; ++c) rest[c] = c < t.dim ? rows[i][c] - to[c] * scale : 0;
      round_i8(rest, residual_factor, t.residual + std::int64_t{i} * t.dim, t.dim);
    }
    if (t.flagged) std::fill_n(t.residual + std::int64_t{t.count} * t.dim, std::int64_t{tile_tokens - t.count} * t.dim, std::int8_t{0});
  }

  static void by_factor(TokenChunk& t, Rows& rows, int padded) {
    for (int i = 0; i < t.count; ++i) {
      if (t.quant.scaling == Scaling::head)
        for (int c = 0; c < padded; c += W) S::store(rows[i] + c, S::mul(S::load(rows[i] + c), S::set(t.head_factor)));
      if (t.quant.type == DType::i8) {
        round_i8(rows[i], 1, reinterpret_cast<std::int8_t*>(t.values) + std::int64_t{i} * t.dim, t.dim);
      } else {
        for (int c = 0; c < t.dim; ++c) chitu::store(t.values, t.quant.type, std::int64_t{i} * t.dim + c, rows[i][c]);
      }
    }
  }
};

}  // namespace chitu::cpu
