// SPDX-License-Identifier: Apache-2.0
// AVX2 with AVX-VNNI (Alder Lake and later, Zen 5), which multiplies INT8 as AVX-512 does, for the code in *-inl.h.
#pragma once

#include "cpu/simd_avx2.h"

namespace chitu::cpu {

struct AvxVnni : Avx2 {
  static constexpr int block_rows = 6;  // 12 accumulators hide the product's latency

  // With VEX, which assemblers take for EVEX otherwise: AVX-512 is not there.
  static I dot4(I sum, I u8, I s8) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u8), "x"(s8));
    return sum;
  }
};

}  // namespace chitu::cpu
