// SPDX-License-Identifier: Apache-2.0
// A build without CUDA has no GPU kernels.
#include "cuda/rows.h"

namespace chitu {

std::span<const Kernel> cuda::kernels() { return {}; }

}  // namespace chitu
