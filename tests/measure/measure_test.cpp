// SPDX-License-Identifier: Apache-2.0
// Samples of query rows give what whole calls give, so that tables of long sequences can be trusted.
#include "cli/commands/options.h"
#include "cli/measure/results.h"
#include "cli/words.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>

#include "common/numbers.h"

namespace chitu::cli {
namespace {

Workload workload(std::int64_t tokens, const Window& window, std::string_view data = "sink") {
  Workload w{.data = std::string(data), .window = window, .threads = 1};
  w.memory = generate(data, {1, 4, tokens, 24}, {1, 2, tokens, 24}, DType::f32, 3);
  w.query = w.memory.query.tensor;
  w.key = w.memory.key.tensor;
  w.value = w.memory.value.tensor;
  return w;
}

bool same_rows(const Tensor& a, const Tensor& b) {
  for (std::int64_t h = 0; h < a.shape[1]; ++h)
    for (std::int64_t t = 0; t < a.shape[2]; ++t)
      if (std::memcmp(row(a, 0, h, t), row(b, 0, h, t), static_cast<std::size_t>(a.shape[3]) * 4) != 0) return false;
  return true;
}

TEST(Rows, SpreadOverTheWholeSequenceWithoutOverlap) {
  for (const std::int64_t queries : {1, 31, 100, 4096, 100000})
    for (const std::int64_t wanted : {1, 8, 32, 70, 257, 5000}) {
      const RowRuns runs = spread_rows(queries, wanted);
      std::int64_t end = 0;
      for (const RowRun& run : runs) {
        EXPECT_GE(run.first, end);
        EXPECT_GE(run.count, 1);
        end = run.first + run.count;
      }
      EXPECT_EQ(end, queries);
      EXPECT_LE(total(runs), wanted);
      EXPECT_GT(total(runs), std::min(wanted, queries) - 32);
      EXPECT_TRUE(runs.size() == 1 || runs.front().first == 0);
    }
}

TEST(Rows, LastOnesEndTheSequence) {
  EXPECT_EQ(last_rows(100, 30).front().first, 70);
  EXPECT_EQ(last_rows(100, 300).front().count, 100);
}

TEST(Pairs, AreThoseThatTheMaskShows) {
  for (const Window& window : {everything, causal, Window{5, 0}, Window{3, 9}}) {
    const Workload w = workload(50, window);
    std::int64_t whole = 0, part = 0;
    for (std::int64_t q = 0; q < 50; ++q)
      for (std::int64_t k = 0; k < 50; ++k) {
        const bool seen = q - k <= window.left && k - q <= window.right;
        whole += 4 * seen;
        part += 4 * (seen && q >= 10 && q < 17);
      }
    EXPECT_EQ(w.pairs(), whole);
    EXPECT_EQ(w.pairs(10, 7), part);
  }
}

class Masks : public testing::TestWithParam<Window> {};

TEST_P(Masks, TruthOfSomeRowsIsTheTruthOfAll) {
  const Workload w = workload(301, GetParam());
  const Truth all = truth_of(w, spread_rows(301, 301)), some = truth_of(w, spread_rows(301, 100));
  ASSERT_GT(some.runs.size(), 1u);
  std::int64_t at = 0;
  for (const RowRun& run : some.runs) {
    EXPECT_TRUE(same_rows(rows_of(some.out.tensor, {at, run.count}), rows_of(all.out.tensor, run)));
    EXPECT_TRUE(same_rows(rows_of(some.lse.tensor, {at, run.count}), rows_of(all.lse.tensor, run)));
    at += run.count;
  }
}

// Sampled methods are timed and compared on rows of a quantised query: bit for bit what the whole call gives.
TEST_P(Masks, RowsOfAQuantisedQueryGiveTheRowsOfAWholeCall) {
  const Workload w = workload(450, GetParam());
  for (const Method& method : methods) {
    const HostTensor out = allocate(DType::f32, w.query.shape), part = allocate(DType::f32, w.query.shape);
    const HostTensor lse = allocate(DType::f32, {1, 4, 450, 1}), part_lse = allocate(DType::f32, {1, 4, 450, 1});
    attention(w.query, w.key, w.value, {out.tensor, lse.tensor}, {.recipe = method.recipe, .window = w.window, .threads = 1});
    const Quantized key = quantize(w.key, Role::key, method.recipe), value = quantize(w.value, Role::value, method.recipe);
    const Quantized query = quantize(w.query, Role::query, method.recipe, {.keys = &key});
    for (const RowRun& run : {RowRun{0, 128}, RowRun{256, 128}, RowRun{384, 66}}) {
      attention(rows_of(query, run), key, value, {rows_of(part.tensor, run), rows_of(part_lse.tensor, run)},
                {.recipe = method.recipe, .window = w.window, .query_positions = Positions{run.first, 1}, .threads = 1});
      EXPECT_TRUE(same_rows(rows_of(part.tensor, run), rows_of(out.tensor, run))) << method.name << " " << run.first;
      EXPECT_TRUE(same_rows(rows_of(part_lse.tensor, run), rows_of(lse.tensor, run))) << method.name << " " << run.first;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Masks, testing::Values(everything, causal, Window{100, 0}));

TEST(Rows, KeepTheirTokensOfNanOnly) {
  Workload w = workload(300, everything);
  reinterpret_cast<float*>(row(w.query, 0, 1, 200))[3] = std::nanf("");
  const Quantized query = quantize(w.query, Role::query, recipes::chitu);
  EXPECT_TRUE(rows_of(query, {0, 128}).nonfinite.empty());
  const Quantized part = rows_of(query, {128, 128});
  ASSERT_EQ(part.nonfinite.size(), 1u);
  EXPECT_EQ(part.nonfinite[0].token, 72);
}

std::vector<Measurement> measured(const Workload& w, const Truth& truth, const MeasureSettings& settings) {
  const std::vector<const Method*> all = methods_of("all");
  Progress progress(1);
  return measure(w, all, truth, settings, progress, 1);
}

void expect_same_errors(const Errors& a, const Errors& b) {
  EXPECT_EQ(a.relative_l1, b.relative_l1);
  EXPECT_EQ(a.max_diff, b.max_diff);
  EXPECT_EQ(a.lse_mean_diff, b.lse_mean_diff);
  EXPECT_EQ(a.worst_row.query, b.worst_row.query);
}

TEST(Measure, SampledRowsHaveTheErrorsOfTheWholeCall) {
  const Workload w = workload(3200, causal, "normal");
  const Truth truth = truth_of(w, spread_rows(3200, 64));
  const auto whole = measured(w, truth, {.runs = 1, .sample_above = 1e9}), sampled = measured(w, truth, {.runs = 1, .sample_above = 0});
  ASSERT_EQ(whole.size(), methods.size());
  for (std::size_t m = 0; m < whole.size(); ++m) {
    EXPECT_FALSE(whole[m].sampled_rows.has_value());
    ASSERT_TRUE(sampled[m].sampled_rows.has_value());
    EXPECT_EQ(*sampled[m].sampled_rows, 768);
    expect_same_errors(whole[m].errors, sampled[m].errors);
    EXPECT_GT(sampled[m].attention.median, 0);
    EXPECT_TRUE(std::isfinite(sampled[m].total.median));
    EXPECT_GE(sampled[m].total.median, sampled[m].attention.median);
  }
}

TEST(Measure, ErrorsOfAllRowsAreThoseOfTheMethod) {
  const Workload w = workload(200, causal);
  const Truth truth = truth_of(w, spread_rows(200, 200));
  const auto all = measured(w, truth, {.runs = 3, .in_a_row = 2, .rest_ms = 1});
  for (const Measurement& m : all) {
    EXPECT_EQ(m.runs, 3);
    const HostTensor out = allocate(DType::f32, w.query.shape), lse = allocate(DType::f32, {1, 4, 200, 1});
    attention(w.query, w.key, w.value, {out.tensor, lse.tensor}, {.recipe = m.method->recipe, .window = causal, .threads = 1});
    double difference = 0, size = 0;
    for (std::int64_t i = 0; i < 4 * 200 * 24; ++i) {
      const double o = static_cast<float*>(out.tensor.data)[i], t = static_cast<float*>(truth.out.tensor.data)[i];
      difference += std::fabs(o - t);
      size += std::fabs(t);
    }
    EXPECT_NEAR(m.errors.relative_l1, difference / size, 1e-9) << m.method->name;
    EXPECT_LE(m.total.min, m.total.median);
    EXPECT_LE(m.total.median, m.total.max);
  }
  EXPECT_LT(all[0].errors.relative_l1, 1e-5);  // exact
}

TEST(Measure, RestsBeforeEachTurn) {
  const Workload w = workload(16, causal);
  const Truth truth = truth_of(w, spread_rows(16, 16));
  const auto elapsed = [&](int rest_ms) {
    const auto start = std::chrono::steady_clock::now();
    measured(w, truth, {.runs = 3, .in_a_row = 2, .rest_ms = rest_ms});
    return std::chrono::steady_clock::now() - start;
  };
  const auto rests = std::chrono::milliseconds(100) * 2 * methods.size();  // two turns of each method
  EXPECT_LT(elapsed(0), rests);
  EXPECT_GE(elapsed(100), rests);
}

TEST(Measure, TruthStaysAffordable) {
  EXPECT_EQ(affordable_rows(workload(1000, everything)), 1000);
  Workload w = workload(1, everything);
  w.query.shape[2] = w.key.shape[2] = w.value.shape[2] = 1 << 20;  // only counted, never read
  const std::int64_t rows = affordable_rows(w);
  EXPECT_GE(rows, 8);
  EXPECT_LT(rows, 1000);
}

TEST(Truth, SaysWhatIsNotFinite) {
  Workload w = workload(20, everything);
  EXPECT_EQ(left_out_text(truth_of(w, {{0, 20}})), "");
  reinterpret_cast<float*>(row(w.query, 0, 1, 7))[3] = std::nanf("");
  const Truth some = truth_of(w, {{0, 20}});
  EXPECT_EQ(some.not_finite, 24);
  EXPECT_EQ(some.not_finite_rows, 1);
  EXPECT_EQ(nothing_compared(some), "");
  EXPECT_NE(left_out_text(some).find("24 numbers not finite in the truth, in 1 of 80 rows"), std::string::npos) << left_out_text(some);
  const Truth none = truth_of(w, {{3, 0}});
  EXPECT_EQ(nothing_compared(none), "there are no query rows");
  for (std::int64_t h = 0; h < 2; ++h)
    for (std::int64_t c = 0; c < 24; ++c) reinterpret_cast<float*>(row(w.key, 0, h, 0))[c] = std::nanf("");
  const Truth all = truth_of(w, {{0, 20}});
  EXPECT_EQ(all.not_finite_rows, 80);
  EXPECT_EQ(nothing_compared(all), "no number of the truth is finite");
  for (const Measurement& m : measured(w, all, {.runs = 1})) EXPECT_TRUE(std::isnan(m.errors.relative_l1)) << m.method->name;
}

TEST(Runs, ClaimNoMoreThanHappens) {
  const auto text = [](const MeasureSettings& settings, Device device = Device::cpu) { return runs_text(settings, device); };
  EXPECT_EQ(text({}), "5 runs");
  EXPECT_EQ(text({.runs = 1}), "1 run");
  EXPECT_EQ(text({.runs = 6, .in_a_row = 3}), "6 runs, 3 in a row");
  EXPECT_EQ(text({.runs = 5, .in_a_row = 3, .rest_ms = 7}), "5 runs, up to 3 in a row after 7 ms of rest");
  EXPECT_EQ(text({.in_a_row = 9}), "5 runs, 5 in a row");
  EXPECT_NE(text({.in_a_row = 99}, Device::cuda).find("3 to 31 runs (as many as take about a second), up to 31 in a row"),
            std::string::npos);
  EXPECT_THROW(check_runs({.runs = 2, .in_a_row = 3}), Error);
  check_runs({.runs = 3, .in_a_row = 3});
  check_runs({.in_a_row = 9});
}

TEST(Words, WindowAndCausal) {
  EXPECT_EQ(window_of(false, ""), everything);
  EXPECT_EQ(window_of(true, ""), causal);
  EXPECT_EQ(window_of(true, "7,-1"), (Window{7, 0}));
  EXPECT_EQ(window_of(false, "7,2"), (Window{7, 2}));
  EXPECT_THROW(window_of(true, "7,2"), Error);
}

}  // namespace
}  // namespace chitu::cli
