// SPDX-License-Identifier: Apache-2.0
// The tensor maps by which the copy engine (TMA) brings blocks of tokens as the caller's tensors have them.
#pragma once

#include <cuda.h>

#include "chitu/tensor.h"

namespace chitu::cuda::sm90 {

// The map of a tensor [batch][head][token][channel] in f16 or bf16. It brings boxes of `tokens` tokens x 64 channels, swizzled in 128
// bytes. Tokens and channels past the last are zeros. Strides must be multiples of 16 bytes below 2^40. Throws Error(internal) if the
// driver refuses.
CUtensorMap tensor_map(const Tensor& tensor, int tokens);

}  // namespace chitu::cuda::sm90
