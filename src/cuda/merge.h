// SPDX-License-Identifier: Apache-2.0
// merge() of parts in GPU memory: merge.cpp and merge.cu, or no_rows.cpp in a build without CUDA.
#pragma once

#include <span>

#include "chitu/attention.h"

namespace chitu::cuda {

// The arguments have been checked, except where their memory lies, and none is empty.
void merge(std::span<const Output> parts, const Output& result, void* stream);

}  // namespace chitu::cuda
