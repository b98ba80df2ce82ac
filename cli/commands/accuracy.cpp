// SPDX-License-Identifier: Apache-2.0
// chitu accuracy: how far each method is from double precision, on the user's tensors or on named distributions, and which is the
// fastest within a bound.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands/commands.h"
#include "cli/commands/options.h"
#include "cli/measure/machine.h"
#include "cli/measure/measure.h"
#include "cli/measure/plot.h"
#include "cli/measure/recommend.h"
#include "cli/measure/report.h"
#include "cli/measure/results.h"
#include "cli/words.h"

namespace chitu::cli {
namespace {

struct AccuracyFlags {
  WorkloadFlags workload{.data = "normal,outlier,rope,value-bias,sink,peaky,local", .heads = 2};
  std::string tokens, rows, plot, csv, json;
  std::optional<double> max_l1;
  MeasureSettings settings{.cpu_runs = 3};

  double bound() const { return max_l1.value_or(.02); }
};

constexpr int none_within = 1;  // exit status

// The rows to compare. With named data these are the last rows, which see all keys. Rows of a file may differ, so they are spread over the
// sequence.
RowRuns rows_for(const Workload& w, bool is_file, std::int64_t wanted) {
  const std::int64_t queries = w.query.shape[2];
  return is_file ? spread_rows(queries, wanted ? wanted : affordable_rows(w)) : last_rows(queries, wanted ? wanted : 256);
}

std::string head_text(const Place& p, std::int64_t batches) {
  return batches > 1 ? fmt::format("{}/{}", p.batch, p.head) : fmt::format("{}", p.head);
}

std::string place_text(const Place& p, std::int64_t batches) {
  if (std::isnan(p.relative_l1)) return "-";
  const std::string query = p.query >= 0 ? fmt::format(", query {}", p.query) : "";
  return fmt::format("{}{}: {}", head_text(p, batches), query, relative(p.relative_l1));
}

Table table_of(const Workload& w, const std::vector<Measurement>& measurements) {
  Table table{.header = {"method", "cosine", "rel L1", "RMSE", "max diff", "worst head", "worst row (head, query)", "LSE max", "LSE mean",
                         "total ms", "timed rows"},
              .rows = {}};
  for (const Measurement& m : measurements) {
    const Errors& e = m.errors;
    if (!m.refused.empty()) continue;
    table.rows.push_back({std::string(m.method->name), std::isnan(e.cosine) ? "-" : fmt::format("{:.6f}", e.cosine),
                          relative(e.relative_l1), scientific(e.rmse), scientific(e.max_diff), place_text(e.worst_head, w.query.shape[0]),
                          place_text(e.worst_row, w.query.shape[0]), scientific(e.lse_max_diff), scientific(e.lse_mean_diff),
                          milliseconds(m.total.median), timed_rows(w, m)});
  }
  return table;
}

// Heads in which another method is closer to the truth than `chitu` and takes no longer in all: "3: int8-half 0.0082, not 0.0251".
std::vector<std::string> closer_heads(const Workload& w, std::span<const Measurement> measurements) {
  const auto ours = std::find_if(measurements.begin(), measurements.end(), [](const Measurement& m) { return m.method->name == "chitu"; });
  if (ours == measurements.end() || !ours->refused.empty()) return {};
  std::vector<std::string> heads;
  for (std::size_t i = 0; i < ours->errors.heads.size(); ++i) {
    const Measurement* best = &*ours;
    for (const Measurement& m : measurements)
      if (m.refused.empty() && m.total.median <= ours->total.median && m.errors.heads[i].relative_l1 < best->errors.heads[i].relative_l1)
        best = &m;
    const Place &place = best->errors.heads[i], &chitu = ours->errors.heads[i];
    if (best == &*ours) continue;
    heads.push_back(fmt::format("{}: {} {}, not {}", head_text(place, w.query.shape[0]), best->method->name, relative(place.relative_l1),
                                relative(chitu.relative_l1)));
  }
  return heads;
}

Json row_of(const Workload& w, const Truth& truth, const Measurement& m) {
  const Errors& e = m.errors;
  const auto known = [&](double x) { return m.refused.empty() ? json_number(x) : Json(); };
  const auto place = [&](const Place& p, std::int64_t index) {
    return m.refused.empty() && !std::isnan(p.relative_l1) ? Json(index) : Json();
  };
  Json row = json_of(w, truth, m);
  row.update({{"cosine", known(e.cosine)},
              {"rmse", known(e.rmse)},
              {"worst_head", place(e.worst_head, e.worst_head.head)},
              {"worst_head_batch", place(e.worst_head, e.worst_head.batch)},
              {"worst_head_rel_l1", known(e.worst_head.relative_l1)},
              {"worst_row_query", place(e.worst_row, e.worst_row.query)},
              {"worst_row_head", place(e.worst_row, e.worst_row.head)},
              {"worst_row_batch", place(e.worst_row, e.worst_row.batch)},
              {"worst_row_rel_l1", known(e.worst_row.relative_l1)}});
  return row;
}

void print_section(const Workload& w, const Truth& truth, const std::vector<Measurement>& measurements) {
  const Shape& q = w.query.shape;
  const std::int64_t rows = total(truth.runs);
  const char* which = rows == q[2] ? "all" : truth.runs.size() == 1 ? "the last" : "spread";
  fmt::print("\n## {}: {}, {}, batch {}, {} ({} of keys), dim {}, {}, {}\n\n", w.data, count(q[2], "query row"),
             count(w.key.shape[2], "key"), q[0], count(q[1], "head"), w.key.shape[1], q[3], name(w.query.type), window_text(w.window));
  fmt::print("{}{}", table_of(w, measurements).markdown(), refused_text(measurements));
  if (nothing_compared(truth).empty()) fmt::print("\nCompared: {} of each head ({}).\n", count(rows, "row"), which);
  if (const auto heads = closer_heads(w, measurements); !heads.empty())
    fmt::print("\nCloser than chitu in no more time: in head {}.\n", fmt::join(heads, "; "));
  fmt::print("{}", left_out_text(truth));
  std::fflush(stdout);
}

// uncompared: a data set on which nothing could be compared, and why. Empty if there is none.
void print_recommendation(std::span<const Candidate> candidates, const std::optional<Candidate>& best, double bound,
                          const std::string& uncompared) {
  Table table{.header = {"method", "worst rel L1", "on", "total ms", fmt::format("within {:g}", bound)}, .rows = {}};
  for (const Candidate& c : candidates)
    table.rows.push_back({std::string(c.method->name), relative(c.relative_l1), c.worst_data, milliseconds(c.total_ms),
                          c.relative_l1 <= bound ? "yes" : "no"});
  fmt::print("\n## Recommendation\n\n{}\n", table.markdown());
  if (best)
    fmt::print("Recommended: {}, the fastest of these within relative L1 {:g} on all data.\n", best->method->name, bound);
  else if (!uncompared.empty())
    fmt::print("Recommended: none; nothing was compared of {}.\n", uncompared);
  else
    fmt::print("Recommended: none; no method of these stays within relative L1 {:g} on all data.\n", bound);
}

void write_plot(ReportFile& file, const std::vector<const Method*>& methods, const WorkloadSource& source,
                const std::vector<std::vector<Measurement>>& measurements, double bound, const Caption& caption) {
  std::vector<AccuracyRow> rows;
  for (std::size_t d = 0; d < measurements.size(); ++d) {
    rows.push_back({source.data()[d], {}});
    for (const Measurement& m : measurements[d]) rows.back().relative_l1.push_back(m.errors.relative_l1);
  }
  file.write(accuracy_plot(methods, rows, bound, caption));
}

// Drops methods that did not run on all data: they can be neither recommended nor drawn.
void drop_refused(std::vector<const Method*>& methods, std::vector<std::vector<Measurement>>& measurements) {
  const auto refused = [&](const Method* method) {
    return std::any_of(measurements.begin(), measurements.end(), [&](const auto& of_data) {
      return std::any_of(of_data.begin(), of_data.end(), [&](const Measurement& m) { return m.method == method && !m.refused.empty(); });
    });
  };
  std::erase_if(methods, refused);
  for (auto& of_data : measurements)
    std::erase_if(of_data, [&](const Measurement& m) { return std::find(methods.begin(), methods.end(), m.method) == methods.end(); });
}

void accuracy(const AccuracyFlags& flags, const std::string& command_line) {
  ReportFile csv_file("--csv", flags.csv), json_file("--json", flags.json), plot_file("--plot", flags.plot);
  require_different_files({&csv_file, &json_file, &plot_file});
  plot_file.require_extension(".svg");
  require(flags.bound() > 0 && std::isfinite(flags.bound()), "--max-l1 is ", flags.bound(), "; it must be a finite number above 0");
  check_runs(flags.settings);
  std::vector<const Method*> methods = methods_of(flags.workload.method);
  const std::int64_t wanted_rows = flags.rows.empty() ? 0 : count_of("--rows", flags.rows);
  const std::int64_t tokens = !flags.tokens.empty() ? count_of("--tokens", flags.tokens) : flags.workload.input.empty() ? 4096 : 0;
  const WorkloadSource source(flags.workload);
  source.check(methods, tokens);
  const std::string machine = machine_text(source.device(), source.threads(), flags.workload.kernel);
  fmt::print(
      "Machine: {}\nTruth: exact attention in double precision. Outputs have the type of the data.\nTotal: median of {}, from the tensors "
      "as they came, quantisation included.\n",
      machine, runs_text(flags.settings, source.device()));

  Progress progress(static_cast<double>(source.data().size()));
  std::vector<std::vector<Measurement>> measurements;
  Json rows_json = Json::array();
  std::string uncompared;
  for (const std::string& data : source.data()) {
    progress.show(data);
    const Workload w = source.make(data, tokens);
    const Truth truth = truth_of(w, rows_for(w, source.is_file(), wanted_rows));
    if (const std::string why = nothing_compared(truth); !why.empty()) uncompared = fmt::format("{}: {}", data, why);
    measurements.push_back(measure(w, methods, truth, flags.settings, progress, 1));
    progress.clear();
    print_section(w, truth, measurements.back());
    for (const Measurement& m : measurements.back()) rows_json.push_back(row_of(w, truth, m));
  }
  drop_refused(methods, measurements);
  const auto candidates = candidates_of(source.data(), measurements);
  const auto best = recommend(candidates, flags.bound());
  print_recommendation(candidates, best, flags.bound(), uncompared);

  if (plot_file.wanted()) write_plot(plot_file, methods, source, measurements, flags.bound(), {machine, command_line});
  if (csv_file.wanted()) csv_file.write(csv(rows_json));
  if (json_file.wanted()) {
    const Json report{{"machine", machine_json(source.device(), source.threads(), flags.workload.kernel)},
                      {"rows", rows_json},
                      {"max_l1", flags.bound()},
                      {"recommended", best ? Json(best->method->name) : Json()}};
    json_file.write(report.dump(2) + "\n");
  }
  if (!uncompared.empty() || (!best && flags.max_l1)) throw CLI::RuntimeError(none_within);
}

}  // namespace

void add_accuracy(CLI::App& app, const std::string& command_line) {
  auto flags = std::make_shared<AccuracyFlags>();
  CLI::App* command =
      app.add_subcommand("accuracy",
                         "Errors of the methods against double precision, and the fastest within a bound. Exit status 1 when "
                         "--max-l1 is given and no method stays within, or nothing could be compared");
  add_workload(*command, flags->workload);
  command->add_option("--tokens", flags->tokens, "Tokens, like 512 or 4K; 4K for data, all of a file unless given");
  command->add_option(
      "--rows", flags->rows,
      "Query rows of a head that are compared; the last 256 of data, of a file as many as a few seconds allow, unless given");
  command->add_option("--max-l1", flags->max_l1, "Recommend the fastest method whose relative L1 is at most this; 0.02 unless given");
  add_runs(*command, flags->settings);
  command->add_option("--plot", flags->plot, "Draw relative L1 of each method and data set here, an .svg");
  command->add_option("--csv", flags->csv, "Write the rows here as well");
  command->add_option("--json", flags->json, "Write machine, rows and recommendation here as well");
  command->callback([flags, command_line] { accuracy(*flags, command_line); });
}

}  // namespace chitu::cli
