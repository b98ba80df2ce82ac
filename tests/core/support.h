// SPDX-License-Identifier: Apache-2.0
// What the tests share: arrays that notice a write or read outside their view, random data, kernels and methods by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <random>
#include <string>
#include <vector>

#include "chitu/chitu.h"

namespace chitu {

// How GoogleTest prints a parameter.
void PrintTo(const Method& method, std::ostream* out);

}  // namespace chitu

namespace chitu::test {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  std::int64_t below(std::int64_t count) { return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(count)); }
  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[static_cast<std::size_t>(below(static_cast<std::int64_t>(from.size())))];
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

// padded: gaps after every token, head and batch entry, and around the whole.
enum class Layout { bhsd, bshd, padded };

// A tensor with its memory. All bytes start as 0xff: a NaN in every floating type, so that an element which a kernel forgets to
// write, or one it reads from a gap, shows.
class Array {
 public:
  Array() = default;
  Array(const Array& other);
  Array(Array&&) = default;
  Array& operator=(Array other) noexcept;
  Array(DType type, const Shape& shape, Layout layout = Layout::bhsd);

  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }
  const Shape& shape() const { return tensor_.shape; }
  std::int64_t count() const;

  float get(std::int64_t batch, std::int64_t head, std::int64_t token, std::int64_t channel) const;
  void set(std::int64_t batch, std::int64_t head, std::int64_t token, std::int64_t channel, float x);
  // Calls number(batch, head, token, channel) for each element, in this order.
  Array& fill(const std::function<float(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>& number);

  std::vector<float> numbers() const;  // dense
  bool gaps_untouched() const;         // every byte outside the view is 0xff still
  const std::vector<std::byte>& raw() const { return memory_; }

 private:
  std::vector<std::byte> memory_;
  Tensor tensor_;
};

Array normal(Random& random, DType type, const Shape& shape, Layout layout = Layout::bhsd);
// The starts of four packed sequences, perhaps empty ones.
std::vector<std::int64_t> random_starts(Random& random, std::int64_t tokens);

// A view of t: tokens [begin, end) of every head.
Tensor tokens_of(const Tensor& t, std::int64_t begin, std::int64_t end);

struct Result {
  Array out, lse;
};
// attention() into fresh arrays, which must be overwritten to the last element and nowhere else.
Result attend(const Operand& query, const Operand& key, const Operand& value, const Options& options = {}, DType type = DType::f32,
              Layout layout = Layout::bhsd);

// sum |x - y| / sum |y| over the elements, 0 if both are all zeros.
double relative_l1(const std::vector<float>& x, const std::vector<double>& y);
double relative_l1(const std::vector<float>& x, const std::vector<float>& y);

struct Difference {
  double largest = 0, mean = 0;
};
// The difference of log-sum-exps. -inf on both sides is no difference, on one side an infinite one.
Difference difference(const std::vector<float>& x, const std::vector<double>& y);

// The most that rounding an output to `type` can add to relative_l1().
double rounding_of(DType type);

// body() must throw Error with this code and these words in its message.
void expect_error(const std::function<void()>& body, ErrorCode code, const std::vector<std::string>& parts);

std::vector<std::string> available_kernels();  // each name once
std::string test_name(std::string_view name);  // letters, digits and underscores only

}  // namespace chitu::test
