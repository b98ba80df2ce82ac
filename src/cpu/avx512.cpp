// SPDX-License-Identifier: Apache-2.0
// Quantiser and attention compiled for AVX-512 with VNNI.
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c,bmi2"))), \
                             apply_to = function)
#else  // to the end of the file, where templates are instantiated
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c,bmi2")
#endif
#include "cpu/simd_avx512.h"
//
#include "cpu/attention-inl.h"

namespace chitu::cpu {

void quantize_avx512(TokenChunk& chunk) { Quantizer<Avx512>::quantize(chunk); }
void to_f32_avx512(const void* from, DType type, float* to, std::int64_t count) { Quantizer<Avx512>::to_f32(from, type, to, count); }
constinit const AttentionRuns avx512_runs = attention_runs<Avx512>();

}  // namespace chitu::cpu
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif  // __x86_64__
