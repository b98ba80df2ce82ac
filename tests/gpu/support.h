// SPDX-License-Identifier: Apache-2.0
// Tensors on a GPU for the tests: filled from and compared with arrays of core's support.h.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <memory>

#include "../core/support.h"

namespace chitu::test {

// The first row of the kernel table that runs on this machine's GPU; empty if none does.
std::string_view gpu_kernel();
bool has_gpu();

// Base of tests that need a GPU: they are skipped, and counted so, if there is none.
template <class Base>
class NeedsGpu : public Base {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "there is no GPU that this build has kernels for";
  }
};

class Stream {
 public:
  Stream() { EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess); }
  ~Stream() { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_{};
};

// A tensor in the memory of GPU 0, all bytes 0xff at first: NaN. Gaps of Layout::padded keep rows at multiples of 16 bytes.
class GpuArray {
 public:
  GpuArray(DType type, const Shape& shape, Layout layout);
  explicit GpuArray(const Array& array, Layout layout = Layout::bhsd);  // a copy
  void assign(const Array& array);                                      // new numbers, of the same shape and type
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
// attention() by gpu_kernel() into poisoned memory.
GpuResult attend_on_gpu(const Tensor& query, const Tensor& key, const Tensor& value, Options options, DType type,
                        Layout layout = Layout::bhsd);
// The same with copies on the GPU, in the layout `in`.
GpuResult attend_on_gpu(const Array& query, const Array& key, const Array& value, const Options& options, DType type,
                        Layout in = Layout::bhsd, Layout layout = Layout::bhsd);

// How much rounding on the GPU may add to relative_l1(). Every recipe rounds the output to `type`; `exact` also rounds weights to the
// inputs' type; with FP8 scores the tensor cores' sums are rounded too (docs/numerics.md, "Arithmetic of the GPU kernels").
double gpu_rounding(const Recipe& recipe, DType in, DType type);

std::vector<double> to_double(const std::vector<float>& x);

}  // namespace chitu::test
