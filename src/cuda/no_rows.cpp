// SPDX-License-Identifier: Apache-2.0
// A build without CUDA has no GPU kernels.
#include "cuda/merge.h"
#include "cuda/quantize.h"
#include "cuda/rows.h"

namespace chitu {

std::span<const Kernel> cuda::kernels() { return {}; }

void cuda::merge(std::span<const Output>, const Output&, void*) {
  throw Error(ErrorCode::unsupported, "merge: the parts are on a GPU, but this build has no GPU kernels");
}

namespace {
[[noreturn]] void refuse(const char* function) {
  throw Error(ErrorCode::unsupported, std::string(function) + " is for operands on a GPU, but this build has no GPU kernels");
}
}  // namespace

std::size_t cuda::quantized_bytes(const Tensor&, Role, const Recipe&, const QuantizeOptions&) { refuse("quantized_bytes()"); }
std::size_t cuda::quantize_workspace_bytes(const Tensor&, Role, const Recipe&, const QuantizeOptions&) {
  refuse("quantize_workspace_size()");
}
Quantized cuda::quantize(const Tensor&, Role role, const Recipe&, const QuantizeOptions&) {
  refuse(("quantize() of a " + std::string(name(role)) + " on a GPU").c_str());
}
KeysAndValues cuda::quantize_keys_and_values(const Tensor&, const Tensor&, const Recipe&, const QuantizeOptions&, const QuantizeOptions&) {
  refuse("quantize_keys_and_values() of tensors on a GPU");
}
Quantized cuda::to_host(const Quantized&, const ConvertOptions&) { refuse("to_host()"); }
Quantized cuda::to_device(const Quantized&, DType, int, const ConvertOptions&) { refuse("to_device()"); }

}  // namespace chitu
