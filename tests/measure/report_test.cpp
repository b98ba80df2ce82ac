// SPDX-License-Identifier: Apache-2.0
// Tables, CSV, the plot and the recommendation.
#include "cli/measure/report.h"

#include <gtest/gtest.h>

#include <algorithm>
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

// Checks what a browser needs to draw an SVG at all: each element that begins also ends, in its order, and there is no bare & or control
// character.
void expect_well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = 0; at < xml.size(); ++at) {
    if (xml[at] == '&') {
      const std::string entity = xml.substr(at, xml.find(';', at) - at);
      ASSERT_TRUE(entity == "&amp" || entity == "&lt" || entity == "&gt") << entity;
    }
    ASSERT_TRUE(static_cast<unsigned char>(xml[at]) >= 0x20 || xml[at] == '\n') << at;
    if (xml[at] != '<') continue;
    const std::size_t end = xml.find_first_of("<>", at + 1);
    ASSERT_TRUE(end != xml.npos && xml[end] == '>') << xml.substr(at, 40);
    const std::string tag = xml.substr(at + 1, end - at - 1);
    ASSERT_EQ(std::count(tag.begin(), tag.end(), '"') % 2, 0) << tag;
    if (tag.front() == '/') {
      ASSERT_TRUE(!open.empty() && open.back() == tag.substr(1)) << tag;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(tag.substr(0, tag.find(' ')));
    }
    at = end;
  }
  EXPECT_TRUE(open.empty());
}

const Caption caption{"a <machine> & its\tcompiler", "chitu accuracy --plot 'a b.svg'"};

TEST(Plot, HasADotForEachMethodAndDataSet) {
  const std::vector<const Method*> some{&find_method("exact"), &find_method("chitu")};
  const std::vector<AccuracyRow> rows{{"normal", {1e-6, .017}}, {"<sink & co>", {0, std::numeric_limits<double>::infinity()}}};
  const std::string svg = accuracy_plot(some, rows, .02, caption);
  expect_well_formed(svg);
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_EQ(occurrences(svg, "<circle"), 2 + 4u);
  EXPECT_EQ(occurrences(svg, "&lt;sink &amp; co&gt;"), 3u);  // the row and two dots
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(occurrences(svg, "cx=\"inf\""), 0u);
}

TEST(Plot, HasNoDotWhereNothingWasCompared) {
  const std::vector<const Method*> some{&find_method("exact"), &find_method("chitu")};
  const std::vector<AccuracyRow> rows{{"normal", {1e-6, unknown}}};
  EXPECT_EQ(occurrences(accuracy_plot(some, rows, .02, caption), "<circle"), 2 + 1u);
}

TEST(Plot, HasALineForEachMethodThatRan) {
  const Method &exact = find_method("exact"), &sage = find_method("sage"), &chitu = find_method("chitu");
  const std::int64_t lengths[] = {4096, 1000, 1 << 20};  // drawn from the shortest on
  const SpeedLine lines[] = {{&exact, {1, 1, 1}}, {&sage, {unknown, unknown, unknown}}, {&chitu, {1.5, .8, unknown}}};
  const std::string svg = speed_plot("normal & <causal>", lengths, lines, caption);
  expect_well_formed(svg);
  EXPECT_EQ(occurrences(svg, "<polyline"), 2u);
  EXPECT_EQ(occurrences(svg, "<circle"), 3 + 2 + 2u);  // the last two beside the names
  EXPECT_EQ(occurrences(svg, ">chitu</text>"), 1u);
  EXPECT_EQ(occurrences(svg, ">sage</text>"), 0u);
  EXPECT_EQ(occurrences(svg, "chitu, 1000 tokens: 0.80x"), 1u);
  for (const char* tick : {">1000<", ">4K<", ">1M<", ">1.5x<"}) EXPECT_EQ(occurrences(svg, tick), 1u) << tick;
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  const std::size_t line = svg.rfind("<polyline points=\""), first = svg.find('"', line) + 1;
  EXPECT_LT(std::stod(svg.substr(first)), std::stod(svg.substr(svg.find(' ', first)))) << "1000 tokens are left of 4096";
}

TEST(Plot, SaysHowItsNumbersCameAbout) {
  const std::vector<const Method*> some{&find_method("exact")};
  const std::vector<AccuracyRow> rows{{"normal", {1e-6}}};
  const std::string svg = accuracy_plot(some, rows, .02, {caption.machine, "chitu accuracy " + std::string(300, 'x') + " --causal"});
  expect_well_formed(svg);
  EXPECT_EQ(occurrences(svg, "a &lt;machine&gt; &amp; its?compiler"), 1u);
  EXPECT_EQ(occurrences(svg, ">chitu accuracy</text>"), 1u);  // a word longer than a line is broken
  EXPECT_EQ(occurrences(svg, "--causal</text>"), 1u);
}

TEST(MethodsPage, NamesEveryMethodAndNothingOfTheMachine) {
  const std::string page = methods_page();
  for (const Method& m : methods) EXPECT_EQ(occurrences(page, "| `" + std::string(m.name) + "`"), 3u) << m.name;
  for (const KernelInfo& k : kernels()) EXPECT_EQ(occurrences(page, k.name) > 0, k.device == Device::cpu) << k.name;
  EXPECT_EQ(page.find("can run"), std::string::npos);
}

}  // namespace
}  // namespace chitu::cli
