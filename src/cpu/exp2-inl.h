// SPDX-License-Identifier: Apache-2.0
// 2^x and roundings on vectors, for attention-inl.h.
#pragma once

#include <cstdint>

namespace chitu::cpu {

// 2^x for x in [-126, 127]. x = n + f with f in [-1/2, 1/2]; n comes out of the low bits of x + 1.5 * 2^23. 2^f is a polynomial of least
// relative error: 7.5e-5 (terms = 3) or 9.2e-8 and exactly 1 at 0 (terms = 5). Below -126, and for NaN, terms = 3 gives about 2^-126, for
// weights that are rounded to 0 then. terms = 5 must give 0, for 2^-126 times a large value is not small: at -127 the bits of 1 and those
// of n add up to all zeros, and they fall towards it from 2^-126.
template <class S, int terms>
typename S::F exp2(typename S::F x) {
  static_assert(terms == 3 || terms == 5);
  const auto magic = S::set(12582912.f);
  x = S::max(x, S::set(terms == 3 ? -126.f : -127.f));
  const auto shifted = S::add(x, magic);
  const auto f = S::sub(x, S::sub(shifted, magic));
  typename S::F p;
  if constexpr (terms == 3) {
    p = S::fma(S::set(0.0551716648042202f), f, S::set(0.2426111251115799f));
    p = S::fma(p, f, S::set(0.6932609677314758f));
    p = S::fma(p, f, S::set(0.9999280571937561f));
  } else {
    p = S::fma(S::set(0.001326472731307149f), f, S::set(0.009671512991189957f));
    p = S::fma(p, f, S::set(0.05550733581185341f));
    p = S::fma(p, f, S::set(0.24022242426872253f));
    p = S::fma(p, f, S::set(0.6931470036506653f));
    p = S::fma(p, f, S::set(1.f));
  }
  return S::of_bits(S::add_i(S::bits(p), S::template shift_left<23>(S::bits(shifted))));
}

// 2^x for weights that become 8 bits: relative error 1.2e-4 with a table, for only its two multiplications take time beside an INT8
// product, else 7.5e-5. It is to be given x - exp2_u8_shift.
//
// x - shift = n + j / 16 + r with |r| <= 1/32, and 2^(j / 16 + shift + r) is nearly linear in r. To multiply by 2^n is to add n to the
// exponent; what is added is n + j / 16, so the table holds numbers whose bits are too small by j / 16 of an exponent. The shift
// keeps these between 1 and 2, and 2^(j / 16 + shift + r) on the same side of 2 for all r.
template <class S>
constexpr float exp2_u8_shift = S::has_lookup ? 5.f / 32 : 0;

struct Exp2Table {
  alignas(64) float at[16] = {}, slope[16] = {};  // of r
  constexpr Exp2Table() {
    double power = 1.1143831478670627;  // 2^(5 / 32)
    for (int j = 0; j < 16; ++j, power *= 1.0442737824274138 /* 2^(1 / 16) */) {
      const bool above = power > 2;
      const double mantissa = above ? power / 2 : power;
      at[j] = static_cast<float>(mantissa * 1.000117282811692 + (above ? 1 : 0) - j / 16.);
      slope[j] = static_cast<float>(mantissa * 0.693120075977664);
    }
  }
};
inline constexpr Exp2Table exp2_table;

template <class S>
typename S::F exp2_u8(typename S::F x) {
  if constexpr (S::has_lookup) {
    const auto magic = S::set(786432.f);  // 1.5 * 2^19
    x = S::max(x, S::set(-126.f));
    const auto shifted = S::add(x, magic);
    const auto r = S::sub(x, S::sub(shifted, magic));
    const auto bits = S::bits(shifted);
    const auto p = S::fma(S::lookup(exp2_table.slope, bits), r, S::lookup(exp2_table.at, bits));
    return S::of_bits(S::add_i(S::bits(p), S::template shift_left<19>(bits)));
  } else {
    return exp2<S, 3>(x);
  }
}

// The same in words of 16 bits, twice as many a vector, for weights whose sum need not be known before they are rounded: relative error
// 2e-4. x is given as 4096 x, in 32 bits, and saturates at -8 and 8: weights below 2^-1 become 0, and none is above 255. The upper 4 bits
// of a word are n, x = n + j / 32 + r / 4096; 2^(j / 32 + r / 4096) is linear in r, and rounding happens in the product with 2^n.
inline constexpr float exp2_words_unit = 4096;

struct Exp2Words {
  alignas(64) std::uint16_t at[32] = {}, slope[32] = {}, power[32] = {};
  constexpr Exp2Words() {
    double mantissa = 1 << 14;
    for (int j = 0; j < 32; ++j, mantissa *= 1.0218971486541166 /* 2^(1 / 32) */) {
      at[j] = static_cast<std::uint16_t>(mantissa * (1 - 2.9e-5) + 1);  // rounded; half more, for the product with r is rounded down
      slope[j] = static_cast<std::uint16_t>(mantissa * .0218971486541166 + .5);
    }
    for (int i = 0; i < 32; ++i)  // the upper 5 bits: n, as it is signed, and a bit of j
      power[i] = static_cast<std::uint16_t>(i < 16 ? 2 << i / 2 : i >= 30 ? 1 : 0);
  }
};
inline constexpr Exp2Words exp2_words_table;

// 64 weights of four vectors of x: those of vector m, lanes 4 l ... 4 l + 3, become bytes 16 l + 4 m ....
template <class S>
typename S::I exp2_words(typename S::I x0, typename S::I x1, typename S::I x2, typename S::I x3) {
  const auto& t = exp2_words_table;
  const auto weights = [&](typename S::I x) {
    const auto j = S::template shift_right_words<7>(x), n = S::template shift_right_words<11>(x);
    const auto rest = S::mul_high_words(S::lookup_words(t.slope, j), S::template shift_left_words<9>(x));
    return S::mul_round_words(S::add_words(S::lookup_words(t.at, j), rest), S::lookup_words(t.power, n));
  };
  return S::pack_u8(weights(S::pack_words(x0, x1)), weights(S::pack_words(x2, x3)));
}

// To the nearest FP16 and e4m3 numbers, ties to even, for 0 <= x <= the format's largest.
template <class S>
typename S::F round_f16(typename S::F x) {
  std::uint16_t half[S::width];
  S::store_f16(half, x);
  return S::load_f16(half);
}

template <class S>
typename S::F not_rounded(typename S::F x) {
  return x;
}

template <class S>
typename S::F round_e4m3(typename S::F x) {
  // Adding 2^(e + 20), e the exponent of x but at least -6, leaves 3 bits of fraction.
  const auto exponent = S::of_bits(S::and_i(S::bits(S::max(x, S::set(0x1p-6f))), S::set_i(0x7f800000)));
  const auto magic = S::mul(exponent, S::set(0x1p20f));
  return S::sub(S::add(x, magic), magic);
}

}  // namespace chitu::cpu
