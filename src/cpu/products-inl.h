// SPDX-License-Identifier: Apache-2.0
// The two products of attention, each a register block of NR rows by a few vectors, in F32, Bf16 or Int8.
#pragma once

#include <limits>

#include "cpu/panels-inl.h"

namespace chitu::cpu {

// Vectors of lanes and their sums.
template <class S, class N>
struct Lanes {  // F32
  using Vector = typename S::F;
  using Sum = typename S::F;
  static Vector load(const std::byte* p) { return S::load(reinterpret_cast<const float*>(p)); }
  static Vector broadcast(const std::byte* p) { return S::set(*reinterpret_cast<const float*>(p)); }
  static Sum zero() { return S::zero(); }
  static Sum dot(Sum sum, Vector a, Vector b) { return S::fma(a, b, sum); }
  static typename S::F finish(Sum sum) { return sum; }
};
template <class S>
struct Lanes<S, Bf16> {
  using Vector = typename S::I;
  using Sum = typename S::F;
  static Vector load(const std::byte* p) { return S::load_i(p); }
  static Vector broadcast(const std::byte* p) { return S::broadcast_i(p); }
  static Sum zero() { return S::zero(); }
  static Sum dot(Sum sum, Vector a, Vector b) { return S::dot2(sum, a, b); }
  static typename S::F finish(Sum sum) { return sum; }
};
template <class S>
struct Lanes<S, Int8> {
  using Vector = typename S::I;
  using Sum = typename S::I;
  static Vector load(const std::byte* p) { return S::load_i(p); }
  static Vector broadcast(const std::byte* p) { return S::broadcast_i(p); }
  static Sum zero() { return S::set_i(0); }
  static Sum dot(Sum sum, Vector u8, Vector s8) { return S::dot4(sum, u8, s8); }
  static typename S::F finish(Sum sum) { return S::to_float(sum); }
};

template <class S, class N>
struct VectorProducts {
  using F = typename S::F;
  using L = Layout<S>;
  using X = Lanes<S, N>;
  static constexpr int W = S::width, R = L::R, V = L::V;

  // scores[r][j] = query r . key j, times the key's scale if any, as change(where it goes, score) gives it back vector by vector; top[r]:
  // lane by lane the larger of top[r], unless this is the first panel, and they. query: [lane][R], Int8 with 128 added; keys:
  // [lane][panel]; start: [panel], Int8 only; key_scale: [panel] or null.
  template <int NR, class Change>
  [[gnu::noinline]] static void scores(const std::byte* query, const std::byte* keys, const std::int32_t* start, const float* key_scale,
                                       int lanes, float* scores, float (*top)[W], bool first, const Change& change) {
    typename X::Sum sum[NR * V];
    typename X::Vector k[V];
    unroll<NR * V>([&](auto i) {
      if constexpr (std::is_same_v<N, Int8>)
        sum[i] = S::load_i(start + i % V * W);
      else
        sum[i] = X::zero();
    });
    for (int lane = 0; lane < lanes; ++lane, query += R * 4, keys += L::panel * 4) {
      unroll<V>([&](auto v) { k[v] = X::load(keys + v * W * 4); });
      unroll<NR>([&](auto r) {
        const auto q = X::broadcast(query + r * 4);
        unroll<V>([&](auto v) { sum[r * V + v] = X::dot(sum[r * V + v], q, k[v]); });
      });
    }
    unroll<NR>([&](auto r) {
      F t = first ? S::set(-std::numeric_limits<float>::infinity()) : S::load(top[r]);
      unroll<V>([&](auto v) {
        F score = X::finish(sum[r * V + v]);
        if (key_scale) score = S::mul(score, S::load(key_scale + v * W));
        float* const to = scores + r * tile_tokens + v * W;
        score = change(to, score);
        S::store(to, score);
        t = S::max(score, t);
      });
      S::store(top[r], t);
    });
  }

  // out[r] = out[r] * keep[r] + weight[r] * sum over the lanes of keys [begin, end) of weights[r] * values; keep may be null, for all 1.
  // weights: [R][tile_tokens] of 32 / group bits; values: [lane][NV * W]. aside() is called once a lane while it has work left, which hides
  // there.
  template <int NR, int NV, class Aside>
  [[gnu::noinline]] static void values(const std::byte* weights, const std::byte* values, int begin, int end, const float* keep,
                                       const float* weight, float* out, int width, Aside& aside) {
    constexpr int row_bytes = tile_tokens / N::group * 4;
    typename X::Sum sum[NR * NV];
    typename X::Vector x[NV];
    unroll<NR * NV>([&](auto i) { sum[i] = X::zero(); });
    const auto add = [&](int lane) __attribute__((always_inline)) {
      unroll<NV>([&](auto v) { x[v] = X::load(values + (lane * NV + v) * W * 4); });
      unroll<NR>([&](auto r) {
        const auto p = X::broadcast(weights + r * row_bytes + lane * 4);
        unroll<NV>([&](auto v) { sum[r * NV + v] = X::dot(sum[r * NV + v], p, x[v]); });
      });
    };
    int lane = begin / N::group;
    const int lanes = (end + N::group - 1) / N::group;
    // Two loops, for g++ 12 keeps sums in memory that live across a condition.
    Aside hidden = aside;  // in registers
    for (const int last = std::min(lanes, lane + hidden.left()); lane < last; ++lane) {
      add(lane);
      hidden();
    }
    aside = hidden;
    for (; lane < lanes; ++lane) add(lane);
    const auto finish = [&](auto kept) __attribute__((always_inline)) {
      unroll<NR * NV>([&](auto i) {
        float* to = out + i / NV * width + i % NV * W;
        const F before = S::load(to), now = S::mul(X::finish(sum[i]), S::set(weight[i / NV]));
        if constexpr (kept)
          S::store(to, S::add(before, now));
        else
          S::store(to, S::fma(before, S::set(keep[i / NV]), now));
      });
    };
    keep ? finish(std::false_type{}) : finish(std::true_type{});
  }
};

}  // namespace chitu::cpu
