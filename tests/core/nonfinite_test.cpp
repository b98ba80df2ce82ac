// SPDX-License-Identifier: Apache-2.0
// NaN and infinity in inputs: each output is spoilt if exact attention under IEEE's rules spoils it, and no other is.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "nonfinite.h"

namespace chitu::test {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

class NonFiniteInput : public testing::TestWithParam<std::tuple<Method, Scene>> {};

TEST_P(NonFiniteInput, SpoilsWhatExactAttentionSpoils) {
  const auto& [method, scene] = GetParam();
  NonFiniteCall call = call_of(scene, 12, {DType::f32, DType::bf16, DType::f16});
  call.options.recipe = method.recipe;
  const oracle::Exact exact = call.exact();
  for (const std::string& kernel : available_kernels()) {
    SCOPED_TRACE(kernel);
    call.options.kernel = kernel;
    const Result r = attend(call.query.tensor(), call.key.tensor(), call.value.tensor(), call.options);
    const Spoilt spoilt = expect_spoilt_alike(r.out.numbers(), r.lse.numbers(), exact);
    if (HasFailure()) return;
    EXPECT_GT(spoilt.count, 0) << "the scene spoils nothing, so it tests nothing";
    EXPECT_LE(spoilt.relative_l1, 0.09);  // no bad number leaked into a scale or a mean
    EXPECT_LE(spoilt.lse, 0.2);
  }
}

INSTANTIATE_TEST_SUITE_P(All, NonFiniteInput, testing::Combine(testing::ValuesIn(methods), testing::ValuesIn(scenes())),
                         [](const auto& info) { return test_name(std::get<0>(info.param).name) + "_" + std::get<1>(info.param).name; });

// The other channels of such a value count as ever.
TEST(NonFinite, ValueKeepsItsFiniteChannels) {
  Array q(DType::f32, {1, 1, 4, 2}), k(DType::f32, {1, 1, 4, 2}), v(DType::f32, {1, 1, 4, 2});
  for (std::int64_t t = 0; t < 4; ++t)
    for (std::int64_t c = 0; c < 2; ++c) {
      q.set(0, 0, t, c, 0);
      k.set(0, 0, t, c, 0);
      v.set(0, 0, t, c, t == 0 && c == 0 ? nan : t == 0 ? 100 : 1);
    }
  for (const Method& method : methods)
    for (const std::string& kernel : available_kernels()) {
      const auto out = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = method.recipe, .kernel = kernel}).out.numbers();
      for (std::size_t row = 0; row < 4; ++row) {
        EXPECT_TRUE(std::isnan(out[2 * row])) << method.name << ", " << kernel;
        EXPECT_NEAR(out[2 * row + 1], 25.75, 0.4) << method.name << ", " << kernel;
      }
    }
}

class NonFinitePlaces : public testing::TestWithParam<Method> {};

TEST_P(NonFinitePlaces, AnywhereSpoilOnlyTheirOwn) {
  for (std::uint64_t seed = 0; seed < 25; ++seed) {
    NonFiniteCall call = random_nonfinite(seed, {1, 8, 33}, {DType::f32, DType::f32, DType::f32});
    call.options.recipe = GetParam().recipe;
    const oracle::Exact exact = call.exact();
    for (const std::string& kernel : available_kernels()) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << kernel);
      call.options.kernel = kernel;
      const Result r = attend(call.query.tensor(), call.key.tensor(), call.value.tensor(), call.options);
      expect_spoilt_alike(r.out.numbers(), r.lse.numbers(), exact);
      if (HasFailure()) return;
    }
  }
}

TEST_P(NonFinitePlaces, ManySpoilWhatExactAttentionSpoils) {
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    NonFiniteCall call = crowded_nonfinite(seed, {1, 8, 33}, {DType::f32, DType::f32, DType::f32});
    call.options.recipe = GetParam().recipe;
    const oracle::Exact exact = call.exact();
    for (const std::string& kernel : available_kernels()) {
      const DType type = seed % 3 == 0 ? DType::f32 : seed % 3 == 1 ? DType::f16 : DType::bf16;
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << kernel << ", " << chitu::name(type));
      call.options.kernel = kernel;
      const Result r = attend(call.query.tensor(), call.key.tensor(), call.value.tensor(), call.options, type);
      expect_spoilt_alike(r.out.numbers(), r.lse.numbers(), exact);
      if (HasFailure()) return;
    }
  }
}

// The other rows are not only finite: where nothing else changes, they do not change at all.
TEST_P(NonFinitePlaces, OtherRowsKeepTheirBits) {
  Random random(31);
  Array q = normal(random, DType::f32, {1, 2, 40, 16});
  const Array k = normal(random, DType::f32, {1, 2, 200, 16}), v = normal(random, DType::f32, {1, 2, 200, 16});
  const auto zero_token = [&](Array& x, float first) {
    for (std::int64_t c = 0; c < 16; ++c) x.set(0, 1, 17, c, c == 0 ? first : 0);
  };
  for (const std::string& kernel : available_kernels()) {
    const Options options{.recipe = GetParam().recipe, .window = causal, .kernel = kernel};
    zero_token(q, 0);
    const Result clean = attend(q.tensor(), k.tensor(), v.tensor(), options);
    zero_token(q, nan);
    const Result dirty = attend(q.tensor(), k.tensor(), v.tensor(), options);
    for (std::int64_t h = 0; h < 2; ++h)
      for (std::int64_t i = 0; i < 40; ++i) {
        if (h == 1 && i == 17) continue;
        for (std::int64_t c = 0; c < 16; ++c)
          ASSERT_EQ(clean.out.get(0, h, i, c), dirty.out.get(0, h, i, c)) << kernel << " " << h << " " << i;
        ASSERT_EQ(clean.lse.get(0, h, i, 0), dirty.lse.get(0, h, i, 0)) << kernel;
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, NonFinitePlaces, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

}  // namespace
}  // namespace chitu::test
