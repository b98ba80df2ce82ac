// SPDX-License-Identifier: Apache-2.0
// Which kernel a recipe's attention is; they are compiled in attention_*.cu.
#include "cuda/sm90/kernels.h"

namespace chitu::cuda::sm90 {
namespace {

template <const Recipe& recipe, DType input = DType::f16>
void start(const Params& params, int processors, cudaStream_t stream) {
  const auto start = params.dim <= 64    ? sm90::start<Config<recipe, input, 64>>
                     : params.dim <= 128 ? sm90::start<Config<recipe, input, 128>>
                                         : sm90::start<Config<recipe, input, 256>>;
  start(params, processors, stream);
}

template <DType input>
void start_tuned(const Params& params, int processors, cudaStream_t stream) {
  const auto start =
      params.dim == 64 ? sm90::start<Config<recipes::chitu, input, 64, true>> : sm90::start<Config<recipes::chitu, input, 128, true>>;
  start(params, processors, stream);
}

// These differ in what the quantiser does only.
static_assert(form_of(recipes::sage, 128) == form_of(recipes::int8_half, 128) && recipes::sage.weights == recipes::int8_half.weights);

}  // namespace

void attend(const Params& params, const Recipe& recipe, bool bf16, int processors, cudaStream_t stream) {
  if (params.tuned_quantizer)
    return bf16 ? start_tuned<DType::bf16>(params, processors, stream) : start_tuned<DType::f16>(params, processors, stream);
  if (recipe == recipes::chitu) return start<recipes::chitu>(params, processors, stream);
  if (recipe == recipes::sage2) return start<recipes::sage2>(params, processors, stream);
  if (recipe == recipes::fp8) return start<recipes::fp8>(params, processors, stream);
  if (recipe == recipes::int8) return start<recipes::int8>(params, processors, stream);
  if (recipe == recipes::sage || recipe == recipes::int8_half) return start<recipes::sage>(params, processors, stream);
  bf16 ? start<recipes::exact, DType::bf16>(params, processors, stream) : start<recipes::exact, DType::f16>(params, processors, stream);
}

}  // namespace chitu::cuda::sm90
