// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/results.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace chitu::cli {

Json json_of(const Workload& w, const Truth& truth, const Measurement& m) {
  const Shape& q = w.query.shape;
  const Errors& e = m.errors;
  const auto known = [&](double x) { return m.refused.empty() ? json_number(x) : Json(); };
  return {{"method", m.method->name},
          {"data", w.data},
          {"dtype", name(w.query.type)},
          {"batch", q[0]},
          {"heads", q[1]},
          {"kv_heads", w.key.shape[1]},
          {"dim", q[3]},
          {"tokens", q[2]},
          {"keys", w.key.shape[2]},
          {"causal", w.window.right == 0},
          {"window", w.window == everything || w.window == causal ? Json() : Json(window_text(w.window))},
          {"device", w.device == Device::cuda ? "cuda" : "cpu"},
          {"refused", m.refused.empty() ? Json() : Json(m.refused)},
          {"runs", m.runs},
          {"sampled_rows", m.sampled_rows ? Json(*m.sampled_rows) : Json()},
          {"total_ms", known(m.total.median)},
          {"total_ms_min", known(m.total.min)},
          {"total_ms_max", known(m.total.max)},
          {"compared_rows", total(truth.runs)},
          {"not_finite_rows", truth.not_finite_rows},
          {"rel_l1", known(e.relative_l1)},
          {"max_diff", known(e.max_diff)},
          {"mean_diff", known(e.mean_diff)},
          {"lse_max_diff", known(e.lse_max_diff)},
          {"lse_mean_diff", known(e.lse_mean_diff)}};
}

std::string timed_rows(const Workload& w, const Measurement& m) {
  return m.sampled_rows ? fmt::format("{} of {}", *m.sampled_rows, w.query.shape[2]) : "all";
}

std::string runs_text(const MeasureSettings& settings, Device device) {
  const bool known = device == Device::cpu || settings.runs;
  const int runs = settings.runs.value_or(known ? settings.cpu_runs : most_gpu_runs), row = std::min(settings.in_a_row, runs);
  std::string text = known ? count(runs, "run") : fmt::format("{} to {} runs (as many as take about a second)", least_gpu_runs, runs);
  if (row > 1) text += fmt::format(", {}{} in a row", known && runs % row == 0 ? "" : "up to ", row);  // the last turn may be shorter
  if (settings.rest_ms > 0) text += fmt::format(" after {} ms of rest", settings.rest_ms);
  return text;
}

std::string refused_text(std::span<const Measurement> measurements) {
  std::string text;
  for (const Measurement& m : measurements)
    if (!m.refused.empty()) text += fmt::format("{}- {}: refused: {}\n", text.empty() ? "\n" : "", m.method->name, m.refused);
  return text;
}

std::string left_out_text(const Truth& truth) {
  if (const std::string why = nothing_compared(truth); !why.empty()) return fmt::format("\nNothing was compared: {}.\n", why);
  if (truth.not_finite == 0) return "";
  return fmt::format(
      "\nLeft out: {} not finite in the truth, in {} of {} of all heads. A method that has anything else there has an infinite "
      "difference.\n",
      count(truth.not_finite, "number"), truth.not_finite_rows, count(truth.rows_of_all_heads(), "row"));
}

}  // namespace chitu::cli
