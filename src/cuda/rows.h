// SPDX-License-Identifier: Apache-2.0
// The GPU's rows of the kernel table: rows.cpp, or no_rows.cpp in a build without CUDA.
#pragma once

#include <span>

#include "dispatch.h"

namespace chitu::cuda {

std::span<const Kernel> kernels();

}  // namespace chitu::cuda
