// SPDX-License-Identifier: Apache-2.0
// Every kernel against the double reference of its own recipe, over methods, masks, shapes, types and layouts; the reference against
// exact attention and against second implementations of the recipes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "../cases.h"
#include "oracle.h"
#include "support.h"

namespace chitu::test {
namespace {

constexpr std::size_t case_count = 180;

Case make_case(std::size_t i) {
  static const std::vector<DType> types{DType::f32, DType::f16, DType::bf16};
  static const CaseSpace space{.seed = 1000,
                               .dims = {1, 2, 33, 64, 72, 80, 96, 128, 136, 160, 256},
                               .lengths = {0, 1, 2, 5, 127, 128, 129, 257, 500},
                               .inputs = types,
                               .outputs = types,
                               .mixed = true,
                               .most_work = 3'000'000};
  Case c = test::make_case(space, i);
  c.options.threads = static_cast<int>(1 + i % 3);
  return c;
}

Result run(const Case& c, const Recipe& recipe, std::string_view kernel, DType type) {
  Options options = c.options;
  options.recipe = recipe;
  options.kernel = kernel;
  return attend(c.query.tensor(), c.key.tensor(), c.value.tensor(), options, type, c.out);
}

std::vector<double> to_double(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// A method, and the first of the cases. The second half repeats all paths with other lengths and types: ./test.sh leaves it out
// under sanitizers, by its name.
class Conformance : public testing::TestWithParam<std::tuple<Method, std::size_t>> {};

TEST_P(Conformance, EveryKernelDoesWhatTheRecipeSays) {
  const auto& [method, first] = GetParam();
  const Recipe& recipe = method.recipe;
  // Weights in 8 bits are computed with 2^x good to 7.5e-5, which moves a weight by one unit now and then.
  const bool int8_weights = recipe.weights.type == DType::u8;
  for (std::size_t i = first; i < first + case_count / 2; ++i) {
    const Case c = make_case(i);
    const Result expected = run(c, recipe, "cpu.reference", DType::f32);
    for (const std::string& kernel : available_kernels()) {
      SCOPED_TRACE(c.text + ", " + kernel);
      const Result got = run(c, recipe, kernel, c.type);
      ASSERT_LE(relative_l1(got.out.numbers(), expected.out.numbers()), 2e-3 + rounding_of(c.type));
      const Difference lse = difference(got.lse.numbers(), to_double(expected.lse.numbers()));
      ASSERT_LE(lse.largest, int8_weights ? 5e-3 : 2e-5);
      const double rows = static_cast<double>(c.query.shape()[0] * c.query.shape()[1] * c.query.shape()[2]);
      ASSERT_LE(lse.mean, int8_weights ? 2e-4 + 5e-3 / rows : 2e-6);  // one moved weight shows in the mean of few rows
    }
  }
}

std::string conformance_name(const testing::TestParamInfo<Conformance::ParamType>& info) {
  const auto& [method, first] = info.param;
  return test_name(method.name) + (first == 0 ? "_first_half" : "_second_half");
}

INSTANTIATE_TEST_SUITE_P(Methods, Conformance,
                         testing::Combine(testing::ValuesIn(methods), testing::Values(std::size_t{0}, case_count / 2)), conformance_name);

class Kernels : public testing::TestWithParam<std::string> {};

// Counts, as skipped tests, the kernels that this machine leaves untested.
TEST_P(Kernels, IsTestedHere) {
  const auto tested = available_kernels();
  if (std::find(tested.begin(), tested.end(), GetParam()) == tested.end())
    GTEST_SKIP() << "this machine lacks the instructions of " << GetParam();
}

std::vector<std::string> all_kernels() {
  std::vector<std::string> names;
  for (const KernelInfo& k : kernels())
    if (std::find(names.begin(), names.end(), k.name) == names.end()) names.emplace_back(k.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, Kernels, testing::ValuesIn(all_kernels()), [](const auto& info) { return test_name(info.param); });

TEST(Reference, OfExactIsExactAttention) {
  for (std::size_t i = 0; i < case_count; ++i) {
    const Case c = make_case(i);
    SCOPED_TRACE(c.text);
    const oracle::Exact exact = oracle::attention({c.query, c.key, c.value, c.options});
    const Result got = run(c, recipes::exact, "cpu.reference", c.type);
    ASSERT_LE(relative_l1(got.out.numbers(), exact.out), 1e-6 + rounding_of(c.type));
    ASSERT_LE(difference(got.lse.numbers(), exact.lse).largest, 2e-6);
  }
}

TEST(Reference, RowsThatSeeNoKeyAreZeroWithoutWeight) {
  Random random(3);
  const Array q = normal(random, DType::f16, {2, 4, 50, 40}), k = normal(random, DType::f16, {2, 2, 20, 40}),
              v = normal(random, DType::f16, {2, 2, 20, 40});
  for (const Method& method : methods)
    for (const std::string& kernel : available_kernels()) {
      SCOPED_TRACE(std::string(method.name) + ", " + kernel);
      // Bottom-right: of 50 queries over 20 keys the first 30 see nothing.
      const Result r = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = method.recipe, .window = causal, .kernel = kernel},
                              DType::bf16, Layout::padded);
      for (std::int64_t i = 0; i < 50; ++i)
        for (std::int64_t h = 0; h < 4; ++h) {
          ASSERT_EQ(r.lse.get(1, h, i, 0) == -std::numeric_limits<float>::infinity(), i < 30) << i;
          for (std::int64_t c = 0; i < 30 && c < 40; ++c) ASSERT_EQ(r.out.get(1, h, i, c), 0) << i;
        }
      // No keys at all.
      const Result none = attend(q.tensor(), tokens_of(k, 0, 0), tokens_of(v, 0, 0), {.recipe = method.recipe, .kernel = kernel});
      for (const float x : none.out.numbers()) ASSERT_EQ(x, 0);
      for (const float x : none.lse.numbers()) ASSERT_EQ(x, -std::numeric_limits<float>::infinity());
    }
}

class Recipes : public testing::TestWithParam<Method> {};

TEST_P(Recipes, ReferenceAgreesWithASecondImplementation) {
  Random random(4);
  for (const auto& [queries, keys, dim, is_causal] : {std::tuple<std::int64_t, std::int64_t, std::int64_t, bool>{40, 300, 64, false},
                                                      {150, 290, 72, true},
                                                      {33, 128, 33, false},
                                                      {20, 9, 80, true},
                                                      {64, 513, 128, true}})
    for (const float spread : {1.f, 4.f}) {  // flat and peaky rows
      Array q = normal(random, DType::f16, {1, 1, queries, dim}), k = normal(random, DType::bf16, {1, 1, keys, dim}),
            v = normal(random, DType::f32, {1, 1, keys, dim});
      q.fill([&](auto...) { return spread * random.normal(); });
      k.fill([&](auto, auto, auto, std::int64_t c) { return random.normal() + (c % 7 == 0 ? 3.f : 0.f); });
      v.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t % 131 == 5 ? 0.01f : 1); });  // flags some tiles
      const float scale = 1 / std::sqrt(static_cast<float>(dim));
      const oracle::HeadResult expected =
          oracle::attention(GetParam().name, q.numbers(), k.numbers(), v.numbers(), dim, DType::bf16, double{scale}, is_causal);
      const Result got =
          attend(q.tensor(), k.tensor(), v.tensor(),
                 {.recipe = GetParam().recipe, .window = is_causal ? causal : everything, .scale = scale, .kernel = "cpu.reference"});
      EXPECT_LE(relative_l1(got.out.numbers(), expected.out), 5e-5) << queries << " queries, " << keys << " keys, dim " << dim;
      EXPECT_LE(difference(got.lse.numbers(), expected.lse).largest, 1e-5);
    }
}

INSTANTIATE_TEST_SUITE_P(Methods, Recipes, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

}  // namespace
}  // namespace chitu::test
