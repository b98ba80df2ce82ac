// SPDX-License-Identifier: Apache-2.0
// The GPU's rows of the kernel table.
#include "cuda/rows.h"

#include <array>

#include "cuda/call.h"
#include "cuda/device.h"

namespace chitu {

std::span<const Kernel> cuda::kernels() {
  using enum Arithmetic;
  // One function; which kernels it starts follows from the recipe.
  const auto sm90 = [](Arithmetic scores, Arithmetic weights) {
    return Kernel{"cuda.sm90", Device::cuda, [] { return any_device(9, 0); }, scores, weights, run, cuda::refusal, workspace_bytes};
  };
  static const std::array rows{sm90(int8, int8), sm90(int8, f16), sm90(int8, fp8), sm90(fp8, fp8), sm90(f16, f16), sm90(bf16, bf16)};
  return rows;
}

}  // namespace chitu
