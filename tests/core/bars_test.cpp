// SPDX-License-Identifier: Apache-2.0
// How far each method may be from exact attention: on normal data, on data made to be hard, in the log-sum-exp, over merged shards.
// The bounds are promises of docs/methods.md; a method that gets worse fails here.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "data.h"
#include "oracle.h"

namespace chitu::test {
namespace {

Result run(const Data& d, const Recipe& recipe, Options options = {}) {
  options.recipe = recipe;
  return attend(d.query.tensor(), d.key.tensor(), d.value.tensor(), options);
}

oracle::Exact truth(const Data& d, const Options& options = {}) { return oracle::attention({d.query, d.key, d.value, options}); }

TEST(Bars, NormalData) {
  for (const auto& [keys, queries] : {std::pair<std::int64_t, std::int64_t>{2048, 256}, {16384, 64}})
    for (const std::int64_t dim : {64, 128}) {
      Random random(20);
      const Data d = normal_data(random, queries, keys, dim);
      const oracle::Exact exact = truth(d);
      for (const Method& method : methods) {
        SCOPED_TRACE(testing::Message() << method.name << ", " << keys << " keys, dim " << dim);
        const Bar& bar = bar_of(method.name);
        const Result r = run(d, method.recipe);
        EXPECT_LE(relative_l1(r.out.numbers(), exact.out), bar.l1);
        const Difference lse = difference(r.lse.numbers(), exact.lse);
        EXPECT_LE(lse.largest, bar.lse_largest);
        EXPECT_LE(lse.mean, bar.lse_mean);
      }
    }
}

// A factor that should be 1, but has a rounding error, shows after a thousand tiles if each tile applies it.
TEST(Bars, ErrorDoesNotGrowWithLength) {
  Random random(26);
  const Data d = normal_data(random, 4, 131072, 8);
  const oracle::Exact exact = truth(d);
  for (const std::string& kernel : available_kernels()) {
    SCOPED_TRACE(kernel);
    const Result r = run(d, recipes::exact, {.kernel = kernel});
    EXPECT_LE(relative_l1(r.out.numbers(), exact.out), 1e-5);
    EXPECT_LE(difference(r.lse.numbers(), exact.lse).largest, 1e-5);
  }
  for (const Method& method : methods) {
    const Difference lse = difference(run(d, method.recipe).lse.numbers(), exact.lse);
    EXPECT_LE(lse.largest, bar_of(method.name).lse_largest) << method.name;
  }
}

TEST(Bars, MethodsDifferFromExact) {
  // A method that silently ran another's kernel would pass every other bar.
  Random random(21);
  const Data d = normal_data(random, 64, 1024, 64);
  const oracle::Exact exact = truth(d);
  std::map<double, std::string_view> errors;
  for (const Method& method : methods) {
    const double error = relative_l1(run(d, method.recipe).out.numbers(), exact.out);
    EXPECT_EQ(errors.count(error), 0u) << method.name << " gave what " << errors[error] << " gives";
    errors[error] = method.name;
    const double least = method.name == "exact" ? 0 : bar_of(method.name).l1 / 4;
    EXPECT_GE(error, least) << method.name;
  }
}

TEST(Bars, LogSumExpWhenKeysHaveALargeMean) {
  for (const std::int64_t keys : {1001, 2039})
    for (const std::int64_t dim : {64, 72, 128})
      for (const float relative_scale : {1.f, 0.37f}) {
        Random random(22);
        Data d = normal_data(random, 128, keys, dim);
        d.key.fill([&](auto...) { return random.normal() + 10; });
        const float scale = relative_scale / std::sqrt(static_cast<float>(dim));
        const oracle::Exact exact = truth(d, {.scale = scale});
        for (const Method& method : methods) {
          if (method.name != "exact" && method.recipe.key.centre == Centre::none) continue;
          SCOPED_TRACE(testing::Message() << method.name << ", " << keys << " keys, dim " << dim << ", scale " << relative_scale
                                          << " x dim^-1/2");
          const Bar& bar = bar_of(method.name);
          const Result r = run(d, method.recipe, {.scale = scale});
          const Difference lse = difference(r.lse.numbers(), exact.lse);
          EXPECT_LE(lse.largest, method.name == "exact" ? 1e-5 : 1e-2);
          EXPECT_LE(lse.mean, method.name == "exact" ? 1e-5 : 1.2e-3);
          EXPECT_LE(relative_l1(r.out.numbers(), exact.out), bar.l1 * 1.2);
        }
      }
}

// ---- hard data

class HardData : public testing::TestWithParam<Hard> {};

TEST_P(HardData, ChituStaysWithinItsBoundAndBelowSage2) {
  Random random(23);
  const Data d = GetParam().make(random, 96, DType::f32);
  const oracle::Exact exact = truth(d);
  const double chitu = relative_l1(run(d, recipes::chitu).out.numbers(), exact.out),
               sage2 = relative_l1(run(d, recipes::sage2).out.numbers(), exact.out);
  RecordProperty("chitu", std::to_string(chitu));
  RecordProperty("sage2", std::to_string(sage2));
  EXPECT_LE(chitu, GetParam().chitu);
  EXPECT_LE(chitu, sage2);
  EXPECT_LE(relative_l1(run(d, recipes::exact).out.numbers(), exact.out), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(All, HardData, testing::ValuesIn(hard_data()), [](const auto& info) { return std::string(info.param.name); });

// ---- shards ----

class Shards : public testing::TestWithParam<Method> {};

// Keys in three uneven parts, each attended by a call of its own, as on three machines. Merged, the results are as good as those of one
// call.
TEST_P(Shards, MergedAreAsGoodAsUnsplit) {
  const std::int64_t keys = 1500, cuts[] = {0, 700, 731, keys};
  for (const Window& window : {everything, causal, Window{600, 0}, Window{300, 200}}) {
    Random random(24);
    Data d = normal_data(random, 300, keys, 64);
    d.key.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() + (t < 700 ? 2.f : -1.f); });  // each shard its own mean
    Options options{.window = window, .query_positions = Positions{keys - 500, 1}};
    const oracle::Exact exact = truth(d, options);
    const Result whole = run(d, GetParam().recipe, options);

    Result merged{Array(DType::f32, d.query.shape()), Array(DType::f32, {1, 1, 300, 1})};
    for (int i = 0; i < 3; ++i) {
      options.recipe = GetParam().recipe;
      options.key_positions = Positions{cuts[i], 1};
      const Result part =
          attend(d.query.tensor(), tokens_of(d.key, cuts[i], cuts[i + 1]), tokens_of(d.value, cuts[i], cuts[i + 1]), options);
      if (i == 0)
        merged = part;
      else
        merge({merged.out, merged.lse}, {part.out, part.lse}, {merged.out, merged.lse});
    }
    SCOPED_TRACE(testing::Message() << "window " << window.left << ", " << window.right);
    // 2 %: shards have other scales, so other rounding errors of the same size.
    EXPECT_LE(relative_l1(merged.out.numbers(), exact.out), 1.02 * relative_l1(whole.out.numbers(), exact.out) + 1e-3);
    EXPECT_LE(difference(merged.lse.numbers(), exact.lse).mean, difference(whole.lse.numbers(), exact.lse).mean + 1e-3);
  }
}

// A stripe a machine: keys 0, 3, 6 ...; 1, 4, 7 ...; 2, 5, 8 ...
TEST_P(Shards, StripesMergeUnderACausalMask) {
  const std::int64_t keys = 900;
  Random random(25);
  const Data d = normal_data(random, keys, keys, 64);
  const oracle::Exact exact = truth(d, {.window = causal});
  const Result whole = run(d, GetParam().recipe, {.window = causal});
  Result merged{Array(DType::f32, d.query.shape()), Array(DType::f32, {1, 1, keys, 1})};
  for (int i = 0; i < 3; ++i) {
    const auto stripe = [&](const Array& x) {
      Tensor t = tokens_of(x, i, keys);
      t.shape[2] = keys / 3;
      t.stride[2] *= 3;
      return t;
    };
    const Result part =
        attend(d.query.tensor(), stripe(d.key), stripe(d.value),
               {.recipe = GetParam().recipe, .window = causal, .query_positions = Positions{0, 1}, .key_positions = Positions{i, 3}});
    if (i == 0)
      merged = part;
    else
      merge({merged.out, merged.lse}, {part.out, part.lse}, {merged.out, merged.lse});
  }
  EXPECT_LE(relative_l1(merged.out.numbers(), exact.out), relative_l1(whole.out.numbers(), exact.out) + 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Methods, Shards, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

}  // namespace
}  // namespace chitu::test
