// SPDX-License-Identifier: Apache-2.0
// Error metrics against plain loops over the same numbers, and what NaN, infinities and zeros do to them.
#include "cli/measure/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cli/measure/data.h"

namespace chitu::cli {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr Shape shape{2, 3, 5, 7}, lse_shape{2, 3, 5, 1};

struct Pair {
  std::vector<float> out, truth, lse, true_lse;
  Pair() : out(210), truth(210), lse(30), true_lse(30) {
    const Stream random(7);
    for (std::size_t i = 0; i < out.size(); ++i) {
      truth[i] = static_cast<float>(random.normal(2 * i));
      out[i] = truth[i] + .1f * static_cast<float>(random.normal(2 * i + 1));
    }
    for (std::size_t i = 0; i < lse.size(); ++i) {
      true_lse[i] = static_cast<float>(i);
      lse[i] = true_lse[i] + (i == 11 ? .5f : .25f);
    }
  }

  void add_to(Comparison& c, std::int64_t first, std::int64_t count, std::int64_t first_query) {
    const auto part = [&](std::vector<float>& x, const Shape& s) {
      Tensor t = dense(x.data() + first * s[3], DType::f32, s);
      t.shape[2] = count;
      return t;
    };
    c.add(part(out, shape), part(lse, lse_shape), part(truth, shape), part(true_lse, lse_shape), first_query);
  }

  Errors errors() {
    Comparison c(2, 3);
    add_to(c, 0, 5, 0);
    return c.errors();
  }
};

TEST(Statistics, MatchPlainLoops) {
  Pair p;
  double difference = 0, size = 0, squares = 0, largest = 0, product = 0, oo = 0, tt = 0;
  for (std::size_t i = 0; i < p.out.size(); ++i) {
    const double o = p.out[i], t = p.truth[i];
    difference += std::fabs(o - t);
    size += std::fabs(t);
    squares += (o - t) * (o - t);
    largest = std::max(largest, std::fabs(o - t));
    product += o * t;
    oo += o * o;
    tt += t * t;
  }
  const Errors e = p.errors();
  EXPECT_DOUBLE_EQ(e.max_diff, largest);
  EXPECT_NEAR(e.mean_diff, difference / 210, 1e-12);
  EXPECT_NEAR(e.relative_l1, difference / size, 1e-12);
  EXPECT_NEAR(e.rmse, std::sqrt(squares / 210), 1e-12);
  EXPECT_NEAR(e.cosine, product / std::sqrt(oo * tt), 1e-12);
  EXPECT_DOUBLE_EQ(e.lse_max_diff, .5);
  EXPECT_DOUBLE_EQ(e.lse_mean_diff, (29 * .25 + .5) / 30);
}

TEST(Statistics, NamesTheWorstHeadAndRow) {
  Pair p;
  for (std::size_t i = 0; i < p.out.size(); ++i) p.out[i] = p.truth[i] * 1.01f;
  // Row 3 of batch 1, head 2 is far off, head 0 of batch 1 is a little off everywhere.
  for (std::size_t c = 0; c < 7; ++c) p.out[(5 * 5 + 3) * 7 + c] = p.truth[(5 * 5 + 3) * 7 + c] * 1.2f;
  for (std::size_t i = 3 * 35; i < 4 * 35; ++i) p.out[i] = p.truth[i] * 1.1f;
  const Errors e = p.errors();
  EXPECT_EQ(e.worst_row.batch, 1);
  EXPECT_EQ(e.worst_row.head, 2);
  EXPECT_EQ(e.worst_row.query, 3);
  EXPECT_NEAR(e.worst_row.relative_l1, .2, 1e-6);
  EXPECT_EQ(e.worst_head.batch, 1);
  EXPECT_EQ(e.worst_head.head, 0);
  EXPECT_NEAR(e.worst_head.relative_l1, .1, 1e-6);
}

TEST(Statistics, RunsOfRowsAddUpToTheWhole) {
  Pair p;
  Comparison parts(2, 3);
  p.add_to(parts, 0, 2, 0);
  p.add_to(parts, 2, 3, 2);
  const Errors whole = p.errors(), sum = parts.errors();
  EXPECT_DOUBLE_EQ(sum.max_diff, whole.max_diff);
  EXPECT_NEAR(sum.relative_l1, whole.relative_l1, 1e-14);
  EXPECT_EQ(sum.worst_row.query, whole.worst_row.query);
  EXPECT_NEAR(sum.lse_mean_diff, whole.lse_mean_diff, 1e-14);
}

TEST(Statistics, ANanThatDoesNotBelongIsInfinitelyWrong) {
  Pair p;
  p.out[100] = nan;
  const Errors e = p.errors();
  EXPECT_EQ(e.max_diff, infinity);
  EXPECT_EQ(e.relative_l1, infinity);
  EXPECT_EQ(e.cosine, 0);
  EXPECT_EQ(e.worst_row.query, 100 / 7 % 5);
}

TEST(Statistics, NanAndInfinityThatBelongAreNoError) {
  Pair p;
  p.out = p.truth;
  p.lse = p.true_lse;
  p.out[100] = p.truth[100] = nan;
  p.lse[4] = p.true_lse[4] = -std::numeric_limits<float>::infinity();
  const Errors e = p.errors();
  EXPECT_EQ(e.max_diff, 0);
  EXPECT_EQ(e.relative_l1, 0);
  EXPECT_EQ(e.cosine, 1);
  EXPECT_EQ(e.lse_max_diff, 0);
}

TEST(Statistics, WhatIsNotFiniteInTheTruthIsLeftOut) {
  Pair p;
  double difference = 0, size = 0, squares = 0;
  for (std::size_t i = 7; i < p.out.size(); ++i) {
    difference += std::fabs(static_cast<double>(p.out[i]) - p.truth[i]);
    size += std::fabs(p.truth[i]);
    squares += std::pow(static_cast<double>(p.out[i]) - p.truth[i], 2);
  }
  for (std::size_t c = 0; c < 7; ++c) p.out[c] = p.truth[c] = nan;
  p.lse[0] = p.true_lse[0] = nan;
  const Errors e = p.errors();
  EXPECT_NEAR(e.relative_l1, difference / size, 1e-12);
  EXPECT_NEAR(e.mean_diff, difference / 203, 1e-12);  // not of 210
  EXPECT_NEAR(e.rmse, std::sqrt(squares / 203), 1e-12);
  EXPECT_NEAR(e.lse_mean_diff, (28 * .25 + .5) / 29, 1e-12);
}

void expect_unknown(const Errors& e) {
  for (const double x : {e.max_diff, e.mean_diff, e.relative_l1, e.rmse, e.cosine, e.lse_max_diff, e.lse_mean_diff,
                         e.worst_head.relative_l1, e.worst_row.relative_l1})
    EXPECT_TRUE(std::isnan(x)) << x;
}

TEST(Statistics, WhereNothingWasComparedNothingIsKnown) {
  expect_unknown(Comparison(2, 3).errors());
  expect_unknown(Comparison(0, 3).errors());
  Pair p;
  p.out.assign(210, nan);
  p.lse.assign(30, nan);
  p.truth = p.out;
  p.true_lse = p.lse;
  expect_unknown(p.errors());
}

TEST(Statistics, ANumberWhereTheTruthHasNanIsInfinitelyWrong) {
  Pair p;
  p.out.assign(210, nan);
  p.truth = p.out;
  p.out[100] = 1;
  p.true_lse[3] = nan;
  const Errors e = p.errors();
  EXPECT_EQ(e.max_diff, infinity);
  EXPECT_EQ(e.mean_diff, infinity);
  EXPECT_EQ(e.relative_l1, infinity);
  EXPECT_EQ(e.cosine, 0);
  EXPECT_EQ(e.worst_row.query, 100 / 7 % 5);
  EXPECT_EQ(e.lse_max_diff, infinity);
}

TEST(Statistics, RowsOfZerosHaveNoErrorOrAnInfiniteOne) {
  Pair p;
  p.truth.assign(210, 0);
  p.out.assign(210, 0);
  EXPECT_EQ(p.errors().relative_l1, 0);
  p.out[0] = 1;
  EXPECT_EQ(p.errors().relative_l1, infinity);
}

TEST(Statistics, SpreadIsMedianMinimumAndMaximum) {
  const Spread odd = spread_of({3, 1, 2}), even = spread_of({4, 1, 2, 3}), one = spread_of({5});
  EXPECT_EQ(odd.median, 2);
  EXPECT_EQ(odd.min, 1);
  EXPECT_EQ(odd.max, 3);
  EXPECT_EQ(even.median, 2.5);
  EXPECT_EQ(one.median, 5);
  EXPECT_EQ(one.max, 5);
}

}  // namespace
}  // namespace chitu::cli
