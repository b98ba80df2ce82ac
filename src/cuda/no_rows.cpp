// SPDX-License-Identifier: Apache-2.0
// A build without CUDA has no GPU kernels.
#include "cuda/merge.h"
#include "cuda/rows.h"

namespace chitu {

std::span<const Kernel> cuda::kernels() { return {}; }

void cuda::merge(std::span<const Output>, const Output&, void*) {
  throw Error(ErrorCode::unsupported, "merge: the parts are on a GPU, but this build has no GPU kernels");
}

}  // namespace chitu
