// SPDX-License-Identifier: Apache-2.0
// What makes a step's u8 weights from its scores, a part of them at each call: beside a product, for block-inl.h.
#pragma once

#include "cpu/exp2-inl.h"
#include "cpu/shared-inl.h"

namespace chitu::cpu {

// Makes the u8 weights of a step, a vector of them each time. Beside INT8 products only its two multiplications take time: additions,
// maxima, shuffles and conversions have units of their own, which the products leave idle.
template <class S, bool unrounded>
struct VectorWeigher {
  using F = typename S::F;
  static constexpr int W = S::width, vectors = tile_tokens / W;
  const Scratch<S, Int8>* x;
  std::byte* weights;
  float (*sums)[W];
  unsigned next, end;

  int left() const { return static_cast<int>(end - next); }
  [[gnu::always_inline]] void operator()() {
    const unsigned r = next / vectors;
    // No fma() here: the product must be rounded as find_maximum() rounded the maximum's. Otherwise, from scores of 2^31 on, the largest
    // weight would not be 2^0.
    const F p = exp2_u8<S>(S::add(S::mul(S::load(x->scores + next * W), S::load(x->factor[r])), S::set(x->offset[r])));
    S::store_u8(weights + next * W, S::to_int(p));
    if constexpr (unrounded) S::store(sums[r], S::add(S::load(sums[r]), p));
    ++next;
  }
};

// The same for products on tiles, a row each time, in words of 16 bits unless unrounded weights are wanted. Weights lie in the order in
// which vectors are packed, values likewise.
template <class S, bool unrounded>
struct RowWeigher {
  using F = typename S::F;
  using I = typename S::I;
  static constexpr int W = S::width, vectors = tile_tokens / W;
  const Scratch<S, Int8>* x;
  std::byte* weights;
  float (*sums)[W];
  unsigned next, end;

  int left() const { return static_cast<int>(end - next); }
  [[gnu::always_inline]] void operator()() {
    const float unit = unrounded ? 1 : exp2_words_unit;
    const F factor = S::mul(S::load(x->factor[next]), S::set(unit));
    const float offset = x->offset[next] * unit;
    if (unrounded || (is_finite(offset) && S::finite(factor)))
      weigh(factor, S::set(offset), 1);
    else  // scores or their factors near fp32's end: the unit comes last
      weigh(S::load(x->factor[next]), S::set(x->offset[next]), unit);
    ++next;
  }

 private:
  [[gnu::always_inline]] void weigh(F factor, F offset, float unit) {
    const float* scores = x->scores + next * tile_tokens;
    F sum = S::zero();
    for (int v = 0; v < vectors; v += 4) {
      I n[4];
      unroll<4>([&](auto i) {
        F to = S::add(S::mul(S::load(scores + (v + i) * W), factor), offset);  // no fma() here either
        if (unit != 1) to = S::mul(to, S::set(unit));
        const F p = unrounded ? exp2_u8<S>(to) : to;
        if (unrounded) sum = S::add(sum, p);
        n[i] = S::to_int(p);
      });
      S::store_i(weights + next * tile_tokens + v * W,
                 unrounded ? S::pack_u8(S::pack_words(n[0], n[1]), S::pack_words(n[2], n[3])) : exp2_words<S>(n[0], n[1], n[2], n[3]));
    }
    if (unrounded) S::store(sums[next], sum);
  }
};

}  // namespace chitu::cpu
