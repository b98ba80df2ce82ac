// SPDX-License-Identifier: Apache-2.0
// quantize() on a GPU, and its results in CPU memory: quantize.cpp and convert.cpp, or no_rows.cpp in a build without CUDA. Arguments have
// been checked, except where their memory lies and what only a GPU asks for.
#pragma once

#include "chitu/attention.h"

namespace chitu::cuda {

std::size_t quantized_bytes(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options);
std::size_t quantize_workspace_bytes(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options);
Quantized quantize(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options);
// of_value has no centre, of_key no channels; else they are alike. Their memory is for both.
KeysAndValues quantize_keys_and_values(const Tensor& key, const Tensor& value, const Recipe& recipe, const QuantizeOptions& of_key,
                                       const QuantizeOptions& of_value);

Quantized to_host(const Quantized& quantized, const ConvertOptions& options);
Quantized to_device(const Quantized& quantized, DType from, int device, const ConvertOptions& options);

}  // namespace chitu::cuda
