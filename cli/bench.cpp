// SPDX-License-Identifier: Apache-2.0
// chitu bench: speed and accuracy of the methods at several lengths.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/machine.h"
#include "cli/measure.h"
#include "cli/peaks.h"
#include "cli/report.h"
#include "cli/words.h"

namespace chitu::cli {
namespace {

struct BenchFlags {
  WorkloadFlags workload;
  std::string lengths, rows, csv, json;
  MeasureSettings settings;
};

// For the progress bar; a file of unknown length is the only one.
double work_at(std::int64_t tokens) { return tokens == 0 ? 1 : static_cast<double>(tokens) * static_cast<double>(tokens); }

std::vector<std::int64_t> lengths_of(const BenchFlags& flags) {
  if (flags.lengths.empty()) return flags.workload.input.empty() ? std::vector<std::int64_t>{1024, 4096} : std::vector<std::int64_t>{0};
  std::vector<std::int64_t> lengths;
  for (const std::string& word : split_list(flags.lengths)) {
    lengths.push_back(parse_count(word));
    require(lengths.back() >= 1, "--lengths has ", word, "; a length is 1 or more");
  }
  return lengths;
}

// `exact` is what the others are compared with: measured even if not asked for.
std::vector<const Method*> methods_with_exact(const std::string& list) {
  std::vector<const Method*> result = methods_of(list);
  const Method* exact = &find_method("exact");
  if (std::find(result.begin(), result.end(), exact) == result.end()) result.insert(result.begin(), exact);
  return result;
}

// Whether products of operands that stay bf16 are computed in bf16.
bool has_bf16_kernel(std::string_view asked) {
  const auto all = kernels();
  return std::any_of(all.begin(), all.end(), [&](const KernelInfo& k) {
    return k.available && k.device == Device::cpu && k.scores == "bf16" && (asked.empty() || asked == k.name);
  });
}

// Operations a second (in 10^12) that this machine could do at most, each product in the arithmetic that its kernel uses.
double peak_of(const Workload& w, const Recipe& recipe, const Peaks& peaks) {
  const bool bf16 = w.query.type == DType::bf16 && peaks.bf16_tflops > 0 && has_bf16_kernel(w.kernel);
  const auto peak = [&](const Quant& q) {
    return q.type == DType::i8 ? peaks.int8_tops : bf16 && q.scaling == Scaling::none ? peaks.bf16_tflops : peaks.fp32_tflops;
  };
  return 2 / (1 / peak(recipe.key) + 1 / peak(recipe.value));
}

struct Row {
  const Measurement& measurement;
  double tflops, peak_percent, speedup;
};

std::vector<Row> rows_of(const Workload& w, const std::vector<Measurement>& measurements, const Peaks& peaks) {
  const auto exact =
      std::find_if(measurements.begin(), measurements.end(), [](const auto& m) { return m.method->recipe == recipes::exact; });
  std::vector<Row> rows;
  for (const Measurement& m : measurements) {
    const double tflops = w.operations() / (m.total.median * 1e9);
    rows.push_back({m, tflops, 100 * tflops / peak_of(w, m.method->recipe, peaks), exact->total.median / m.total.median});
  }
  return rows;
}

Json json_of(const Workload& w, const Truth& truth, const Row& row, int runs) {
  const Measurement& m = row.measurement;
  const Errors& e = m.errors;
  const Shape& q = w.query.shape;
  Json window;
  if (w.window != everything && w.window != causal) window = window_text(w.window);
  return {{"method", m.method->name},
          {"data", w.data},
          {"dtype", name(w.query.type)},
          {"batch", q[0]},
          {"heads", q[1]},
          {"kv_heads", w.key.shape[1]},
          {"dim", q[3]},
          {"tokens", q[2]},
          {"causal", w.window.right == 0},
          {"window", window},
          {"quantise_ms", m.quantise.median},
          {"quantise_ms_min", m.quantise.min},
          {"quantise_ms_max", m.quantise.max},
          {"attention_ms", m.attention.median},
          {"attention_ms_min", m.attention.min},
          {"attention_ms_max", m.attention.max},
          {"total_ms", m.total.median},
          {"total_ms_min", m.total.min},
          {"total_ms_max", m.total.max},
          {"runs", runs},
          {"sampled_rows", m.sampled_rows ? Json(*m.sampled_rows) : Json()},
          {"tflops", row.tflops},
          {"peak_percent", row.peak_percent},
          {"speedup", row.speedup},
          {"max_diff", e.max_diff},
          {"mean_diff", e.mean_diff},
          {"rel_l1", e.relative_l1},
          {"lse_max_diff", e.lse_max_diff},
          {"lse_mean_diff", e.lse_mean_diff},
          {"compared_rows", total(truth.runs)}};
}

Table table_of(const Workload& w, const std::vector<Row>& rows) {
  Table table{.header = {"method", "max diff", "mean diff", "rel L1", "LSE max", "LSE mean", "quantise ms", "attention ms", "total ms",
                         "min ... max", "TFLOPS", "of peak", "speed-up", "timed rows"},
              .rows = {}};
  for (const Row& r : rows) {
    const Measurement& m = r.measurement;
    const Errors& e = m.errors;
    table.rows.push_back({std::string(m.method->name), scientific(e.max_diff), scientific(e.mean_diff), relative(e.relative_l1),
                          scientific(e.lse_max_diff), scientific(e.lse_mean_diff), milliseconds(m.quantise.median),
                          milliseconds(m.attention.median), milliseconds(m.total.median),
                          milliseconds(m.total.min) + " ... " + milliseconds(m.total.max), fmt::format("{:.3f}", r.tflops),
                          fmt::format("{:.0f} %", r.peak_percent), fmt::format("{:.2f}x", r.speedup),
                          m.sampled_rows ? fmt::format("{} of {}", *m.sampled_rows, w.query.shape[2]) : "all"});
  }
  return table;
}

void print_heading(const BenchFlags& flags, const Peaks& peaks, int threads) {
  fmt::print(
      "Machine: {}\n"
      "Peaks ({}, same threads): fp32 multiply-add {:.3f} TFLOPS, int8 dot {:.3f} TOPS{}\n"
      "Times: median of {}, methods in turn after a warm-up; total is from the tensors as they came, quantisation included.\n"
      "TFLOPS: 4 x dim operations for each visible pair of query and key, over the total. Peak: of the arithmetic each product uses.\n"
      "Differences: to double precision, on the output in the type of the data.\n",
      machine_text(threads, flags.workload.kernel), peaks.instructions, peaks.fp32_tflops, peaks.int8_tops,
      peaks.bf16_tflops > 0 ? fmt::format(", bf16 dot {:.3f} TFLOPS", peaks.bf16_tflops) : "", count(flags.settings.runs, "run"));
}

void print_section(const Workload& w, const Truth& truth, const std::vector<Row>& rows) {
  const Shape& q = w.query.shape;
  fmt::print("\n## {}: {}, batch {}, {} ({} of keys), dim {}, {}, {}\n\n", w.data, count(q[2], "token"), q[0], count(q[1], "head"),
             w.key.shape[1], q[3], name(w.query.type), window_text(w.window));
  fmt::print("{}", table_of(w, rows).markdown());
  if (total(truth.runs) < q[2])
    fmt::print("\nDifferences on {} of {} query rows of each head, in {} spread over the sequence.\n", total(truth.runs), q[2],
               count(static_cast<std::int64_t>(truth.runs.size()), "run"));
  const bool sampled = std::any_of(rows.begin(), rows.end(), [](const Row& r) { return r.measurement.sampled_rows.has_value(); });
  if (sampled)
    fmt::print(
        "\nSampled: where timed rows are not all, attention was timed on so many query rows of each head, with all keys, and "
        "extrapolated by visible pairs; quantisation was timed in full.\n");
  std::fflush(stdout);
}

void bench(const BenchFlags& flags) {
  ReportFile csv_file(flags.csv), json_file(flags.json);
  const std::vector<const Method*> methods = methods_with_exact(flags.workload.method);
  const std::vector<std::int64_t> lengths = lengths_of(flags);
  const std::int64_t wanted_rows = flags.rows.empty() ? 0 : parse_count(flags.rows);
  require(flags.rows.empty() || wanted_rows >= 1, "--rows is 0; give 1 or more");
  const WorkloadSource source(flags.workload);
  const int threads = source.threads();
  const Peaks peaks = measure_peaks(threads);
  print_heading(flags, peaks, threads);

  double work = 0;
  for (const std::int64_t tokens : lengths) work += work_at(tokens) * static_cast<double>(source.data().size());
  Progress progress(work);
  Json rows_json = Json::array();
  for (const std::string& data : source.data())
    for (const std::int64_t tokens : lengths) {
      progress.show(data);
      const Workload w = source.make(data, tokens);
      require(w.query.shape[2] == w.key.shape[2], flags.workload.input, " has ", w.query.shape[2], " queries and ", w.key.shape[2],
              " keys; bench needs as many of both, give --lengths");
      const Truth truth = truth_of(w, spread_rows(w.query.shape[2], wanted_rows ? wanted_rows : affordable_rows(w)));
      const auto measurements = measure(w, methods, truth, flags.settings, progress, work_at(tokens));
      const auto rows = rows_of(w, measurements, peaks);
      progress.clear();
      print_section(w, truth, rows);
      for (const Row& row : rows) rows_json.push_back(json_of(w, truth, row, flags.settings.runs));
    }
  if (csv_file.wanted()) csv_file.write(csv(rows_json));
  if (!json_file.wanted()) return;
  const Json report{{"machine", machine_json(threads, flags.workload.kernel)},
                    {"peaks",
                     {{"fp32_tflops", peaks.fp32_tflops},
                      {"int8_tops", peaks.int8_tops},
                      {"bf16_tflops", peaks.bf16_tflops > 0 ? Json(peaks.bf16_tflops) : Json()},
                      {"instructions", peaks.instructions}}},
                    {"rows", rows_json}};
  json_file.write(report.dump(2) + "\n");
}

}  // namespace

void add_bench(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Speed and accuracy of the methods, quantisation included, against exact attention");
  flags->workload.add_to(*command);
  command->add_option("--lengths", flags->lengths, "Tokens: N,... like 512,4K,1M; 1K,4K for data, all of a file unless given");
  command->add_option("--runs", flags->settings.runs, "Timed runs of each method")->capture_default_str()->check(CLI::Range(1, 1000));
  command->add_option("--rows", flags->rows, "Query rows of a head compared with double precision; unless given, those of a few seconds");
  command
      ->add_option("--sample-above", flags->settings.sample_above,
                   "Seconds: a method whose call would take longer is timed on a sample of query rows, and the table says so")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command->add_option("--csv", flags->csv, "Write the rows here as well");
  command->add_option("--json", flags->json, "Write machine, peaks and rows here as well");
  command->callback([flags] { bench(*flags); });
}

}  // namespace chitu::cli
