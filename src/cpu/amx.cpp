// SPDX-License-Identifier: Apache-2.0
// Attention compiled for AMX; what it quantises, AVX-512 quantises.
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
#pragma clang attribute push(                                                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16,avx2,fma,f16c,bmi2"))), \
    apply_to = function)
#else  // to the end of the file, where templates are instantiated
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16,avx2,fma,f16c,bmi2")
#endif
#include "cpu/simd_amx.h"
//
#include "cpu/attention-inl.h"

namespace chitu::cpu {

constinit const AttentionRuns amx_runs = attention_runs<Amx>();

}  // namespace chitu::cpu
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif  // __x86_64__
