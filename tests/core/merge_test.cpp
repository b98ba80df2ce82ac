// SPDX-License-Identifier: Apache-2.0
// merge(): partial results over disjoint keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

#include "common/numbers.h"
#include "oracle.h"
#include "support.h"

namespace chitu::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

// One row of four channels: out x and lse.
Result part(float x, float lse, DType type = DType::f32) {
  Result r{Array(type, {1, 1, 1, 4}), Array(DType::f32, {1, 1, 1, 1})};
  r.out.fill([&](auto...) { return x; });
  r.lse.set(0, 0, 0, 0, lse);
  return r;
}

Output output(const Result& r) { return {r.out, r.lse}; }

Result merged(const Result& a, const Result& b, DType type = DType::f32) {
  Result r = part(nan, nan, type);
  merge(output(a), output(b), output(r));
  return r;
}

float out_of(const Result& r) { return r.out.get(0, 0, 0, 3); }
float lse_of(const Result& r) { return r.lse.get(0, 0, 0, 0); }

TEST(Merge, WeighsBySumOfExponentials) {
  const Result r = merged(part(1, std::log(3.f)), part(5, 0));
  EXPECT_NEAR(out_of(r), (3 * 1 + 1 * 5) / 4., 1e-6);
  EXPECT_NEAR(lse_of(r), std::log(4.), 1e-6);
}

TEST(Merge, KeepsItsWeightsFarFromZero) {
  for (const float base : {-1e4f, -300.f, 300.f, 1e4f}) {
    const Result r = merged(part(1, base + 1), part(2, base));
    EXPECT_NEAR(out_of(r), (std::exp(1.) + 2) / (std::exp(1.) + 1), 1e-6) << base;
    EXPECT_NEAR(lse_of(r), base + std::log(std::exp(1.) + 1), 1e-3) << base;
  }
}

TEST(Merge, APartThatSawNothingCountsNothing) {
  // Its output is zeros by contract; even a NaN there must not come through.
  for (const float x : {0.f, nan, infinity}) {
    for (const Result& r : {merged(part(x, -infinity), part(7, 2)), merged(part(7, 2), part(x, -infinity))}) {
      EXPECT_EQ(out_of(r), 7);
      EXPECT_EQ(lse_of(r), 2);
    }
    const Result none = merged(part(x, -infinity), part(x, -infinity));
    EXPECT_EQ(out_of(none), 0);
    EXPECT_EQ(lse_of(none), -infinity);
  }
}

TEST(Merge, NaNComesThrough) {
  for (const Result& r : {merged(part(nan, nan), part(7, 2)), merged(part(7, 2), part(nan, nan)),
                          merged(part(nan, nan), part(0, -infinity)), merged(part(0, -infinity), part(nan, nan))}) {
    EXPECT_TRUE(std::isnan(out_of(r)));
    EXPECT_TRUE(std::isnan(lse_of(r)));
  }
  const Result only_out = merged(part(nan, 1), part(7, 2));  // a NaN among the values leaves the LSE as it is
  EXPECT_TRUE(std::isnan(out_of(only_out)));
  EXPECT_NEAR(lse_of(only_out), std::log(std::exp(1.) + std::exp(2.)), 1e-6);
}

TEST(Merge, NeverLeavesTheTypeOfFiniteParts) {
  Random random(2);
  for (const DType from : {DType::f32, DType::f16, DType::bf16})
    for (const DType to : {DType::f32, DType::f16, DType::bf16})
      for (const float sign : {1.f, -1.f})
        for (int i = 0; i < 30; ++i) {
          const float x = sign * largest(from), lse = random.normal();
          EXPECT_EQ(out_of(merged(part(x, lse, from), part(x, 0, from), to)), oracle::round_to(to, within(to, x)));
          EXPECT_EQ(out_of(merged(part(sign * infinity, lse, from), part(x, 0, from), to)), sign * infinity);
        }
}

TEST(Merge, WorksInPlace) {
  Result a = part(1, std::log(3.f)), b = part(5, 0);
  const Result expected = merged(a, b);
  merge(output(a), output(b), output(a));
  EXPECT_EQ(a.out.raw(), expected.out.raw());
  EXPECT_EQ(a.lse.raw(), expected.lse.raw());
  a = part(1, std::log(3.f));
  merge(output(a), output(b), output(b));
  EXPECT_EQ(b.out.raw(), expected.out.raw());
  EXPECT_EQ(b.lse.raw(), expected.lse.raw());
}

TEST(Merge, RoundsOnceTo16Bits) {
  const float third = 1.f / 3;
  for (const DType type : {DType::f16, DType::bf16}) {
    const Result a = part(third, 0.3f, type), b = part(-2 * third, 0.1f, type);
    const double wa = std::exp(0.3 - 0.3), wb = std::exp(double{0.1f} - double{0.3f});
    const double mean = (wa * out_of(a) + wb * out_of(b)) / (wa + wb);
    EXPECT_EQ(out_of(merged(a, b, type)), oracle::round_to(type, static_cast<float>(mean))) << name(type);
  }
}

TEST(Merge, AnyOrderOfPartsGivesTheWhole) {
  Random random(1);
  const Array q = normal(random, DType::f32, {2, 3, 9, 24}), k = normal(random, DType::f32, {2, 3, 90, 24}),
              v = normal(random, DType::f32, {2, 3, 90, 24});
  const oracle::Exact exact = oracle::attention({q, k, v, {}});
  const auto shard = [&](std::int64_t begin, std::int64_t end) {
    return attend(q.tensor(), tokens_of(k, begin, end), tokens_of(v, begin, end), {.recipe = recipes::exact}, DType::f32, Layout::padded);
  };
  const Result parts[] = {shard(0, 1), shard(1, 50), shard(50, 90)};
  const int orders[][3] = {{0, 1, 2}, {2, 0, 1}, {1, 2, 0}};
  for (const auto& order : orders) {
    Result all{Array(DType::f32, q.shape(), Layout::bshd), Array(DType::f32, {2, 3, 9, 1}, Layout::padded)};
    merge(output(parts[order[0]]), output(parts[order[1]]), output(all));
    merge(output(all), output(parts[order[2]]), output(all));
    EXPECT_LE(relative_l1(all.out.numbers(), exact.out), 1e-6);
    EXPECT_LE(difference(all.lse.numbers(), exact.lse).largest, 1e-5);
    EXPECT_TRUE(all.out.gaps_untouched() && all.lse.gaps_untouched());
  }
}

// Parts of random sizes of weight, some of which have seen no key, in any types and layouts.
struct Parts {
  std::vector<Result> all;
  std::vector<Output> outputs() const {
    std::vector<Output> views;
    for (const Result& part : all) views.push_back(output(part));
    return views;
  }

  Parts(Random& random, std::size_t count, const Shape& shape, std::initializer_list<DType> types) {
    const std::vector<Layout> layouts{Layout::bhsd, Layout::bshd, Layout::padded};
    for (std::size_t i = 0; i < count; ++i) {
      const DType type = std::data(types)[i % types.size()];
      all.push_back({normal(random, type, shape, random.pick(layouts)), Array(DType::f32, lse_shape(shape), random.pick(layouts))});
      all.back().lse.fill([&](auto...) { return random.below(4) == 0 ? -infinity : 5 * random.normal(); });
    }
  }
  static Shape lse_shape(const Shape& s) { return {s[0], s[1], s[2], 1}; }

  // The mean by its definition, the LSE, and the least and the most of the parts that count.
  struct Truth {
    double mean, lse, least = infinity, most = -infinity;
  };
  Truth truth(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
    Truth r{};
    long double sum = 0, weighed = 0;
    for (const Result& part : all) {
      const long double weight = std::exp(static_cast<long double>(part.lse.get(b, h, t, 0)));
      if (weight == 0) continue;
      const float x = part.out.get(b, h, t, c);
      sum += weight, weighed += weight * static_cast<long double>(x);
      r.least = std::fmin(r.least, x), r.most = std::fmax(r.most, x);
    }
    r.mean = sum == 0 ? 0 : static_cast<double>(weighed / sum);
    r.lse = static_cast<double>(std::log(sum));
    return r;
  }
  void expect(const Result& r) const {
    const auto [batch, heads, tokens, dim] = r.out.shape();
    const double rounding = r.out.tensor().type == DType::f32 ? 1e-6 : r.out.tensor().type == DType::f16 ? 0x1p-11 : 0x1p-8;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t c = 0; c < dim; ++c) {
            const Truth want = truth(b, h, t, c);
            const float got = r.out.get(b, h, t, c), lse = r.lse.get(b, h, t, 0);
            ASSERT_NEAR(got, want.mean, rounding * std::abs(want.mean) + 1e-6) << b << " " << h << " " << t << " " << c;
            if (want.lse == -infinity)
              ASSERT_EQ(lse, -infinity);
            else
              ASSERT_NEAR(lse, want.lse, 2e-6 * (1 + std::abs(want.lse)));
            if (want.least > want.most || r.out.tensor().type != DType::f32) continue;
            ASSERT_LE(want.least, got);
            ASSERT_GE(want.most, got);
          }
    EXPECT_TRUE(r.out.gaps_untouched() && r.lse.gaps_untouched());
  }
};

TEST(Merge, OfPartsIsTheirMean) {
  Random random(5);
  const Shape shape{2, 3, 7, 20};
  for (const std::size_t count : {1u, 2u, 3u, 8u, 70u})
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      const Parts parts(random, count, shape, {DType::f32, DType::bf16, DType::f16});
      Result r{Array(type, shape, Layout::padded), Array(DType::f32, Parts::lse_shape(shape), Layout::bshd)};
      merge(parts.outputs(), output(r));
      parts.expect(r);
    }
}

TEST(Merge, OfPartsInAnyOrderAndGroupingAgrees) {
  Random random(6);
  const Shape shape{1, 2, 9, 16};
  for (int i = 0; i < 20; ++i) {
    const Parts parts(random, 6, shape, {DType::f32});
    std::vector<Output> outputs = parts.outputs();
    for (std::size_t k = outputs.size(); k > 1; --k)
      std::swap(outputs[k - 1], outputs[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(k)))]);
    const auto middle = outputs.begin() + random.below(6);
    const auto fresh = [&] { return Result{Array(DType::f32, shape), Array(DType::f32, Parts::lse_shape(shape))}; };
    const Result some = fresh(), whole = fresh();
    std::vector<Output> rest(middle + 1, outputs.end());
    merge(std::vector<Output>(outputs.begin(), middle + 1), output(some));
    rest.push_back(output(some));
    merge(rest, output(whole));
    parts.expect(whole);
  }
}

TEST(Merge, OfPartsWorksInPlaceOfAny) {
  Random random(7);
  const Shape shape{2, 2, 5, 24};
  for (std::size_t at = 0; at < 4; ++at) {
    Parts parts(random, 4, shape, {DType::bf16, DType::f32});
    const DType type = parts.all[at].out.tensor().type;
    const Result apart{Array(type, shape), Array(DType::f32, Parts::lse_shape(shape))};
    merge(parts.outputs(), output(apart));
    merge(parts.outputs(), output(parts.all[at]));
    EXPECT_EQ(parts.all[at].out.numbers(), apart.out.numbers());
    EXPECT_EQ(parts.all[at].lse.numbers(), apart.lse.numbers());
  }
}

// What is not finite counts whatever its weight, as in attention: even where the weight is none in any number format.
TEST(Merge, InfinityCountsWhateverItsWeight) {
  for (const float lse : {-50.f, -500.f, -5000.f}) {
    const Result r = merged(part(infinity, lse), part(7, 2));
    EXPECT_EQ(out_of(r), infinity) << lse;
    EXPECT_EQ(lse_of(r), 2);
    EXPECT_TRUE(std::isnan(out_of(merged(part(nan, lse), part(7, 2)))));
    EXPECT_TRUE(std::isfinite(out_of(merged(part(3e38f, lse), part(7, 2)))));
  }
}

}  // namespace
}  // namespace chitu::test
