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
