// SPDX-License-Identifier: Apache-2.0
// The named distributions: they are the same for a seed, as random as they claim, and have the structure that they are named for.
#include "cli/measure/data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "chitu/error.h"
#include "common/numbers.h"

namespace chitu::cli {
namespace {

constexpr Shape query_shape{1, 4, 512, 64}, key_shape{1, 2, 512, 64};

Operands make(std::string_view name, std::uint64_t seed = 1) { return generate(name, query_shape, key_shape, DType::f32, seed); }

const float* numbers(const HostTensor& x, std::int64_t head, std::int64_t token) {
  return reinterpret_cast<const float*>(row(x.tensor, 0, head, token));
}

bool same(const HostTensor& a, const HostTensor& b) {
  const auto& s = a.tensor.shape;
  return a.tensor.shape == b.tensor.shape &&
         std::memcmp(a.tensor.data, b.tensor.data, static_cast<std::size_t>(s[0] * s[1] * s[2] * s[3]) * 4) == 0;
}

struct Moments {
  double mean = 0, variance = 0, fourth = 0;  // fourth: kurtosis
};

Moments moments(const HostTensor& x) {
  const auto& s = x.tensor.shape;
  const auto n = static_cast<double>(s[0] * s[1] * s[2] * s[3]);
  const auto* first = static_cast<const float*>(x.tensor.data);
  Moments m;
  for (const float* p = first; p < first + static_cast<std::ptrdiff_t>(n); ++p) m.mean += *p / n;
  for (const float* p = first; p < first + static_cast<std::ptrdiff_t>(n); ++p) m.variance += (*p - m.mean) * (*p - m.mean) / n;
  for (const float* p = first; p < first + static_cast<std::ptrdiff_t>(n); ++p) m.fourth += std::pow(*p - m.mean, 4) / n;
  m.fourth /= m.variance * m.variance;
  return m;
}

double channel_mean(const HostTensor& x, std::int64_t head, std::int64_t channel) {
  double sum = 0;
  for (std::int64_t t = 0; t < x.tensor.shape[2]; ++t) sum += numbers(x, head, t)[channel];
  return sum / static_cast<double>(x.tensor.shape[2]);
}

TEST(Data, DependsOnTheSeedAlone) {
  for (const Distribution& d : distributions()) {
    const Operands a = make(d.name), b = make(d.name), c = make(d.name, 2);
    EXPECT_TRUE(same(a.query, b.query) && same(a.key, b.key) && same(a.value, b.value)) << d.name;
    EXPECT_FALSE(same(a.query, c.query)) << d.name;
    EXPECT_FALSE(same(a.key, a.value)) << d.name;
  }
}

TEST(Data, ATokenDoesNotDependOnHowManyThereAre) {
  const Operands whole = make("normal");
  const Operands part = generate("normal", {1, 4, 100, 64}, {1, 2, 100, 64}, DType::f32, 1);
  EXPECT_EQ(std::memcmp(numbers(whole.query, 3, 99), numbers(part.query, 3, 99), 64 * sizeof(float)), 0);
}

// The first numbers of a stream, written down: data must stay what it was, or tables of two versions would not compare.
TEST(Data, StreamsStayWhatTheyWere) {
  const Stream s = Stream(1).part(2);
  EXPECT_NEAR(s.uniform(0), 0.9823755160923191, 1e-15);
  EXPECT_NEAR(s.normal(0), 0.18836552218108488, 1e-12);
  EXPECT_NEAR(s.normal(1), -0.3015498241578077, 1e-12);
}

TEST(Data, NormalHasTheMomentsOfANormal) {
  const Operands x = make("normal");
  for (const HostTensor* t : {&x.query, &x.key, &x.value}) {
    const Moments m = moments(*t);
    EXPECT_NEAR(m.mean, 0, .02);
    EXPECT_NEAR(m.variance, 1, .03);
    EXPECT_NEAR(m.fourth, 3, .1);
  }
}

TEST(Data, UniformFillsItsInterval) {
  const Operands x = make("uniform");
  const Moments m = moments(x.key);
  EXPECT_NEAR(m.mean, 0, .01);
  EXPECT_NEAR(m.variance, 1. / 12, .003);
  const auto* first = static_cast<const float*>(x.key.tensor.data);
  EXPECT_TRUE(std::all_of(first, first + 2 * 512 * 64, [](float v) { return v >= -.5f && v <= .5f; }));
}

TEST(Data, HaveTheStructureTheyAreNamedFor) {
  EXPECT_NEAR(channel_mean(make("key-bias").key, 1, 5), 10, .3);
  EXPECT_NEAR(channel_mean(make("offset").query, 1, 5), 3, .3);
  EXPECT_NEAR(moments(make("peaky").query).variance, 6.25, .3);
  EXPECT_GT(moments(make("heavy").value).fourth, 10);

  const Operands outlier = make("outlier");
  int large = 0;
  for (std::int64_t c = 0; c < 64; ++c) large += std::fabs(channel_mean(outlier.key, 0, c)) > 4.5;
  EXPECT_GE(large, 1);
  EXPECT_LE(large, 4);

  const HostTensor spiked = make("spikes").value;
  const auto* first = static_cast<const float*>(spiked.tensor.data);
  const auto spikes = std::count(first, first + 2 * 512 * 64, 200.f);
  EXPECT_GE(spikes, 28);  // 16 a head; two may fall on one place
  EXPECT_LE(spikes, 32);

  double bias = 0;
  const HostTensor biased = make("value-bias").value;
  for (std::int64_t c = 0; c < 64; ++c) bias += std::pow(channel_mean(biased, 0, c), 2) / 64;
  EXPECT_NEAR(bias, 1, .6);
}

double dot(const float* a, const float* b) {
  double sum = 0;
  for (int c = 0; c < 64; ++c) sum += a[c] * b[c];
  return sum;
}

TEST(Data, TheSinkDrawsAllHeadsThatShareIt) {
  const Operands x = make("sink");
  for (const std::int64_t head : {0, 1, 2, 3}) {
    double at_sink = 0, elsewhere = 0;
    for (std::int64_t t = 0; t < 512; ++t) {
      at_sink += dot(numbers(x.query, head, t), numbers(x.key, head / 2, 0)) / 512;
      elsewhere += dot(numbers(x.query, head, t), numbers(x.key, head / 2, 1 + t % 511)) / 512;
    }
    EXPECT_NEAR(at_sink, 150, 8) << head;
    EXPECT_NEAR(elsewhere, 0, 3) << head;
  }
}

TEST(Data, LocalQueriesScoreHighestNearTheirOwnPosition) {
  const Operands x = make("local");
  for (const std::int64_t t : {60, 256, 400}) {
    std::int64_t best = 0;
    for (std::int64_t k = 1; k < 512; ++k)
      if (dot(numbers(x.query, 0, t), numbers(x.key, 0, k)) > dot(numbers(x.query, 0, t), numbers(x.key, 0, best))) best = k;
    EXPECT_LE(std::abs(best - t), 4) << t;
  }
}

TEST(Data, RopeOutliersRotate) {
  const HostTensor key = make("rope").key;
  for (std::int64_t t = 0; t < 512; t += 37) {
    const double radius = std::hypot(numbers(key, 0, t)[0], numbers(key, 0, t)[32]);
    EXPECT_NEAR(radius, 10, 4);
  }
  EXPECT_NEAR(channel_mean(key, 0, 0), 0, 1);  // centring does not remove them
}

TEST(Data, NamesAreListedWhenOneIsUnknown) {
  EXPECT_EQ(distribution_names("all").size(), distributions().size());
  EXPECT_EQ(distribution_names("sink,normal"), (std::vector<std::string>{"sink", "normal"}));
  try {
    distribution_names("normal,gauss");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("'gauss'"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("value-bias"), std::string::npos);
  }
}

}  // namespace
}  // namespace chitu::cli
