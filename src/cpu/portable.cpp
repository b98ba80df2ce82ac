// SPDX-License-Identifier: Apache-2.0
// Quantiser and attention compiled for any machine.
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

#include "common/limits.h"
#include "common/numbers.h"
#include "common/parallel.h"
#include "common/ranks.h"
#include "common/rotation.h"
#include "cpu/buffer.h"
#include "cpu/rows.h"

#include "cpu/simd_portable.h"
//
#include "cpu/attention-inl.h"

namespace chitu::cpu {

void quantize_portable(TokenChunk& chunk) { Quantizer<Portable>::quantize(chunk); }
void to_f32_portable(const void* from, DType type, float* to, std::int64_t count) { Quantizer<Portable>::to_f32(from, type, to, count); }
constinit const AttentionRuns portable_runs = attention_runs<Portable>();

}  // namespace chitu::cpu
