// SPDX-License-Identifier: Apache-2.0
// NaN and infinity in inputs: each output is spoilt if exact attention under IEEE's rules spoils it, and no other is.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <ostream>

#include "oracle.h"
#include "support.h"

namespace chitu::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

// 0: a number, 1 and -1: an infinity, 2: NaN.
int kind(double x) { return std::isnan(x) ? 2 : std::isinf(x) ? (x > 0 ? 1 : -1) : 0; }

struct Spot {
  Role role;
  std::int64_t batch, head, token, channel;
  float x;
};

struct Scene {
  const char* name;
  std::vector<Spot> spots;
  Window window = everything;
};

void PrintTo(const Scene& scene, std::ostream* out) { *out << scene.name; }

const Scene scenes[] = {
    {"nan_in_a_query", {{Role::query, 0, 1, 20, 3, nan}}},
    {"infinities_in_queries", {{Role::query, 0, 0, 7, 0, infinity}, {Role::query, 1, 3, 8, 5, -infinity}}},
    {"nan_in_a_key", {{Role::key, 1, 1, 100, 3, nan}}},
    {"nan_in_a_key_under_a_causal_mask", {{Role::key, 0, 0, 140, 3, nan}}, causal},
    {"infinite_key", {{Role::key, 0, 1, 130, 2, infinity}}},
    {"infinite_keys_in_a_window", {{Role::key, 0, 1, 130, 2, -infinity}, {Role::key, 0, 1, 131, 7, infinity}}, {4, 0}},
    {"nan_in_a_value", {{Role::value, 1, 0, 0, 4, nan}}},
    {"infinite_values",
     {{Role::value, 0, 0, 149, 4, infinity}, {Role::value, 0, 0, 5, 4, -infinity}, {Role::value, 0, 0, 6, 9, infinity}},
     causal},
    {"everywhere",
     {{Role::query, 0, 2, 59, 1, nan}, {Role::key, 0, 0, 129, 0, infinity}, {Role::key, 1, 1, 148, 0, nan}, {Role::value, 0, 1, 3, 2, nan}},
     {30, 2}},
    {"first_and_last_tokens",
     {{Role::query, 0, 0, 0, 0, nan},
      {Role::query, 1, 3, 59, 11, nan},
      {Role::key, 0, 0, 149, 11, nan},
      {Role::key, 1, 1, 0, 0, -infinity}},
     causal},
};

class NonFiniteInput : public testing::TestWithParam<std::tuple<Method, Scene>> {};

TEST_P(NonFiniteInput, SpoilsWhatExactAttentionSpoils) {
  const auto& [method, scene] = GetParam();
  Random random(30);
  Array q = normal(random, DType::f32, {2, 4, 60, 12}), k = normal(random, DType::bf16, {2, 2, 150, 12}, Layout::bshd),
        v = normal(random, DType::f16, {2, 2, 150, 12}, Layout::padded);
  for (const Spot& s : scene.spots) (s.role == Role::query ? q : s.role == Role::key ? k : v).set(s.batch, s.head, s.token, s.channel, s.x);
  Options options{.recipe = method.recipe, .window = scene.window};
  const oracle::Exact exact = oracle::attention({q, k, v, options});

  for (const std::string& kernel : available_kernels()) {
    SCOPED_TRACE(kernel);
    options.kernel = kernel;
    const Result r = attend(q.tensor(), k.tensor(), v.tensor(), options);
    const auto out = r.out.numbers(), lse = r.lse.numbers();
    int spoilt = 0;
    double error = 0, size = 0, lse_error = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(kind(out[i]), kind(exact.out[i]))
          << "out " << i / 12 << ", channel " << i % 12 << ": " << out[i] << ", not " << exact.out[i];
      spoilt += kind(out[i]) != 0;
      if (kind(out[i]) != 0) continue;
      error += std::fabs(out[i] - exact.out[i]);
      size += std::fabs(exact.out[i]);
    }
    for (std::size_t i = 0; i < lse.size(); ++i) {
      ASSERT_EQ(kind(lse[i]), kind(exact.lse[i])) << "lse " << i;
      if (kind(lse[i]) == 0) lse_error = std::max(lse_error, std::fabs(lse[i] - exact.lse[i]));
    }
    EXPECT_GT(spoilt, 0) << "the scene spoils nothing, so it tests nothing";
    EXPECT_LE(error / size, 0.09);  // no bad number leaked into a scale or a mean
    EXPECT_LE(lse_error, 0.2);
  }
}

INSTANTIATE_TEST_SUITE_P(All, NonFiniteInput, testing::Combine(testing::ValuesIn(methods), testing::ValuesIn(scenes)),
                         [](const auto& info) { return test_name(std::get<0>(info.param).name) + "_" + std::get<1>(info.param).name; });

// A value's other channels count as ever.
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

// Random places and masks, packed sequences and grouped heads among them.
TEST_P(NonFinitePlaces, AnywhereSpoilOnlyTheirOwn) {
  for (std::uint64_t seed = 0; seed < 25; ++seed) {
    Random random(100 + seed);
    const std::int64_t dim = random.pick(std::vector<std::int64_t>{1, 8, 33}), queries = 1 + random.below(70), keys = 1 + random.below(300);
    Array q = normal(random, DType::f32, {1, 4, queries, dim}), k = normal(random, DType::f32, {1, 2, keys, dim}),
          v = normal(random, DType::f32, {1, 2, keys, dim});
    const float bad[] = {nan, infinity, -infinity};
    for (Array* x : {&q, &k, &v})
      if (random.below(2)) x->set(0, random.below(x->shape()[1]), random.below(x->shape()[2]), random.below(dim), bad[random.below(3)]);
    std::vector<std::int64_t> query_starts{0, random.below(queries + 1), queries}, key_starts{0, random.below(keys + 1), keys};
    Options options{.recipe = GetParam().recipe, .window = random.below(2) ? causal : Window{random.below(50), random.below(50)}};
    if (random.below(2)) {
      options.query_starts = query_starts;
      options.key_starts = key_starts;
    }
    const oracle::Exact exact = oracle::attention({q, k, v, options});
    for (const std::string& kernel : available_kernels()) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << kernel);
      options.kernel = kernel;
      const Result r = attend(q.tensor(), k.tensor(), v.tensor(), options);
      const auto out = r.out.numbers(), lse = r.lse.numbers();
      for (std::size_t i = 0; i < out.size(); ++i)
        ASSERT_EQ(kind(out[i]), kind(exact.out[i]))
            << "out " << i / static_cast<std::size_t>(dim) << ": " << out[i] << ", not " << exact.out[i];
      for (std::size_t i = 0; i < lse.size(); ++i) ASSERT_EQ(kind(lse[i]), kind(exact.lse[i])) << "lse " << i;
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
