// SPDX-License-Identifier: Apache-2.0
// Kinds of call that public bug reports of the field are about: odd strides, head counts and lengths, and numbers at the ends of their
// types.
#include <gtest/gtest.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <cfenv>
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

// The calling program may have set its processor to round another way, or to take denormals as zeros, or to trap, on some of its threads.
TEST_P(Report, TheCallersFloatingPointEnvironmentDoesNotMatter) {
  Random random(204);
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
    const Array q = normal(random, type, {1, 2, 30, 32}), k = normal(random, type, {1, 2, 140, 32});
    Array v(type, k.shape());  // denormals
    v.fill([&](auto...) { return random.normal() * (type == DType::f16 ? 2e-5f : 2e-39f); });
    const auto bytes_of = [&](const std::string& kernel, int threads) {
      const Result r = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe(), .threads = threads, .kernel = kernel});
      const Output output{r.out, r.lse};
      merge(output, output, output);
      std::vector<std::byte> all = r.out.raw(), lse = r.lse.raw();
      all.insert(all.end(), lse.begin(), lse.end());
      const Quantized keys = quantize(k, Role::key, recipe(), {.threads = threads});
      const auto* numbers = static_cast<const std::byte*>(keys.values.data);
      all.insert(all.end(), numbers, numbers + k.count() * bytes(keys.values.type));
      return all;
    };
    for (const std::string& kernel : available_kernels())
      for (const int threads : {1, 2}) {
        const std::vector<std::byte> expected = bytes_of(kernel, threads);
        for (const int rounding : {FE_UPWARD, FE_TOWARDZERO}) {
          std::fenv_t before;
          std::fegetenv(&before);
          std::fesetround(rounding);
          feenableexcept(FE_INVALID | FE_OVERFLOW | FE_DIVBYZERO);
#if defined(__SSE__)
          _mm_setcsr(_mm_getcsr() | 0x8040);  // denormals are zeros
          const unsigned set = _mm_getcsr();
#endif
          const std::vector<std::byte> found = bytes_of(kernel, threads);
#if defined(__SSE__)
          EXPECT_EQ(_mm_getcsr() & ~0x3fu, set & ~0x3fu);  // but for flags
#endif
          EXPECT_EQ(std::fegetround(), rounding);
          std::fesetenv(&before);
          EXPECT_TRUE(found == expected) << name(type) << ", " << kernel << ", " << threads << " threads, rounding " << rounding;
        }
      }
  }
}

// A weighted mean of finite numbers never leaves their type, though the methods' rounding may put it past the end.
TEST_P(Report, LargestValuesGiveFiniteOutputs) {
  Random random(201);
  const auto peaked = [&](DType type, std::int64_t tokens) {
    return Array(type, {1, 2, tokens, 64}).fill([&](auto...) { return 3 * random.normal(); });
  };
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
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

// All scores are equal, so an output is the mean of many large values: their sum is beyond fp32. The last channel is small, and keeps its
// bits beside the large ones.
TEST_P(Report, SumsOfLargeValuesDoNotOverflow) {
  Random random(202);
  for (const DType type : {DType::f32, DType::bf16})
    for (const float size : {3e35f, 1e37f, 3e38f})
      for (const Window& window : {everything, causal}) {
        const Array q = normal(random, type, {1, 1, 20, 33}), k = Array(type, {1, 1, 3000, 33}).fill([](auto...) { return 1.f; });
        Array v(type, k.shape());
        v.fill([&](auto, auto, std::int64_t t, std::int64_t c) {
          return c == 32 ? static_cast<float>(t % 5) : (c % 2 ? -size : size) * (1 + .1f * std::min(random.normal(), 1.f));
        });
        const oracle::Exact exact = oracle::attention({q, k, v, {.window = window}});
        for (const std::string& kernel : available_kernels()) {
          SCOPED_TRACE(testing::Message() << name(type) << " " << size << ", " << kernel);
          const Result r = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe(), .window = window, .kernel = kernel}, type);
          ASSERT_LE(relative_l1(r.out.numbers(), exact.out), GetParam().name == "exact" ? rounding_of(type) + 1e-4 : .05);
          for (std::int64_t i = 0; i < 20; ++i) {
            const double expected = exact.out[static_cast<std::size_t>(i * 33 + 32)];
            ASSERT_NEAR(r.out.get(0, 0, i, 32), expected, recipe().value.scaling == Scaling::none ? rounding_of(type) * 3 + 1e-5 : 5);
          }
        }
      }
}

// A value that the sample of λ missed, and beside which λ is so small that their quotient is beyond fp32.
TEST_P(Report, OneHugeValueSpoilsNothing) {
  Random random(203);
  const Array q = normal(random, DType::f32, {1, 1, 300, 16}), k = normal(random, DType::f32, {1, 1, 300, 16});
  for (std::int64_t place = 150; place < 160; ++place) {
    Array v = normal(random, DType::f32, {1, 1, 300, 16});
    v.fill([&](auto, auto, std::int64_t t, auto) { return t == place ? 3e38f : 1e-4f * random.normal(); });
    for (const std::string& kernel : available_kernels()) {
      SCOPED_TRACE(testing::Message() << place << ", " << kernel);
      const Result r = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe(), .window = causal, .kernel = kernel});
      for (const float x : r.out.numbers()) ASSERT_TRUE(is_finite(x));
      if (recipe().value.scaling != Scaling::tile && recipe().value.scaling != Scaling::none) continue;
      for (std::int64_t i = 0; i < 128; ++i) ASSERT_LT(std::fabs(r.out.get(0, 0, i, 3)), 1e-3f);  // tiles before it
    }
  }
}

// Scales at the ends of fp32, with queries and keys that make ordinary scores of them.
TEST_P(Report, ScalesAtTheEndsOfTheirType) {
  Random random(204);
  for (const DType type : {DType::f32, DType::bf16})
    for (const auto& [scale, size] : {std::pair{3e38f, 5e-20f}, {1e30f, 3e-16f}, {1e-30f, 3e14f}, {1e-38f, 3e18f}, {3e-44f, 2e21f}}) {
      const auto sized = [&, s = size](std::int64_t tokens) {
        Array x(type, {1, 2, tokens, 16});
        return x.fill([&](auto...) { return s * random.normal(); });
      };
      const Array q = sized(40), k = sized(200), v = normal(random, type, k.shape());
      for (const float sign : {1.f, -1.f}) {
        const Options options{.recipe = recipe(), .scale = sign * scale};
        const oracle::Exact exact = oracle::attention({q, k, v, options});
        for (const std::string& kernel : available_kernels()) {
          SCOPED_TRACE(testing::Message() << name(type) << " " << sign * scale << ", " << kernel);
          Options with = options;
          with.kernel = kernel;
          const Result r = attend(q.tensor(), k.tensor(), v.tensor(), with);
          ASSERT_LE(relative_l1(r.out.numbers(), exact.out), GetParam().name == "exact" ? 5e-3 : GetParam().name == "fp8" ? .15 : .08);
          // The correction for the keys' centre overflows before the last scale: docs/numerics.md.
          if (scale < 1e-38f && recipe().key.centre != Centre::none) continue;
          ASSERT_LE(difference(r.lse.numbers(), exact.lse).mean, GetParam().name == "exact" ? 1e-4 : .2);
        }
      }
    }
}

// Scores of 1e35: what an exponential multiplies them by must not take them past fp32's end.
TEST_P(Report, ScoresNearTheEndOfTheirTypeStayFinite) {
  Random random(206);
  Array q(DType::f32, {1, 1, 40, 16}), k(DType::f32, {1, 1, 200, 16});
  const Array v = normal(random, DType::f32, k.shape());
  q.fill([](auto, auto, std::int64_t t, auto) { return t % 2 ? -1.f : 1.f; });
  k.fill([&](auto...) { return 5e34f * random.normal(); });
  const Options options{.recipe = recipe(), .scale = 1.f};
  const oracle::Exact exact = oracle::attention({q, k, v, options});
  for (const std::string& kernel : available_kernels()) {
    SCOPED_TRACE(testing::Message() << kernel);
    Options with = options;
    with.kernel = kernel;
    const Result r = attend(q.tensor(), k.tensor(), v.tensor(), with);
    for (const float x : r.out.numbers()) ASSERT_TRUE(is_finite(x));
    ASSERT_LE(relative_l1(r.lse.numbers(), exact.lse), .1);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Report, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

}  // namespace
}  // namespace chitu::test
