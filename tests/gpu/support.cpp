// SPDX-License-Identifier: Apache-2.0
// support.h.
#include "support.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "common/numbers.h"

namespace chitu::test {
namespace {

void check(cudaError_t e) {
  if (e != cudaSuccess) throw std::runtime_error(cudaGetErrorString(e));
}

Shape strides_of(const Shape& s, Layout layout) {
  const auto [batch, heads, tokens, dim] = s;
  if (layout == Layout::bhsd) return contiguous_strides(s);
  if (layout == Layout::bshd) return {tokens * heads * dim, dim, heads * dim, 1};
  const std::int64_t token = dim + 8, head = tokens * token + 16;
  return {heads * head + 24, head, token, 1};
}

template <class Row>
void for_rows(const Shape& s, Row row) {
  for (std::int64_t b = 0; b < s[0]; ++b)
    for (std::int64_t h = 0; h < s[1]; ++h)
      for (std::int64_t t = 0; t < s[2]; ++t) row(b, h, t);
}

}  // namespace

std::string_view gpu_kernel() {
  const auto all = kernels();
  const auto found = std::find_if(all.begin(), all.end(), [](const KernelInfo& k) { return k.device == Device::cuda && k.available; });
  return found == all.end() ? std::string_view{} : found->name;
}

bool has_gpu() { return !gpu_kernel().empty(); }

GpuArray::GpuArray(DType type, const Shape& shape, Layout layout)
    : tensor_{nullptr, type, Device::cuda, 0, shape, strides_of(shape, layout)} {
  bytes_ = static_cast<std::size_t>((shape[0] * tensor_.stride[0] + 64) * bytes(type));
  if (layout == Layout::bshd) bytes_ += static_cast<std::size_t>(shape[1] * shape[3] * bytes(type));
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes_));
  memory_ = std::shared_ptr<void>(memory, cudaFree);
  check(cudaMemset(memory, 0xff, bytes_));
  tensor_.data = memory;
}

GpuArray::GpuArray(const Array& array, Layout layout) : GpuArray(array.tensor().type, array.shape(), layout) { assign(array); }

void GpuArray::assign(const Array& array) {
  if (array.shape() != tensor_.shape || array.tensor().type != tensor_.type) throw std::runtime_error("assign: another shape or type");
  std::vector<std::byte> host(bytes_, std::byte{0xff});
  Tensor view = tensor_;
  view.data = host.data();
  const auto row_bytes = static_cast<std::size_t>(array.shape()[3] * bytes(tensor_.type));
  for_rows(array.shape(), [&](auto... at) { std::memcpy(row(view, at...), row(array.tensor(), at...), row_bytes); });
  check(cudaMemcpy(tensor_.data, host.data(), bytes_, cudaMemcpyHostToDevice));
}

std::vector<float> GpuArray::numbers() const {
  std::vector<std::byte> host(bytes_);
  check(cudaDeviceSynchronize());
  check(cudaMemcpy(host.data(), tensor_.data, bytes_, cudaMemcpyDeviceToHost));
  Tensor view = tensor_;
  view.data = host.data();
  std::vector<float> all;
  std::vector<bool> inside(bytes_);
  for_rows(tensor_.shape, [&](auto... at) {
    const std::byte* from = row(view, at...);
    for (std::int64_t c = 0; c < tensor_.shape[3]; ++c) all.push_back(load(from, tensor_.type, c));
    std::fill_n(inside.begin() + (from - host.data()), tensor_.shape[3] * bytes(tensor_.type), true);
  });
  for (std::size_t i = 0; i < bytes_; ++i)
    if (!inside[i] && host[i] != std::byte{0xff}) {
      ADD_FAILURE() << "byte " << i << ", outside of the tensor, was written";
      break;
    }
  return all;
}

GpuResult attend_on_gpu(const Tensor& query, const Tensor& key, const Tensor& value, Options options, DType type, Layout layout) {
  const Shape& s = query.shape;
  const GpuArray out(type, s, layout), lse(DType::f32, {s[0], s[1], s[2], 1}, layout);
  options.kernel = gpu_kernel();
  attention(query, key, value, {out, lse}, options);
  return {out.numbers(), lse.numbers()};
}

GpuResult attend_on_gpu(const Array& query, const Array& key, const Array& value, const Options& options, DType type, Layout in,
                        Layout layout) {
  return attend_on_gpu(GpuArray(query, in).tensor(), GpuArray(key, in).tensor(), GpuArray(value, in).tensor(), options, type, layout);
}

double gpu_rounding(const Recipe& recipe, DType in, DType type) {
  const bool exact = recipe.weights.type == DType::f32, fp8_scores = recipe.key.type == DType::e4m3;
  return rounding_of(type) + (fp8_scores ? 2e-3 : !exact ? 0 : in == DType::bf16 ? 1.4e-3 : 2e-4);
}

std::vector<double> to_double(const std::vector<float>& x) { return {x.begin(), x.end()}; }

}  // namespace chitu::test
