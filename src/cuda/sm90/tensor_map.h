// SPDX-License-Identifier: Apache-2.0
// The tensor map by which the copy engine (TMA) brings blocks of queries as the caller's tensor has them.
#pragma once

#include <cuda.h>

#include "chitu/tensor.h"

namespace chitu::cuda::sm90 {

// The map of a tensor [batch][head][token][channel] in f16 or bf16. It brings boxes of `block_queries` tokens x 64 channels, swizzled in
// 128 bytes. Rows past the last are zeros. Strides must be multiples of 16 bytes below 2^40. Throws Error(internal) if the driver refuses.
CUtensorMap query_map(const Tensor& query, int block_queries);

}  // namespace chitu::cuda::sm90
