// SPDX-License-Identifier: Apache-2.0
// Attention compiled for AVX2 with AVX-VNNI; what it quantises, AVX2 quantises.
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
#pragma clang attribute push(__attribute__((target("avx2,avxvnni,fma,f16c,bmi2"))), apply_to = function)
#else  // to the end of the file, where templates are instantiated
#pragma GCC target("avx2,avxvnni,fma,f16c,bmi2")
#endif
#include "cpu/simd_avxvnni.h"
//
#include "cpu/attention-inl.h"

namespace chitu::cpu {

constinit const AttentionRuns avxvnni_runs = attention_runs<AvxVnni>();

}  // namespace chitu::cpu
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif  // __x86_64__
