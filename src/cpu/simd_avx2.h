// SPDX-License-Identifier: Apache-2.0
// AVX2 with FMA and F16C (Haswell, Zen and later) for the code in *-inl.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace chitu::cpu {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int width = 8;
  static constexpr bool has_bf16 = false;
  static constexpr bool has_lookup = false, overlaps = false, has_tiles = false;
  struct Tiles {};
  static constexpr int block_rows = 4, block_vectors = 2;  // accumulators of a product: 8 of 16 registers

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_f16(const std::uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load_bf16(const std::uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
  }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store_f16(std::uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
  static float reduce_max(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static float reduce_add(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  // Lanes first + lane outside [low, high) become `other`.
  static F keep(F x, int first, int low, int high, F other) {
    const I lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    const I outside =
        _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane), _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(high - 1)));
    return _mm256_blendv_ps(x, other, _mm256_castsi256_ps(outside));
  }
  static bool finite(F x) {
    const I exponent = _mm256_set1_epi32(0x7f800000);
    return _mm256_testz_si256(_mm256_cmpeq_epi32(_mm256_and_si256(bits(x), exponent), exponent), _mm256_set1_epi32(-1));
  }

  static I load_u8(const void* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
  static I load_u16(const void* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static I load_i(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  static void store_i(void* p, I x) { _mm256_storeu_si256(static_cast<I*>(p), x); }
  static I set_i(std::int32_t x) { return _mm256_set1_epi32(x); }
  static I broadcast_i(const void* p) { return _mm256_set1_epi32(*static_cast<const std::int32_t*>(p)); }  // 32 bits
  static I add_i(I a, I b) { return _mm256_add_epi32(a, b); }
  // Even and odd bytes apart, in 16 bits: vpmaddubsw would saturate.
  static I dot4(I sum, I u8, I s8) {
    const I even = _mm256_madd_epi16(_mm256_and_si256(u8, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(s8, 8), 8));
    const I odd = _mm256_madd_epi16(_mm256_srli_epi16(u8, 8), _mm256_srai_epi16(s8, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
  static I to_int(F x) { return _mm256_cvtps_epi32(x); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I bits(F x) { return _mm256_castps_si256(x); }
  static F of_bits(I x) { return _mm256_castsi256_ps(x); }
  template <int n>
  static I shift_left(I x) {
    return _mm256_slli_epi32(x, n);
  }
  template <int n>
  static I shift_right(I x) {
    return _mm256_srli_epi32(x, n);
  }
  static I and_i(I a, I b) { return _mm256_and_si256(a, b); }
  static I xor_i(I a, I b) { return _mm256_xor_si256(a, b); }
  static void store_i8(std::int8_t* p, I x) { _mm_storel_epi64(reinterpret_cast<__m128i*>(p), narrow(x)); }  // of -128 ... 127
  static void store_u16(std::uint16_t* p, I x) {                                                             // of 0 ... 65535
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
  static void store_u8(void* p, I x) {  // saturated at 255
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

  // Lane i gets lane i ^ n.
  template <int n>
  static F exchange(F x) {
    if constexpr (n == 1) return _mm256_permute_ps(x, 0xb1);
    if constexpr (n == 2) return _mm256_permute_ps(x, 0x4e);
    if constexpr (n == 4) return _mm256_permute2f128_ps(x, x, 1);
  }
  // Lanes whose bit n is set from b, others from a.
  template <int n>
  static F choose(F a, F b) {
    return _mm256_blend_ps(a, b, n == 1 ? 0xaa : n == 2 ? 0xcc : 0xf0);
  }
  // Changes the sign of the lanes whose bit n is set.
  template <int n>
  static F negate_odd(F x) {
    const F signs = n == 1   ? _mm256_setr_ps(0.f, -0.f, 0.f, -0.f, 0.f, -0.f, 0.f, -0.f)
                    : n == 2 ? _mm256_setr_ps(0.f, 0.f, -0.f, -0.f, 0.f, 0.f, -0.f, -0.f)
                             : _mm256_setr_ps(0.f, 0.f, 0.f, 0.f, -0.f, -0.f, -0.f, -0.f);
    return _mm256_xor_ps(x, signs);
  }

 private:
  static __m128i narrow(I x) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return _mm_packs_epi16(words, words);
  }
};

}  // namespace chitu::cpu
