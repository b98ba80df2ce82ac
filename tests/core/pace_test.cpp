// SPDX-License-Identifier: Apache-2.0
// Calls whose time must grow with their work and no faster. Bounds are generous, for machines that others use too: what they are to catch
// is many times over them. Times are the least of several.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>

#include "support.h"

namespace chitu::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

double seconds(const std::function<void()>& body, int runs = 5) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

class Pace : public testing::TestWithParam<Method> {};

// Bar: twice the time of a finite call.
TEST_P(Pace, NonFiniteInputsTakeNoLonger) {
  struct Case {
    const char* name;
    std::function<void(Array& query, Array& key, Array& value)> spoil;
  };
  constexpr std::int64_t tokens = 1024, dim = 32;
  const auto channel = [](Array& x, std::int64_t c, float with) {
    for (std::int64_t t = 0; t < tokens; ++t) x.set(0, 0, t, c, with);
  };
  const auto all = [&](Array& x, float with) {
    for (std::int64_t c = 0; c < dim; ++c) channel(x, c, with);
  };
  const Case cases[] = {
      {"values NaN", [&](Array&, Array&, Array& v) { all(v, nan); }},
      {"a channel of values NaN", [&](Array&, Array&, Array& v) { channel(v, 3, nan); }},
      {"values infinite", [&](Array&, Array&, Array& v) { all(v, -infinity); }},
      {"keys NaN", [&](Array&, Array& k, Array&) { all(k, nan); }},
      {"keys -inf", [&](Array&, Array& k, Array&) { all(k, -infinity); }},
      {"keys that weigh nothing", [&](Array& q, Array& k, Array&) { channel(q, 0, 1), channel(k, 0, -infinity); }},
      {"queries NaN", [&](Array& q, Array&, Array&) { all(q, nan); }},
      {"queries that weigh nothing", [&](Array& q, Array& k, Array&) { channel(q, 0, -infinity), channel(k, 0, 1); }},
      {"queries, keys and values", [&](Array& q, Array& k, Array& v) { channel(q, 0, infinity), all(k, infinity), all(v, infinity); }},
  };
  for (const Window& window : {everything, causal, Window{300, 0}}) {
    Random random(220);
    const Array q = normal(random, DType::f16, {1, 1, tokens, dim}), k = normal(random, DType::f16, q.shape()),
                v = normal(random, DType::f16, q.shape());
    Array out(DType::f16, q.shape());
    const Options options{.recipe = GetParam().recipe, .window = window, .threads = 1};
    const double finite = seconds([&] { attention(q.tensor(), k.tensor(), v.tensor(), out.tensor(), options); });
    for (const Case& c : cases) {
      Array bad_q = q, bad_k = k, bad_v = v;
      c.spoil(bad_q, bad_k, bad_v);
      EXPECT_LE(seconds([&] { attention(bad_q.tensor(), bad_k.tensor(), bad_v.tensor(), out.tensor(), options); }), 4 * finite + 2e-3)
          << c.name;
    }
  }
}

// Bar: twice the time of `exact` for those that compute in INT8. Ten times as many sequences must not take a hundred times as long.
TEST_P(Pace, ManyShortSequences) {
  Random random(221);
  std::vector<std::int64_t> starts{0};
  while (starts.size() <= 8000) starts.push_back(starts.back() + 1 + random.below(16));
  const Array x = normal(random, DType::f16, {1, 1, starts.back(), 32});
  Array out(DType::f16, x.shape());
  const auto time = [&](const Recipe& recipe, std::size_t count) {
    const std::span<const std::int64_t> some(starts.data(), count + 1);
    const Tensor part = tokens_of(x, 0, some.back());
    return seconds(
        [&] {
          attention(part, part, part, tokens_of(out, 0, some.back()),
                    {.recipe = recipe, .window = causal, .query_starts = some, .key_starts = some, .threads = 1});
        },
        3);
  };
  const double all = time(GetParam().recipe, 8000);
  EXPECT_LE(all, 4 * time(recipes::exact, 8000));
  EXPECT_LE(all, 30 * time(GetParam().recipe, 800));
}

INSTANTIATE_TEST_SUITE_P(Methods, Pace, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

}  // namespace
}  // namespace chitu::test
