// SPDX-License-Identifier: Apache-2.0
// Tensors on a GPU for the tests: filled from and compared with arrays of core's support.h.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "../core/support.h"

namespace chitu::test {

// Whether there is a GPU that the rows of this build can use.
bool has_gpu();

// gaps: the memory has gaps after every token, head and batch entry, which keep rows at multiples of 16 bytes.
enum class GpuLayout { bhsd, bshd, gaps };

// A tensor in the memory of GPU 0, all bytes 0xff at first: NaN.
class GpuArray {
 public:
  GpuArray(DType type, const Shape& shape, GpuLayout layout);
  GpuArray(const Array& dense, GpuLayout layout);  // a copy; `dense` has no gaps
  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }
  // The elements, after all work of the GPU is done; expects the gaps to be untouched.
  std::vector<float> numbers() const;

 private:
  std::size_t bytes_ = 0;
  std::shared_ptr<void> memory_;
  Tensor tensor_;
};

struct GpuResult {
  std::vector<float> out, lse;
};
// attention() by cuda.sm90 into poisoned memory.
GpuResult attend_on_gpu(const Operand& query, const Operand& key, const Operand& value, Options options, DType type,
                        GpuLayout layout = GpuLayout::bhsd);

}  // namespace chitu::test
