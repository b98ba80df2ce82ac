// SPDX-License-Identifier: Apache-2.0
// Tables, CSV, the plot and the recommendation.
#include "cli/measure/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/commands/methods_page.h"
#include "cli/measure/plot.h"
#include "cli/measure/recommend.h"

namespace chitu::cli {
namespace {

TEST(Report, MarkdownColumnsAreAligned) {
  const Table table{.header = {"method", "ms"}, .rows = {{"exact", "1.25"}, {"int8-half", "1234"}}};
  EXPECT_EQ(table.markdown(),
            "| method    |   ms |\n"
            "| --------- | ---: |\n"
            "| exact     | 1.25 |\n"
            "| int8-half | 1234 |\n");
}

TEST(Report, CsvHasAHeaderAndQuotesWhatNeedsIt) {
  const Json rows =
      Json::array({{{"method", "a,b"}, {"ms", 1.5}, {"causal", true}}, {{"method", "say \"x\""}, {"ms", nullptr}, {"causal", false}}});
  EXPECT_EQ(csv(rows), "method,ms,causal\n\"a,b\",1.5,true\n\"say \"\"x\"\"\",,false\n");
  EXPECT_EQ(csv(Json::array()), "");
}

TEST(Report, NumbersKeepWhatMatters) {
  EXPECT_EQ(milliseconds(1.234), "1.23");
  EXPECT_EQ(milliseconds(123.45), "123.5");
  EXPECT_EQ(milliseconds(12345.6), "12346");
  EXPECT_EQ(relative(.01694), "0.0169");
  EXPECT_EQ(relative(1.2e-6), "1e-06");
  EXPECT_EQ(relative(0), "0.0000");
  EXPECT_EQ(relative(unknown), "-");
  EXPECT_EQ(scientific(unknown), "-");
  EXPECT_EQ(json_number(.5), .5);
  EXPECT_TRUE(json_number(unknown).is_null());
  EXPECT_EQ(json_number(std::numeric_limits<double>::infinity()), "inf");  // as null it would vanish
}

std::vector<Measurement> measured(std::initializer_list<std::pair<double, double>> l1_and_ms) {
  std::vector<Measurement> result;
  for (const auto& [l1, ms] : l1_and_ms) {
    Measurement m{.method = &methods[result.size()]};
    m.errors.relative_l1 = l1;
    m.total = {ms, ms, ms};
    result.push_back(m);
  }
  return result;
}

class Recommendation : public testing::Test {
 protected:
  const std::vector<std::string> data_{"normal", "sink"};
  // The third is fastest on `normal`, but wrong on `sink`.
  const std::vector<std::vector<Measurement>> measurements_{measured({{1e-6, 10}, {.01, 5}, {.015, 2}}),
                                                            measured({{1e-6, 10}, {.02, 5}, {.3, 2}})};
  const std::vector<Candidate> candidates_ = candidates_of(data_, measurements_);
};

TEST_F(Recommendation, JudgesByTheWorstDataAndAllTheTime) {
  ASSERT_EQ(candidates_.size(), 3u);
  EXPECT_EQ(candidates_[2].relative_l1, .3);
  EXPECT_EQ(candidates_[2].worst_data, "sink");
  EXPECT_EQ(candidates_[1].total_ms, 10);
}

TEST_F(Recommendation, IsTheFastestWithinTheBound) {
  EXPECT_EQ(recommend(candidates_, .5)->method, &methods[2]);
  EXPECT_EQ(recommend(candidates_, .02)->method, &methods[1]);  // at the bound is within
  EXPECT_EQ(recommend(candidates_, .019)->method, &methods[0]);
  EXPECT_FALSE(recommend(candidates_, 1e-7).has_value());
}

TEST_F(Recommendation, NeverTakesAMethodThatGaveNan) {
  auto candidates = candidates_;
  for (Candidate& c : candidates) c.relative_l1 = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(recommend(candidates, .5).has_value());
}

TEST_F(Recommendation, NeverTakesAMethodOfWhichNothingWasComparedOnSomeData) {
  for (const std::size_t d : {0, 1}) {
    auto measurements = measurements_;
    measurements[d][1].errors = {};
    const auto candidates = candidates_of(data_, measurements);
    EXPECT_TRUE(std::isnan(candidates[1].relative_l1)) << d;
    EXPECT_EQ(recommend(candidates, .02)->method, &methods[0]) << d;
  }
}

std::size_t occurrences(const std::string& text, std::string_view part) {
  std::size_t n = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++n;
  return n;
}

TEST(Plot, HasADotForEachMethodAndDataSet) {
  const std::vector<std::string> names{"exact", "chitu"};
  const std::vector<PlotRow> rows{{"normal", {1e-6, .017}}, {"<sink & co>", {0, std::numeric_limits<double>::infinity()}}};
  const std::string svg = accuracy_plot(names, rows, .02);
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_EQ(occurrences(svg, "<circle"), 2 + 4u);
  EXPECT_EQ(occurrences(svg, "&lt;sink &amp; co&gt;"), 3u);  // the row and two dots
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(occurrences(svg, "cx=\"inf\""), 0u);
}

TEST(Plot, HasNoDotWhereNothingWasCompared) {
  const std::vector<std::string> names{"exact", "chitu"};
  const std::vector<PlotRow> rows{{"normal", {1e-6, unknown}}};
  EXPECT_EQ(occurrences(accuracy_plot(names, rows, .02), "<circle"), 2 + 1u);
}

TEST(MethodsPage, NamesEveryMethodAndNothingOfTheMachine) {
  const std::string page = methods_page();
  for (const Method& m : methods) EXPECT_EQ(occurrences(page, "| `" + std::string(m.name) + "`"), 3u) << m.name;
  for (const KernelInfo& k : kernels()) EXPECT_EQ(occurrences(page, k.name) > 0, k.device == Device::cpu) << k.name;
  EXPECT_EQ(page.find("can run"), std::string::npos);
}

}  // namespace
}  // namespace chitu::cli
