// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/attention.cuh"

namespace chitu::cuda::sm90 {

template void start<Config<recipes::chitu, DType::f16, 64>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<recipes::chitu, DType::f16, 128>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<recipes::chitu, DType::f16, 256>>(const Params&, const Operands&, int, cudaStream_t);

template void start<Config<recipes::chitu, DType::f16, 64, true>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<recipes::chitu, DType::f16, 128, true>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<recipes::chitu, DType::bf16, 64, true>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<recipes::chitu, DType::bf16, 128, true>>(const Params&, const Operands&, int, cudaStream_t);

template void start<Config<recipes::chitu, DType::f16, 64, true, true>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<recipes::chitu, DType::f16, 128, true, true>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<recipes::chitu, DType::bf16, 64, true, true>>(const Params&, const Operands&, int, cudaStream_t);
template void start<Config<recipes::chitu, DType::bf16, 128, true, true>>(const Params&, const Operands&, int, cudaStream_t);

}  // namespace chitu::cuda::sm90
