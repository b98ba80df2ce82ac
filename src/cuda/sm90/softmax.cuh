// SPDX-License-Identifier: Apache-2.0
// Scores to weights, in registers. In the accumulator of 64 rows and N columns a thread holds, of rows r and r + 8 (r = lane / 4), columns
// 8 i + 2 (lane % 4) and the next: element 4 i + 2 (row of the two) + (column of the two).
#pragma once

#include "cuda/sm90/loop.cuh"

namespace chitu::cuda::sm90 {

// as_float(magic_bits + i) = magic + i for |i| <= 2^22
constexpr float magic = 12582912;
constexpr std::uint32_t magic_bits = 0x4b400000;
// A score that is not seen. Integer: below every other, and -inf as a float once magic_bits is added.
constexpr std::uint32_t unseen = 0xff800000u - magic_bits;
template <class Number>
__device__ __forceinline__ Number unseen_score() {
  if constexpr (std::is_same_v<Number, float>)
    return __int_as_float(0xff800000);
  else
    return unseen;
}

// A score as a float, without the offset of weigh().
__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(std::uint32_t x) { return __uint_as_float(x + magic_bits); }

__device__ __forceinline__ float quad_maximum(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The largest score of one of the thread's rows. Integers: 3-input maxima in two chains.
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

// Only in tiles at the edge of some row's range.
template <class Item, class Number>
__device__ __forceinline__ void mask(Number (&s)[64], std::uint32_t item, int tile) {
  const int t = ptx::thread_again(), row = (t >> 5) * 16 + (t >> 2 & 7), key = tile * tile_tokens + 2 * (t & 3);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int2 range = ptx::load_int2(item + offsetof(Item, range) + (row + 8 * r) * 8);
    const int begin = range.x - key, end = range.y - key;
#pragma unroll
    for (int i = 0; i < 16; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (8 * i + e < begin || 8 * i + e >= end) s[4 * i + 2 * r + e] = unseen_score<Number>();
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

// With a scale for each key: the scores as floats, times it. scales: [128] in shared memory.
__device__ __forceinline__ void scale_keys(const std::uint32_t (&s)[64], std::uint32_t scales, float (&to)[64]) {
  const std::uint32_t mine = scales + (ptx::thread_again() & 3) * 8;
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

// Eight weights of a row in a block of 32 keys, straight into the layout of a wgmma operand (8-bit values stand in the matching order).
template <class L>
__device__ __forceinline__ void pack(const float (&e)[8], int block, int r, std::uint32_t (&p)[L::form.value_bytes * 16]) {
  if constexpr (L::sums_in_place) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p[8 * block + 4 * (i >> 1) + 2 * (i & 1) + r] =
          L::weight_type == DType::f16 ? ptx::pack_f16(e[2 * i], e[2 * i + 1]) : ptx::pack_bf16(e[2 * i], e[2 * i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      p[4 * block + 2 * i + r] = L::integer_values ? ptx::pack_u8(e[4 * i], e[4 * i + 1], e[4 * i + 2], e[4 * i + 3])
                                                   : ptx::pack_e4m3(e[4 * i], e[4 * i + 1], e[4 * i + 2], e[4 * i + 3]);
  }
}

// P = round(top 2^(s c - maximum)), and its row sums before rounding if they are wanted; f = log2(top) - maximum. An integer becomes a
// float by an integer addition of the magic constant, whose offset disappears in f: the compiler spreads these additions over two pipes,
// where I2FP would all go to the one that suffers most beside wgmma. Each group of 8 gets f through a false dependency on the group before,
// by a zero the compiler cannot see: without it come all FFMA, then all MUFU, then all conversions.
template <class L, class Number>
__device__ __forceinline__ void weigh(const Number (&s)[64], const float (&c)[2], const float (&offset)[2], float zero,
                                      std::uint32_t (&p)[L::form.value_bytes * 16], float (&sums)[2]) {
  constexpr bool integers = !std::is_same_v<Number, float>;
  const float f[2] = {integers ? fmaf(-magic, c[0], offset[0]) : offset[0], integers ? fmaf(-magic, c[1], offset[1]) : offset[1]};
  float before = 0;
#pragma unroll
  for (int group = 0; group < 8; ++group) {
    const int block = group >> 1, r = group & 1;  // 32 keys; row
    const float g = group ? fmaf(before, zero, f[r]) : f[0];
    float e[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) e[u] = ptx::exp2_approx(fmaf(number(s[16 * block + 4 * (u >> 1) + (u & 1) + 2 * r]), c[r], g));
    before = e[0];
    pack<L>(e, block, r, p);
    if constexpr (L::unrounded_sums) sums[r] += ((e[0] + e[1]) + (e[2] + e[3])) + ((e[4] + e[5]) + (e[6] + e[7]));
  }
}

// The sum of a row's integer weights.
__device__ __forceinline__ std::uint32_t rounded_sum(const std::uint32_t (&p)[16], int r) {
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < 16; i += 2) sum = __dp4a(p[i + r], 0x01010101u, sum);
  return sum;
}

}  // namespace chitu::cuda::sm90
