// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/tensor_map.h"

#include <string>

#include "cuda/launch.h"

namespace chitu::cuda::sm90 {

CUtensorMap tensor_map(const Tensor& t, int tokens) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    if (!function) throw Error(ErrorCode::internal, "CUDA: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  cuuint64_t sizes[4], strides[3];  // innermost first; strides in bytes, of all but the innermost
  for (std::size_t i = 0; i < 4; ++i) sizes[i] = static_cast<cuuint64_t>(t.shape[3 - i]);
  for (std::size_t i = 0; i < 3; ++i) strides[i] = static_cast<cuuint64_t>(t.shape[2 - i] > 1 ? t.stride[2 - i] : t.shape[3]) * 2;
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(tokens), 1, 1}, steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult r = encode(&map, t.type == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, t.data,
                            sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (r != CUDA_SUCCESS) throw Error(ErrorCode::internal, "CUDA: cuTensorMapEncodeTiled gives " + std::to_string(r));
  return map;
}

}  // namespace chitu::cuda::sm90
