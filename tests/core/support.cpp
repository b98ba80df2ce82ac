// SPDX-License-Identifier: Apache-2.0
// Arrays, random data and comparisons: support.h.
#include "support.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>

#include "common/numbers.h"

namespace chitu {

void PrintTo(const Method& method, std::ostream* out) { *out << method.name; }

}  // namespace chitu

namespace chitu::test {
namespace {

constexpr std::byte untouched{0xff};

struct Placement {
  std::int64_t before = 0, elements = 0;
  Shape stride{};
};

Placement place(const Shape& s, Layout layout) {
  const auto [batch, heads, tokens, dim] = s;
  if (layout == Layout::bhsd) return {0, batch * heads * tokens * dim, contiguous_strides(s)};
  if (layout == Layout::bshd) return {0, batch * heads * tokens * dim, {tokens * heads * dim, dim, heads * dim, 1}};
  const std::int64_t token = dim + 3, head = tokens * token + 5, entry = heads * head + 7;
  return {32, 64 + batch * entry, {entry, head, token, 1}};
}

}  // namespace

Array::Array(DType type, const Shape& shape, Layout layout) {
  const Placement placement = place(shape, layout);
  memory_.assign(static_cast<std::size_t>(placement.elements * bytes(type)), untouched);
  tensor_ = {memory_.data() + placement.before * bytes(type), type, Device::cpu, 0, shape, placement.stride};
}

Array::Array(const Array& other) : memory_(other.memory_), tensor_(other.tensor_) {
  tensor_.data = memory_.data() + (static_cast<std::byte*>(other.tensor_.data) - other.memory_.data());
}

Array& Array::operator=(Array other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(tensor_, other.tensor_);
  return *this;
}

std::int64_t Array::count() const { return shape()[0] * shape()[1] * shape()[2] * shape()[3]; }

float Array::get(std::int64_t batch, std::int64_t head, std::int64_t token, std::int64_t channel) const {
  return load(row(tensor_, batch, head, token), tensor_.type, channel);
}

void Array::set(std::int64_t batch, std::int64_t head, std::int64_t token, std::int64_t channel, float x) {
  store(row(tensor_, batch, head, token), tensor_.type, channel, x);
}

Array& Array::fill(const std::function<float(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>& number) {
  for (std::int64_t b = 0; b < shape()[0]; ++b)
    for (std::int64_t h = 0; h < shape()[1]; ++h)
      for (std::int64_t t = 0; t < shape()[2]; ++t)
        for (std::int64_t c = 0; c < shape()[3]; ++c) set(b, h, t, c, number(b, h, t, c));
  return *this;
}

std::vector<float> Array::numbers() const {
  std::vector<float> all;
  all.reserve(static_cast<std::size_t>(count()));
  for (std::int64_t b = 0; b < shape()[0]; ++b)
    for (std::int64_t h = 0; h < shape()[1]; ++h)
      for (std::int64_t t = 0; t < shape()[2]; ++t)
        for (std::int64_t c = 0; c < shape()[3]; ++c) all.push_back(get(b, h, t, c));
  return all;
}

bool Array::gaps_untouched() const {
  std::vector<bool> inside(memory_.size());
  const auto token_bytes = static_cast<std::size_t>(shape()[3] * bytes(tensor_.type));
  for (std::int64_t b = 0; b < shape()[0]; ++b)
    for (std::int64_t h = 0; h < shape()[1]; ++h)
      for (std::int64_t t = 0; t < shape()[2]; ++t)
        std::fill_n(inside.begin() + (row(tensor_, b, h, t) - memory_.data()), token_bytes, true);
  for (std::size_t i = 0; i < memory_.size(); ++i)
    if (!inside[i] && memory_[i] != untouched) return false;
  return true;
}

std::vector<std::int64_t> random_starts(Random& random, std::int64_t tokens) {
  std::vector<std::int64_t> starts{0, random.below(tokens + 1), random.below(tokens + 1), random.below(tokens + 1), tokens};
  std::sort(starts.begin(), starts.end());
  return starts;
}

Array normal(Random& random, DType type, const Shape& shape, Layout layout) {
  Array array(type, shape, layout);
  array.fill([&](auto...) { return random.normal(); });
  return array;
}

Tensor tokens_of(const Tensor& t, std::int64_t begin, std::int64_t end) {
  Tensor view = t;
  view.data = row(t, 0, 0, begin);
  view.shape[2] = end - begin;
  return view;
}

Result attend(const Operand& query, const Operand& key, const Operand& value, const Options& options, DType type, Layout layout) {
  const Shape& s = query.tensor().shape;
  Result result{Array(type, s, layout), Array(DType::f32, {s[0], s[1], s[2], 1}, layout)};
  attention(query, key, value, {result.out, result.lse}, options);
  EXPECT_TRUE(result.out.gaps_untouched()) << "something outside of out was written";
  EXPECT_TRUE(result.lse.gaps_untouched()) << "something outside of lse was written";
  return result;
}

double relative_l1(const std::vector<float>& x, const std::vector<double>& y) {
  EXPECT_EQ(x.size(), y.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    difference += std::fabs(x[i] - y[i]);
    size += std::fabs(y[i]);
  }
  return difference == 0 ? 0 : difference / size;
}

double relative_l1(const std::vector<float>& x, const std::vector<float>& y) {
  return relative_l1(x, std::vector<double>(y.begin(), y.end()));
}

Difference difference(const std::vector<float>& x, const std::vector<double>& y) {
  EXPECT_EQ(x.size(), y.size());
  Difference d;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (std::isinf(y[i]) && y[i] < 0 && std::isinf(x[i]) && x[i] < 0) continue;
    const double one = std::fabs(x[i] - y[i]);
    // A NaN must not pass for small.
    d.largest = one <= d.largest ? d.largest : std::isnan(one) ? std::numeric_limits<double>::infinity() : one;
    d.mean += one / static_cast<double>(x.size());
  }
  return d;
}

double rounding_of(DType type) { return type == DType::bf16 ? 0x1p-8 : type == DType::f16 ? 0x1p-11 : 0; }

void expect_error(const std::function<void()>& body, ErrorCode code, const std::vector<std::string>& parts) {
  try {
    body();
    ADD_FAILURE() << "was accepted, not refused with " << testing::PrintToString(parts);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    for (const std::string& part : parts)
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << "'" << part << "' is not in: " << error.what();
  }
}

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels())
    if (kernel.available && kernel.device == Device::cpu && std::find(names.begin(), names.end(), kernel.name) == names.end())
      names.emplace_back(kernel.name);
  return names;
}

std::string test_name(std::string_view name) {
  std::string result(name);
  for (char& c : result)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return result;
}

}  // namespace chitu::test
