// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/direct/attention.cuh"

namespace chitu::cuda::sm90::direct {

template void start<Config<DType::f16, 64>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<DType::f16, 80>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<DType::f16, 96>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<DType::f16, 128>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<DType::f16, 192>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<DType::f16, 256>>(const Params&, const Operands&, int, cudaStream_t);

}  // namespace chitu::cuda::sm90::direct
