// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/measure.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "cli/measure/gpu.h"
#include "cli/measure/meter.h"
#include "cli/measure/report.h"
#include "common/numbers.h"

namespace chitu::cli {
namespace {

// Products of a query's and a key's channels that double precision takes in about 3 s on two cores.
constexpr double affordable_products = 0x1p32;

// On a GPU: calls of each method are timed for about so long, but in no fewer and no more runs.
constexpr double gpu_milliseconds = 1000;
constexpr int least_gpu_runs = 3, most_gpu_runs = 31;

// call_ms: of one call of each method that runs.
int runs_of(const MeasureSettings& settings, Device device, const std::vector<double>& call_ms) {
  if (settings.runs) return *settings.runs;
  if (device == Device::cpu) return settings.cpu_runs;
  const double of_a_run = 2 * std::accumulate(call_ms.begin(), call_ms.end(), 0.);  // in two steps, and whole
  const double runs = gpu_milliseconds * static_cast<double>(call_ms.size()) / std::max(of_a_run, 1e-3);
  return static_cast<int>(std::clamp<double>(runs, least_gpu_runs, most_gpu_runs));
}

std::string nothing_runs(const std::vector<Measurement>& refused) {
  std::string reasons;
  for (const Measurement& m : refused) reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", m.method->name, m.refused);
  return "the GPU runs none of these methods: " + reasons;
}

void count_not_finite(Truth& truth) {
  const Shape& s = truth.out.tensor.shape;
  for (std::int64_t b = 0; b < s[0]; ++b)
    for (std::int64_t h = 0; h < s[1]; ++h)
      for (std::int64_t r = 0; r < s[2]; ++r) {
        const auto* x = reinterpret_cast<const float*>(row(truth.out.tensor, b, h, r));
        const auto spoilt = std::count_if(x, x + s[3], [](float number) { return !std::isfinite(number); });
        truth.not_finite += spoilt;
        truth.not_finite_rows += spoilt > 0;
      }
}

std::int64_t rows_of_all_heads(const Truth& truth) {
  const Shape& s = truth.out.tensor.shape;
  return s[0] * s[1] * s[2];
}

}  // namespace

RowRuns last_rows(std::int64_t queries, std::int64_t rows) {
  const std::int64_t count = std::min(rows, queries);
  return {{queries - count, count}};
}

RowRuns spread_rows(std::int64_t queries, std::int64_t rows) {
  if (rows >= queries) return {{0, queries}};
  const std::int64_t length = std::min<std::int64_t>(rows, 32), count = rows / length;
  RowRuns runs;
  for (std::int64_t i = 0; i < count; ++i) runs.push_back({count == 1 ? queries - length : i * (queries - length) / (count - 1), length});
  return runs;
}

std::int64_t affordable_rows(const Workload& w) {
  const std::int64_t queries = w.query.shape[2];
  const double products = static_cast<double>(w.pairs() * w.query.shape[3]);
  if (products <= affordable_products) return queries;
  return std::max<std::int64_t>(8, static_cast<std::int64_t>(static_cast<double>(queries) * affordable_products / products));
}

std::int64_t total(const RowRuns& runs) {
  std::int64_t sum = 0;
  for (const RowRun& run : runs) sum += run.count;
  return sum;
}

Truth truth_of(const Workload& w, RowRuns runs) {
  const Shape& q = w.query.shape;
  const std::int64_t rows = total(runs);
  Truth truth{
      .runs = std::move(runs), .out = allocate(DType::f32, {q[0], q[1], rows, q[3]}), .lse = allocate(DType::f32, {q[0], q[1], rows, 1})};
  std::int64_t at = 0;
  for (const RowRun& run : truth.runs) {
    const RowRun part{at, run.count};
    attention(rows_of(w.query, run), w.key, w.value, {rows_of(truth.out.tensor, part), rows_of(truth.lse.tensor, part)},
              {.recipe = recipes::exact,
               .window = w.window,
               .query_positions = Positions{w.key.shape[2] - q[2] + run.first, 1},
               .threads = w.threads,
               .kernel = "cpu.reference"});
    at += run.count;
  }
  count_not_finite(truth);
  return truth;
}

std::string nothing_compared(const Truth& truth) {
  const std::int64_t rows = rows_of_all_heads(truth);
  if (rows == 0) return "there are no query rows";
  return truth.not_finite == rows * truth.out.tensor.shape[3] ? "no number of the truth is finite" : "";
}

std::string left_out_text(const Truth& truth) {
  if (const std::string why = nothing_compared(truth); !why.empty()) return fmt::format("\nNothing was compared: {}.\n", why);
  if (truth.not_finite == 0) return "";
  return fmt::format(
      "\nLeft out: {} not finite in the truth, in {} of {} of all heads. A method that has anything else there has an infinite "
      "difference.\n",
      count(truth.not_finite, "number"), truth.not_finite_rows, count(rows_of_all_heads(truth), "row"));
}

Tensor rows_of(Tensor t, const RowRun& run) {
  if (!t.data) return t;
  t.data = static_cast<std::byte*>(t.data) + run.first * t.stride[2] * bytes(t.type);
  t.shape[2] = run.count;
  return t;
}

Quantized rows_of(const Quantized& query, const RowRun& run) {
  Quantized part = query;
  part.values = rows_of(query.values, run);
  part.correction = rows_of(query.correction, run);
  if (query.quant.scaling == Scaling::tokens)
    part.scales = rows_of(query.scales, {query.quant.groups.count(run.first), query.quant.groups.count(run.count)});
  part.nonfinite.clear();
  for (NonFinite n : query.nonfinite) {
    n.token -= run.first;
    if (n.token >= 0 && n.token < run.count) part.nonfinite.push_back(std::move(n));
  }
  return part;
}

Errors compare(const Output& output, const Truth& truth) {
  Comparison comparison(truth.out.tensor.shape[0], truth.out.tensor.shape[1]);
  std::int64_t at = 0;
  for (const RowRun& run : truth.runs) {
    const RowRun part{at, run.count};
    comparison.add(rows_of(output.out, run), rows_of(output.lse, run), rows_of(truth.out.tensor, part), rows_of(truth.lse.tensor, part),
                   run.first);
    at += run.count;
  }
  return comparison.errors();
}

void require_unchanged(const Measurement& first, const Output& output, const Truth& truth) {
  const double last = compare(output, truth).mean_diff, before = first.errors.mean_diff;
  if (last != before && !(std::isnan(last) && std::isnan(before)))  // unknown: nothing was compared
    throw Error(ErrorCode::internal, fmt::format("{} gave another output in its last run than in its first", first.method->name));
}

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

double quantise_bytes(const Workload& w, const Method& method, bool with_queries) {
  const Recipe& recipe = method.recipe;
  const auto moved = [](const Tensor& t, const Quant& q) {
    const double elements = static_cast<double>(t.shape[0] * t.shape[1]) * static_cast<double>(t.shape[2] * t.shape[3]);
    return q.scaling == Scaling::none ? 0 : elements * (bytes(t.type) + bytes(q.type));
  };
  return (with_queries ? moved(w.query, recipe.query) : 0) + moved(w.key, recipe.key) + moved(w.value, recipe.value);
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

void check_runs(const MeasureSettings& settings) {
  require(!settings.runs || settings.in_a_row <= *settings.runs, "--in-a-row is ", settings.in_a_row, ", more than --runs ",
          settings.runs.value_or(0));
  require(settings.sample_above >= 0, "--sample-above is ", settings.sample_above, "; it must be 0 seconds or more");
}

std::string refused_text(std::span<const Measurement> measurements) {
  std::string text;
  for (const Measurement& m : measurements)
    if (!m.refused.empty()) text += fmt::format("{}- {}: refused: {}\n", text.empty() ? "\n" : "", m.method->name, m.refused);
  return text;
}

void add_runs(CLI::App& command, MeasureSettings& settings) {
  command
      .add_option("--runs", settings.runs,
                  fmt::format("Timed runs of each method; unless given {}, on a GPU {} to {}: as many as take about a second",
                              settings.cpu_runs, least_gpu_runs, most_gpu_runs))
      ->check(CLI::Range(1, 1000));
  command
      .add_option("--in-a-row", settings.in_a_row,
                  "Timed runs of a method before it is another's turn: a GPU that another method has driven to its power limit is slower "
                  "for some calls")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command.add_option("--rest", settings.rest_ms, "Milliseconds before each turn in which the device does nothing, against the same")
      ->capture_default_str()
      ->check(CLI::Range(0, 60000));
}

std::vector<Measurement> measure(const Workload& w, std::span<const Method* const> methods, const Truth& truth,
                                 const MeasureSettings& settings, Progress& progress, double work) {
  const auto show = [&](const Method& method) { progress.show(fmt::format("{}, {} tokens, {}", w.data, w.query.shape[2], method.name)); };
  Meters meters = w.device == Device::cuda ? gpu::meters(w, methods, truth) : cpu_meters(w, methods, truth, settings);
  const double warm_up_work = work / (settings.runs.value_or(settings.cpu_runs) + 1);

  std::vector<Measurement> results;
  std::vector<double> call_ms;
  for (std::size_t i = 0; i < meters.size(); ++i) {
    show(*methods[i]);
    results.push_back({.method = methods[i]});
    try {
      call_ms.push_back(meters[i]->warm_up());
    } catch (const Error& error) {  // a GPU's kernels may take some methods only: the others are measured all the same
      if (w.device == Device::cpu || error.code() == ErrorCode::bad_argument || error.code() == ErrorCode::internal) throw;
      results.back().refused = error.what();
      meters[i].reset();
    }
    progress.advance(warm_up_work / static_cast<double>(meters.size()));
  }
  if (call_ms.empty()) throw Error(ErrorCode::unsupported, nothing_runs(results));
  const int runs = runs_of(settings, w.device, call_ms);
  for (int done = 0, row; done < runs; done += row) {
    row = std::min(settings.in_a_row, runs - done);
    for (std::size_t i = 0; i < meters.size(); ++i) {
      if (!meters[i]) continue;
      show(*methods[i]);
      if (settings.rest_ms > 0) meters[i]->rest(std::chrono::milliseconds(settings.rest_ms));
      for (int run = 0; run < row; ++run) meters[i]->run();
      progress.advance((work - warm_up_work) * row / (static_cast<double>(call_ms.size()) * runs));
      if (done + row < runs) continue;
      results[i] = meters[i]->finish();
      results[i].runs = runs;
    }
  }
  return results;
}

}  // namespace chitu::cli
