// SPDX-License-Identifier: Apache-2.0
// Kinds of call that public bug reports of the field are about: odd strides, head counts and lengths, and numbers at the ends of their
// types.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "common/numbers.h"
#include "oracle.h"
#include "support.h"

namespace chitu::test {
namespace {

class Report : public testing::TestWithParam<Method> {
 protected:
  const Recipe& recipe() const { return GetParam().recipe; }
};

// Nothing reads the stride of a dimension of size 1, whatever a framework has put there.
TEST_P(Report, StridesOfSizeOneAreNotLookedAt) {
  Random random(200);
  constexpr std::int64_t wild[] = {0, -7, std::int64_t{1} << 62, std::numeric_limits<std::int64_t>::min()};
  const auto expect_alike = [&](const Shape& queries, const Shape& keys) {
    const Array q = normal(random, DType::f32, queries), k = normal(random, DType::f32, keys), v = normal(random, DType::f32, keys);
    const Result expected = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe()});
    for (const std::int64_t stride : wild) {
      const auto spoilt = [&](Tensor t) {
        for (std::size_t i = 0; i < 4; ++i)
          if (t.shape[i] == 1) t.stride[i] = stride;
        return t;
      };
      Result r{Array(DType::f32, queries), Array(DType::f32, {queries[0], queries[1], queries[2], 1})};
      const Output output{spoilt(r.out), spoilt(r.lse)};
      attention(spoilt(q), spoilt(k), spoilt(v), output, {.recipe = recipe()});
      EXPECT_EQ(r.out.raw(), expected.out.raw());
      EXPECT_EQ(r.lse.raw(), expected.lse.raw());
      merge(output, output, output);
      const Quantized key = quantize(spoilt(k), Role::key, recipe()), value = quantize(spoilt(v), Role::value, recipe());
      Quantized query = quantize(spoilt(q), Role::query, recipe(), {.keys = &key});
      for (Tensor* part : {&query.scales, &query.centre, &query.correction}) *part = spoilt(*part);
      attention(query, key, value, output, {.recipe = recipe()});
      EXPECT_EQ(r.out.raw(), expected.out.raw());
      EXPECT_EQ(r.lse.raw(), expected.lse.raw());
    }
  };
  expect_alike({2, 4, 9, 1}, {2, 2, 70, 1});
  expect_alike({1, 1, 1, 24}, {1, 1, 1, 24});
  expect_alike({1, 3, 1, 16}, {1, 1, 200, 16});
}

// A weighted mean of finite numbers never leaves their type, though the methods' rounding may put it past the end.
TEST_P(Report, LargestValuesGiveFiniteOutputs) {
  Random random(201);
  const auto peaked = [&](DType type, std::int64_t tokens) {
    return Array(type, {1, 2, tokens, 64}).fill([&](auto...) { return 3 * random.normal(); });
  };
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
    if (GetParam().name == "exact" && type != DType::f16) continue;
    const Array q = peaked(type, 60), k = peaked(type, 200);
    for (const float part : {1.f, .985f, -1.f})
      for (const DType out : {type, DType::f16}) {
        const float value = part * largest(type);
        Array v(type, k.shape());
        v.fill([&](auto...) { return value; });
        for (const std::string& kernel : available_kernels()) {
          SCOPED_TRACE(testing::Message() << name(type) << " " << part << " to " << name(out) << ", " << kernel);
          const Result r = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe(), .scale = 1.f, .kernel = kernel}, out);
          for (const float x : r.out.numbers()) ASSERT_NEAR(x, within(out, value), .04 * largest(out));
          for (const float x : r.lse.numbers()) ASSERT_TRUE(is_finite(x));
        }
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Report, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

}  // namespace
}  // namespace chitu::test
