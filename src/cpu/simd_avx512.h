// SPDX-License-Identifier: Apache-2.0
// AVX-512 (F, BW, DQ, VL, VNNI, BF16: Zen 4, Sapphire Rapids and later) for the code in *-inl.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace chitu::cpu {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int width = 16;
  static constexpr bool has_bf16 = true;
  static constexpr bool has_lookup = true, overlaps = true, has_tiles = false;
  struct Tiles {};
  static constexpr int block_rows = 6, block_vectors = 4;  // accumulators of a product: 24 of 32 registers

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_f16(const std::uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load_bf16(const std::uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_f16(std::uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
  // Lanes first + lane outside [low, high) become `other`.
  static F keep(F x, int first, int low, int high, F other) {
    const I lane = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(first));
    const __mmask16 inside = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(low)) & _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(high));
    return _mm512_mask_mov_ps(other, inside, x);
  }
  static bool finite(F x) { return _mm512_fpclass_ps_mask(x, 0x99) == 0; }

  static I load_u8(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static I load_u16(const void* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static I load_i(const void* p) { return _mm512_loadu_si512(p); }
  static void store_i(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I set_i(std::int32_t x) { return _mm512_set1_epi32(x); }
  static I broadcast_i(const void* p) { return _mm512_set1_epi32(*static_cast<const std::int32_t*>(p)); }  // 32 bits
  static I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
  // As assembler: from the intrinsics g++ 12 makes two registers of each sum, one for the loop and one for what follows, and spills them.
  static F dot2(F sum, I a, I b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
  static I dot4(I sum, I u8, I s8) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u8), "v"(s8));
    return sum;
  }
  static I pack_bf16(F a, F b) { return (I)_mm512_cvtne2ps_pbh(b, a); }  // 2 * width numbers in their order
  static I to_int(F x) { return _mm512_cvtps_epi32(x); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I bits(F x) { return _mm512_castps_si512(x); }
  static F of_bits(I x) { return _mm512_castsi512_ps(x); }
  template <int n>
  static I shift_left(I x) {
    return _mm512_slli_epi32(x, n);
  }
  template <int n>
  static I shift_right(I x) {
    return _mm512_srli_epi32(x, n);
  }
  static I and_i(I a, I b) { return _mm512_and_si512(a, b); }
  static I xor_i(I a, I b) { return _mm512_xor_si512(a, b); }
  static void store_i8(std::int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }  // of -128 ... 127
  static void store_u16(std::uint16_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
  }  // of 0 ... 65535
  // Saturated at 255. In one instruction: on Zen 4 a store of a register that waits beside products takes a cycle from them, this one none.
  static void store_u8(void* p, I x) { _mm512_mask_cvtusepi32_storeu_epi8(p, 0xffff, x); }
  // Words of 16 bits, of both operands by turns of 128 bits; saturated, as are bytes of words.
  static I pack_words(I a, I b) { return _mm512_packs_epi32(a, b); }
  static I pack_u8(I a, I b) { return _mm512_packus_epi16(a, b); }
  static I add_words(I a, I b) { return _mm512_add_epi16(a, b); }
  static I mul_high_words(I a, I b) { return _mm512_mulhi_epu16(a, b); }    // a * b / 2^16
  static I mul_round_words(I a, I b) { return _mm512_mulhrs_epi16(a, b); }  // a * b / 2^15, rounded
  template <int n>
  static I shift_left_words(I x) {
    return _mm512_slli_epi16(x, n);
  }
  template <int n>
  static I shift_right_words(I x) {
    return _mm512_srli_epi16(x, n);
  }
  static I lookup_words(const std::uint16_t* table, I x) { return _mm512_permutexvar_epi16(x, _mm512_load_si512(table)); }  // x % 32
  // Lane i gets table[x[i] % 16].
  static F lookup(const float* table, I x) { return _mm512_permutexvar_ps(x, _mm512_load_ps(table)); }

  template <int n>
  static constexpr __mmask16 odd_lanes = n == 1   ? 0xaaaa
                                         : n == 2 ? 0xcccc
                                         : n == 4 ? 0xf0f0
                                                  : 0xff00;

  // Lane i gets lane i ^ n.
  template <int n>
  static F exchange(F x) {
    if constexpr (n == 1) return _mm512_permute_ps(x, 0xb1);
    if constexpr (n == 2) return _mm512_permute_ps(x, 0x4e);
    if constexpr (n == 4) return _mm512_shuffle_f32x4(x, x, 0xb1);
    if constexpr (n == 8) return _mm512_shuffle_f32x4(x, x, 0x4e);
  }
  // Lanes whose bit n is set from b, others from a.
  template <int n>
  static F choose(F a, F b) {
    return _mm512_mask_mov_ps(a, odd_lanes<n>, b);
  }
  // Changes the sign of the lanes whose bit n is set.
  template <int n>
  static F negate_odd(F x) {
    return _mm512_mask_xor_ps(x, odd_lanes<n>, x, _mm512_set1_ps(-0.f));
  }
};

}  // namespace chitu::cpu
