// SPDX-License-Identifier: Apache-2.0
// The GPU's rows of the kernel table.
#include "cuda/rows.h"

#include <array>

#include "cuda/device.h"
#include "cuda/sm90/row.h"

namespace chitu {

std::span<const Kernel> cuda::kernels() {
  using enum Arithmetic;
  static const std::array rows{
      Kernel{"cuda.sm90", Device::cuda, [] { return any_device(9, 0); }, int8, int8, sm90::run, sm90::refusal},
  };
  return rows;
}

}  // namespace chitu
