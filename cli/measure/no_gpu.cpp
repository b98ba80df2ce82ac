// SPDX-License-Identifier: Apache-2.0
// A build without CUDA finds no GPU, and after require_one() nothing else is asked of it.
#include "cli/measure/gpu.h"

namespace chitu::cli::gpu {
namespace {

constexpr const char* reason = "this build has no kernels for a GPU";

[[noreturn]] void refuse() { throw Error(ErrorCode::unsupported, std::string("--device cuda: ") + reason + "; give --device cpu"); }

}  // namespace

std::vector<Info> all() { return {}; }
std::string why_none() { return reason; }
void require_one() { refuse(); }
GpuTensor allocate(DType, const Shape&) { refuse(); }
GpuTensor upload(const Tensor&) { refuse(); }
void download(const GpuTensor&, const Tensor&) { refuse(); }
Meters meters(const Workload&, std::span<const Method* const>, const Truth&) { refuse(); }

}  // namespace chitu::cli::gpu
