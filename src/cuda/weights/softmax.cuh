// SPDX-License-Identifier: Apache-2.0
// Scores to weights, in registers, for matrix products of any architecture whose accumulators are m16n8. A warp has 16 rows, a tile 128
// columns. A thread has two rows, r = lane / 4 and r + 8, and of each the columns 8 i + 2 (lane % 4) and the next. Element
// 4 i + 2 h + e of its accumulator is row r + 8 h, column 8 i + 2 (lane % 4) + e. The four lanes of the same rows are a *quad*.
//
// The template parameter C is the Config of an architecture's main loop. The files of this folder read these of its members:
//   form                     the recipe's Form
//   weight_type              DType of the weights in the product with values: f16, bf16, e4m3 or u8
//   integer_values           weights and values are 8-bit integers, the latter with value_offset
//   sums_in_place            the tensor cores add products to the output; then weights have 16 bits
//   rounded_sums, unrounded_sums   which sums of weights the recipe needs: after rounding, before, or both
//   lag                      a maximum may be larger than the softmax's reference by this many powers of two
//   dim, halves, width       output channels; into how many parts products with values divide them; channels of a part
//   warps                    that compute, 16 rows each
//   Input, Item::place, At::range()   of finish() and repair(): the operands' type, where an item's rows are, what keys they see
//   converts_ahead, scales_ahead, packs_behind, ordered_pairs, order_step   how weigh() orders its steps
#pragma once

#include <cstdint>
#include <type_traits>

#include "chitu/method.h"
#include "common/score.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/order.h"
#include "cuda/ptx/shared.h"

namespace chitu::cuda {

constexpr float log2_e = 1.44269504f, ln_2 = 0.69314718f;
constexpr float lowest = -1e30f;  // a maximum over no keys

// log2 of a weight's largest stored value, digit by digit.
constexpr float log2_of(float top) {
  double x = top, digits = 0;
  for (; x >= 2; x /= 2) ++digits;
  for (double digit = 0.5; digit > 1e-9; digit /= 2) {
    x *= x;
    if (x >= 2) {
      x /= 2;
      digits += digit;
    }
  }
  return static_cast<float>(digits);
}

// as_float(magic_bits + i) = magic + i for |i| <= 2^22
constexpr float magic = 12582912;
constexpr std::uint32_t magic_bits = 0x4b400000;
// An unseen score. As an integer it is below every other; once magic_bits is added, its bits are those of -inf.
constexpr std::uint32_t unseen = 0xff800000u - magic_bits;
template <class Number>
__device__ __forceinline__ Number unseen_score() {
  if constexpr (std::is_same_v<Number, float>)
    return __int_as_float(0xff800000);
  else
    return unseen;
}

__device__ __forceinline__ float quad_maximum(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The largest score of one of the thread's rows. Integers go through 3-input maxima, in two chains.
__device__ __forceinline__ int row_maximum(const std::uint32_t (&s)[64], int row) {
  const auto score = [&](int i) { return static_cast<int>(s[i + 2 * row]); };
  int a = max(max(score(0), score(1)), score(4)), b = max(max(score(32), score(33)), score(36));
  a = max(a, max(score(5), score(37)));
#pragma unroll
  for (int i = 8; i < 32; i += 4) {
    a = max(max(a, score(i)), score(i + 1));
    b = max(max(b, score(i + 32)), score(i + 33));
  }
  return max(a, b);
}
__device__ __forceinline__ float row_maximum(const float (&s)[64], int row) {
  float top[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) top[i] = fmaxf(s[16 * i + 2 * row], s[16 * i + 1 + 2 * row]);
#pragma unroll
  for (int i = 4; i < 16; i += 4)
#pragma unroll
    for (int j = 0; j < 4; ++j) top[j] = fmaxf(fmaxf(top[j], s[16 * j + i + 2 * row]), s[16 * j + i + 1 + 2 * row]);
  return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
}

// mask() with the keys of a tile in its order. It reads the order for each row, because registers do not hold both rows' ranges.
template <class Number>
__device__ __forceinline__ void mask_sorted(Number (&s)[64], std::uint32_t ranges, int tile, std::uint32_t order) {
  const int t = ptx::thread_index_again(), row = (t >> 5) * 16 + (t >> 2 & 7);
  order += 2 * (t & 3);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int2 range = ptx::load_int2(ranges + (row + 8 * r) * 8);
    const int begin = range.x - tile * tile_tokens, end = range.y - tile * tile_tokens;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int keys = static_cast<int>(ptx::load_u16(order + 8 * i));  // two
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = e ? keys >> 8 : keys & 0xff;
        if (key < begin || key >= end) s[4 * i + 2 * r + e] = unseen_score<Number>();
      }
    }
  }
}

// Makes scores unseen that are outside their row's range of keys. Only tiles at the edge of some row's range need it. ranges: the address
// in shared memory of the first key and the end for each row of the CTA; warp w has rows 16 w ... order: the same of the tile's order, with
// Form::sorted. A tile has 2 count keys: 128, but in the direct kernels.
template <bool sorted, class Number, int count>
__device__ __forceinline__ void mask(Number (&s)[count], std::uint32_t ranges, int tile, std::uint32_t order) {
  if constexpr (sorted) {
    mask_sorted(s, ranges, tile, order);
    return;
  }
  const int t = ptx::thread_index_again(), row = (t >> 5) * 16 + (t >> 2 & 7), key = tile * (2 * count) + 2 * (t & 3);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int2 range = ptx::load_int2(ranges + (row + 8 * r) * 8);
    const int begin = range.x - key, end = range.y - key;
#pragma unroll
    for (int i = 0; i < count / 4; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (8 * i + e < begin || 8 * i + e >= end) s[4 * i + 2 * r + e] = unseen_score<Number>();
  }
}

// Passes the scores through changed_score(), before masks and maxima. scale: a score times it is an exponent of 2. place_of(r, column): the
// place of the score of the thread's row r and the key in the tile's column `column` + 2 (lane % 4). Integer scores cannot be changed: a
// kernel that is to change scores turns them into floats first, as scale_keys() does.
template <class Number, class PlaceOf>
__device__ __forceinline__ void change_scores(Number (&s)[64], const float (&scale)[2], PlaceOf place_of) {
  if constexpr (std::is_same_v<Number, float>) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int r = i >> 1 & 1;
      s[i] = changed_score(s[i], scale[r] * ln_2, place_of(r, (i >> 2) * 8 + (i & 1)));
    }
  } else {
    static_assert(changed_score(3.f, 0.5f, ScorePlace{1, 5, 2, 1}) == 3.f, "changed scores must be floats");
  }
}

// The maximum of each of the thread's rows, times c > 0; `lowest` where an integer row sees no key.
template <bool masked, class Number>
__device__ __forceinline__ void maxima(const Number (&s)[64], const float (&c)[2], float (&x)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if constexpr (std::is_same_v<Number, float>) {
      x[r] = row_maximum(s, r) * c[r];
    } else {
      const int top = row_maximum(s, r);
      x[r] = masked && top == static_cast<int>(unseen) ? lowest : __int2float_rn(top) * c[r];
    }
  }
}

// Turns scores into floats and multiplies each by its key's scale. scales: [128] in shared memory.
__device__ __forceinline__ void scale_keys(const std::uint32_t (&s)[64], std::uint32_t scales, float (&to)[64]) {
  const std::uint32_t mine = scales + (ptx::thread_index_again() & 3) * 8;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float2 scale = ptx::load_float2(mine + i * 32);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      to[4 * i + 2 * r] = __int2float_rn(static_cast<int>(s[4 * i + 2 * r])) * scale.x;
      to[4 * i + 2 * r + 1] = __int2float_rn(static_cast<int>(s[4 * i + 2 * r + 1])) * scale.y;
    }
  }
}

// What is added to a score times c to make an exponent. offset: log2(top) - reference. An integer score becomes a float by magic_bits, and
// this removes magic, too.
template <class Number>
__device__ __forceinline__ float shift_of(float c, float offset) {
  return std::is_same_v<Number, float> ? offset : fmaf(-magic, c, offset);
}

// P = round(top 2^(s c - reference)), and its row sums before rounding if the recipe needs them. shift: shift_of() each row.
//
// Weights are made in the layout of the next product's operand; 8-bit values are stored in an order of keys that fits it.
//
// An integer score becomes a float by adding magic_bits as an integer; `shift` then removes the constant. The compiler spreads these
// additions over two pipes. Conversions (I2FP) would all load one of them, the one that suffers most beside the tensor cores. For the
// product with values even such additions would be too many: see integer_unit.
//
// The loop is a pipeline over pairs of keys, and keep_order() holds it. Left to itself the compiler emits all FFMA, then all exponentials
// (MUFU), then all conversions; each pipe then works while the others wait. after(block) is called when the weights of 32 keys are ready.
template <class C, class Number, class After>
__device__ __forceinline__ void weigh(const Number (&s)[64], const float (&c)[2], const float (&shift)[2], float opaque_zero,
                                      std::uint32_t (&p)[C::form.value_bytes * 16], float (&sums)[2], After after) {
  constexpr bool integers = !std::is_same_v<Number, float>;

  // The pair of step i. A block of 32 keys has four pairs of row r first, then those of row r + 8. Where four weights share a word, its
  // upper two come first.
  constexpr int pairs = 32;
  const auto block = [](int i) { return i >> 3; };
  const auto row = [](int i) { return i >> 2 & 1; };
  const auto pair = [](int i) { return C::sums_in_place ? i & 3 : (i & 3) ^ 1; };

  // The steps of a pair. x has its two numbers: scores as floats, then exponents, then weights.
  float x[pairs][2];
  const auto convert = [&](int i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Number score = s[16 * block(i) + 4 * pair(i) + 2 * row(i) + k];
      if constexpr (integers)
        x[i][k] = __uint_as_float(ptx::add_here(score, magic_bits));
      else
        x[i][k] = score;
    }
  };
  const auto scale = [&](int i) {
#pragma unroll
    for (float& y : x[i]) y = fmaf(y, c[row(i)], shift[row(i)]);
  };
  const auto exponentiate = [&](int i) {
#pragma unroll
    for (float& y : x[i]) y = ptx::exp2_approx(y);
  };
  const auto pack = [&](int i) {
    const float a = x[i][0], b = x[i][1];
    const int half = pair(i) >> 1, second = pair(i) & 1;
    if constexpr (C::sums_in_place) {
      p[8 * block(i) + 4 * half + 2 * second + row(i)] = C::weight_type == DType::f16 ? ptx::pack_f16(a, b) : ptx::pack_bf16(a, b);
    } else {
      std::uint32_t& to = p[4 * block(i) + 2 * half + row(i)];
      to = C::integer_values ? ptx::pack_u8(a, b, second ? 0 : to) : ptx::pack_e4m3(a, b, second ? 0 : to);
    }
    if constexpr (C::unrounded_sums) sums[row(i)] += a + b;
    if (i % 8 == 7) after(block(i));
  };

  // Fill the pipeline, then run it.
#pragma unroll
  for (int i = 0; i < C::converts_ahead; ++i) convert(i);
#pragma unroll
  for (int i = 0; i < C::scales_ahead; ++i) scale(i);
#pragma unroll
  for (int i = 0; i < pairs + C::packs_behind; ++i) {
    if (i < pairs) exponentiate(i);
    if (i + C::converts_ahead < pairs) convert(i + C::converts_ahead);
    if (i + C::scales_ahead < pairs) scale(i + C::scales_ahead);
    if (i >= C::packs_behind) pack(i - C::packs_behind);
    if (i < C::ordered_pairs && (i + 1) % C::order_step == 0) ptx::keep_order(opaque_zero);
  }
}

// The sum of a row's integer weights.
__device__ __forceinline__ std::uint32_t rounded_sum(const std::uint32_t (&p)[16], int r) {
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < 16; i += 2) sum = __dp4a(p[i + r], 0x01010101u, sum);
  return sum;
}

}  // namespace chitu::cuda
