// SPDX-License-Identifier: Apache-2.0
// Quantiser and attention compiled for AVX2.
#ifdef __x86_64__
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <type_traits>
#include <utility>
#include <vector>

#include <immintrin.h>
#include "common/limits.h"
#include "common/numbers.h"
#include "common/parallel.h"
#include "common/ranks.h"
#include "common/rotation.h"
#include "cpu/buffer.h"
#include "cpu/rows.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else  // to the end of the file, where templates are instantiated
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#include "cpu/simd_avx2.h"
//
#include "cpu/attention-inl.h"

namespace chitu::cpu {

void quantize_avx2(TokenChunk& chunk) { Quantizer<Avx2>::quantize(chunk); }
void to_f32_avx2(const void* from, DType type, float* to, std::int64_t count) { Quantizer<Avx2>::to_f32(from, type, to, count); }
constinit const AttentionRuns avx2_runs = attention_runs<Avx2>();

}  // namespace chitu::cpu
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif  // __x86_64__
