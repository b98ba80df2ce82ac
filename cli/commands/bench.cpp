// SPDX-License-Identifier: Apache-2.0
// chitu bench: speed and accuracy of the methods at several lengths.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands/commands.h"
#include "cli/commands/options.h"
#include "cli/measure/machine.h"
#include "cli/measure/measure.h"
#include "cli/measure/peaks.h"
#include "cli/measure/plot.h"
#include "cli/measure/report.h"
#include "cli/measure/results.h"
#include "cli/ranks/ranks.h"
#include "cli/words.h"

namespace chitu::cli {
namespace {

struct BenchFlags {
  WorkloadFlags workload;
  std::string lengths, tokens_per_call, rows, quantized, plot, csv, json;
  MeasureSettings settings;
  std::optional<double> sample_above;
  RanksFlags ranks;
};

// The work at a length, for the progress bar. A file of unknown length is measured alone, so any number will do.
double work_at(std::int64_t tokens) { return tokens == 0 ? 1 : static_cast<double>(tokens) * static_cast<double>(tokens); }

std::vector<std::int64_t> lengths_of(const BenchFlags& flags) {
  if (flags.lengths.empty()) return flags.workload.input.empty() ? std::vector<std::int64_t>{1024, 4096} : std::vector<std::int64_t>{0};
  std::vector<std::int64_t> lengths;
  for (const std::string& word : list_of("--lengths", flags.lengths)) lengths.push_back(count_of("--lengths", word));
  return lengths;
}

// The batch of a call at this length, if --tokens-per-call says it.
std::optional<std::int64_t> batch_of(const BenchFlags& flags, std::int64_t tokens) {
  if (flags.tokens_per_call.empty()) return {};
  const std::int64_t all = count_of("--tokens-per-call", flags.tokens_per_call);
  require(all % tokens == 0, "--tokens-per-call ", flags.tokens_per_call, " is no multiple of ", tokens, ", one of --lengths");
  return all / tokens;
}

// The methods of the list, and `exact`, because the others are compared with it.
std::vector<const Method*> methods_with_exact(const std::string& list) {
  std::vector<const Method*> result = methods_of(list);
  const Method* exact = &find_method("exact");
  if (std::find(result.begin(), result.end(), exact) == result.end()) result.insert(result.begin(), exact);
  return result;
}

// The operands of --quantized.
std::vector<Role> quantized_of(const BenchFlags& flags) {
  if (flags.quantized.empty()) return {};
  require(flags.workload.device == "cuda", "--quantized is for --device cuda; on a CPU the table has quantising apart");
  std::vector<Role> roles;
  for (const std::string& word : list_of("--quantized", flags.quantized)) {
    require(word == "query" || word == "key" || word == "value", "--quantized has '", word, "'; it must be of query, key and value");
    roles.push_back(word == "query" ? Role::query : word == "key" ? Role::key : Role::value);
  }
  return roles;
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

// Numbers that follow from the times. One is NaN if it is unknown: the method was refused, or the one that it is compared with.
struct Row {
  const Measurement& measurement;
  double tflops, attention_tflops, quantise_gb_s, peak_percent, speedup;
};

std::vector<Row> rows_of(const Workload& w, const std::vector<Measurement>& measurements, const std::optional<Peaks>& peaks) {
  const auto exact =
      std::find_if(measurements.begin(), measurements.end(), [](const auto& m) { return m.method->recipe == recipes::exact; });
  std::vector<Row> rows;
  for (const Measurement& m : measurements) {
    const Recipe& recipe = m.method->recipe;
    const auto tflops = [&](double milliseconds) { return w.operations() / (milliseconds * 1e9); };
    const double moved = quantise_bytes(w, *m.method, !m.attention_quantises_queries);
    rows.push_back({.measurement = m,
                    .tflops = tflops(m.total.median),
                    .attention_tflops = tflops(m.attention.median),
                    .quantise_gb_s = moved > 0 ? moved / (m.quantise.median * 1e6) : unknown,
                    .peak_percent = peaks ? 100 * tflops(m.total.median) / peak_of(w, recipe, *peaks) : unknown,
                    .speedup = exact->total.median / m.total.median});
  }
  return rows;
}

Json json_of(const Workload& w, const Truth& truth, const Row& r) {
  const Measurement& m = r.measurement;
  const auto known = [&](double x) { return m.refused.empty() ? json_number(x) : Json(); };
  Json row = json_of(w, truth, m);
  row.update({{"quantise_ms", known(m.quantise.median)},
              {"quantise_ms_min", known(m.quantise.min)},
              {"quantise_ms_max", known(m.quantise.max)},
              {"copy_ms", known(m.copy.median)},
              {"attention_ms", known(m.attention.median)},
              {"attention_ms_min", known(m.attention.min)},
              {"attention_ms_max", known(m.attention.max)},
              {"tflops", known(r.tflops)},
              {"attention_tflops", known(r.attention_tflops)},
              {"quantise_gb_s", known(r.quantise_gb_s)},
              {"sm_mhz", m.sm_mhz ? Json(*m.sm_mhz) : Json()},
              {"joules", m.joules ? Json(*m.joules) : Json()},
              {"peak_percent", known(r.peak_percent)},
              {"speedup", known(r.speedup)}});
  return row;
}

// "-" where the number is unknown.
std::string cell(double x, const char* format) { return std::isnan(x) ? "-" : fmt::format(fmt::runtime(format), x); }

std::vector<std::string> cpu_cells(const Workload& w, const Row& r) {
  const Measurement& m = r.measurement;
  return {milliseconds(m.quantise.median), milliseconds(m.attention.median),
          milliseconds(m.total.median),    milliseconds(m.total.min) + " ... " + milliseconds(m.total.max),
          cell(r.tflops, "{:.3f}"),        cell(r.peak_percent, "{:.0f} %"),
          cell(r.speedup, "{:.2f}x"),      timed_rows(w, m)};
}

std::vector<std::string> gpu_cells(const Row& r) {
  const Measurement& m = r.measurement;
  const auto ms = [](double x) { return milliseconds(x, 3); };
  const auto range = [&](const Spread& s) { return ms(s.min) + " ... " + ms(s.max); };
  return {ms(m.quantise.median),
          range(m.quantise),
          cell(r.quantise_gb_s, "{:.0f}"),
          cell(m.quantise.median / m.copy.median, "{:.2f}x"),
          ms(m.attention.median),
          range(m.attention),
          cell(r.attention_tflops, "{:.0f}"),
          ms(m.total.median),
          range(m.total),
          cell(r.tflops, "{:.0f}"),
          cell(r.speedup, "{:.2f}x"),
          std::to_string(m.runs),
          m.sm_mhz ? std::to_string(*m.sm_mhz) : "-",
          m.joules ? fmt::format("{:.3g}", *m.joules) : "-"};
}

Table table_of(const Workload& w, const std::vector<Row>& rows) {
  const bool gpu = w.device == Device::cuda;
  const auto append = [](std::vector<std::string>& to, const std::vector<std::string>& more) {
    to.insert(to.end(), more.begin(), more.end());
  };
  Table table{.header = {"method", "max diff", "mean diff", "rel L1", "LSE max", "LSE mean"}, .rows = {}};
  append(table.header, gpu ? std::vector<std::string>{"quantise ms", "min ... max", "GB/s", "of a copy", "attention ms", "min ... max",
                                                      "TFLOPS", "total ms", "min ... max", "TFLOPS", "speed-up", "runs", "SM MHz", "J"}
                           : std::vector<std::string>{"quantise ms", "attention ms", "total ms", "min ... max", "TFLOPS", "of peak",
                                                      "speed-up", "timed rows"});
  for (const Row& r : rows) {
    const Measurement& m = r.measurement;
    const Errors& e = m.errors;
    if (!m.refused.empty()) continue;
    table.rows.push_back({std::string(m.method->name), scientific(e.max_diff), scientific(e.mean_diff), relative(e.relative_l1),
                          scientific(e.lse_max_diff), scientific(e.lse_mean_diff)});
    append(table.rows.back(), gpu ? gpu_cells(r) : cpu_cells(w, r));
  }
  return table;
}

std::string peaks_text(const Peaks& p) {
  return fmt::format("Peaks ({}, same threads): fp32 multiply-add {:.3f} TFLOPS, int8 dot {:.3f} TOPS{}\n", p.instructions, p.fp32_tflops,
                     p.int8_tops, p.bf16_tflops > 0 ? fmt::format(", bf16 dot {:.3f} TFLOPS", p.bf16_tflops) : "");
}

Json json_of(const Peaks& p) {
  return {{"fp32_tflops", p.fp32_tflops},
          {"int8_tops", p.int8_tops},
          {"bf16_tflops", p.bf16_tflops > 0 ? Json(p.bf16_tflops) : Json()},
          {"instructions", p.instructions}};
}

void print_heading(const BenchFlags& flags, const std::string& machine, Device device, const std::optional<Peaks>& peaks) {
  fmt::print("Machine: {}\n{}Times: median of {}", machine, peaks ? peaks_text(*peaks) : "", runs_text(flags.settings, device));
  fmt::print(
      "{}",
      device == Device::cpu
          ? ", methods in turn after a warm-up; total is from the tensors as they came, quantisation included.\n"
            "TFLOPS: 4 x dim operations for each visible pair of query and key, over the total. Peak: of the arithmetic each "
            "product uses.\n"
          : " by the GPU's events, methods in turn after a warm-up, tensors in GPU memory. Quantise (what it "
            "packs of operands that stay 16-bit included) and attention are a call's two steps apart; total is a whole call, in which they "
            "overlap a little.\n"
            "GB/s: each tensor that the quantise step quantises, read once and written once in its new type, over its time. Of a copy: "
            "its time over that of a copy in GPU memory which moves as many bytes.\n"
            "TFLOPS: 4 x dim operations for each visible pair of query and key, over the time before it. SM MHz: the clock, read under "
            "this work. J: joules of a whole call, the mean power of the GPU over half a second of calls back to back times the time of "
            "one; - where the driver has no energy counter.\n");
  fmt::print("Differences: to double precision, on the output in the type of the data.\n");
}

void print_section(const Workload& w, const Truth& truth, const std::vector<Measurement>& measurements, const std::vector<Row>& rows) {
  const Shape& q = w.query.shape;
  fmt::print("\n## {}: {}, batch {}, {} ({} of keys), dim {}, {}, {}\n\n", w.data, count(q[2], "token"), q[0], count(q[1], "head"),
             w.key.shape[1], q[3], name(w.query.type), window_text(w.window));
  fmt::print("{}{}", table_of(w, rows).markdown(), refused_text(measurements));
  for (const Measurement& m : measurements)
    if (m.attention_quantises_queries)
      fmt::print("\n{}: the attention step quantises the queries; quantise is of keys and values.\n", m.method->name);
  if (total(truth.runs) < q[2])
    fmt::print("\nDifferences on {} of {} query rows of each head, {}.\n", total(truth.runs), q[2],
               truth.runs.size() == 1 ? "the last" : fmt::format("in {} runs spread over the sequence", truth.runs.size()));
  fmt::print("{}", left_out_text(truth));
  const bool sampled =
      std::any_of(measurements.begin(), measurements.end(), [](const Measurement& m) { return m.sampled_rows.has_value(); });
  if (sampled)
    fmt::print(
        "\nSampled: where timed rows are not all, attention was timed on so many query rows of each head, with all keys, and "
        "extrapolated by visible pairs; quantisation was timed in full.\n");
  std::fflush(stdout);
}

// A picture draws a line for each method, against the length.
void check_plot(const ReportFile& file, const WorkloadSource& source, const std::vector<std::int64_t>& lengths) {
  file.require_extension(".svg");
  if (!file.wanted()) return;
  require(source.data().size() == 1, "--plot draws speed against length on one data set, but --data has ", source.data().size());
  const auto [least, most] = std::minmax_element(lengths.begin(), lengths.end());
  require(*least < *most, "--plot draws speed against length; give two --lengths or more");
}

std::string workload_text(const BenchFlags& flags, const Workload& w) {
  const Shape& q = w.query.shape;
  const std::string batch = flags.tokens_per_call.empty() ? fmt::format("batch {}", q[0]) : flags.tokens_per_call + " tokens a call";
  return fmt::format("{}, {}, {} ({} of keys), dim {}, {}, {}", w.data, batch, count(q[1], "head"), w.key.shape[1], q[3],
                     name(w.query.type), window_text(w.window));
}

void write_plot(ReportFile& file, const std::string& workload, const std::vector<std::int64_t>& lengths,
                const std::vector<SpeedLine>& lines, const Caption& caption) {
  const bool some = std::any_of(lines.begin(), lines.end(), [](const SpeedLine& line) {
    return std::any_of(line.speedup.begin(), line.speedup.end(), [](double x) { return std::isfinite(x); });
  });
  if (!some) throw Error(ErrorCode::unsupported, "--plot: exact did not run here, so there is no speed-up over it to draw");
  file.write(speed_plot(workload, lengths, lines, caption));
}

void bench(const BenchFlags& flags, const std::string& command_line) {
  ReportFile csv_file("--csv", flags.csv), json_file("--json", flags.json), plot_file("--plot", flags.plot);
  require_different_files({&csv_file, &json_file, &plot_file});
  const std::vector<const Method*> methods = methods_with_exact(flags.workload.method);
  const std::vector<std::int64_t> lengths = lengths_of(flags);
  const std::int64_t wanted_rows = flags.rows.empty() ? 0 : count_of("--rows", flags.rows);
  MeasureSettings settings = flags.settings;
  if (flags.sample_above) {
    require(flags.workload.device == "cpu", "--sample-above is for --device cpu; on a GPU every call is timed whole");
    settings.sample_above = *flags.sample_above;
  }
  check_runs(settings);
  const std::vector<Role> quantized = quantized_of(flags);
  const WorkloadSource source(flags.workload);
  check_plot(plot_file, source, lengths);
  for (const std::int64_t tokens : lengths) {
    const Workload w = source.check(methods, tokens, batch_of(flags, tokens));
    require(w.query.shape[2] == w.key.shape[2], flags.workload.input, " has ", w.query.shape[2], " queries and ", w.key.shape[2],
            " keys; bench needs as many of both, give --lengths");
  }
  std::optional<Peaks> peaks;
  if (source.device() == Device::cpu) peaks = measure_peaks(source.threads());
  const std::string machine = machine_text(source.device(), source.threads(), flags.workload.kernel);
  print_heading(flags, machine, source.device(), peaks);

  double work = 0;
  for (const std::int64_t tokens : lengths) work += work_at(tokens) * static_cast<double>(source.data().size());
  Progress progress(work);
  Json rows_json = Json::array();
  std::vector<SpeedLine> lines;
  for (const Method* method : methods) lines.push_back({method, {}});
  std::string workload;
  for (const std::string& data : source.data())
    for (const std::int64_t tokens : lengths) {
      progress.show(data);
      Workload w = source.make(data, tokens, batch_of(flags, tokens));
      w.quantized = quantized;
      const Truth truth = truth_of(w, spread_rows(w.query.shape[2], wanted_rows ? wanted_rows : affordable_rows(w)));
      const auto measurements = measure(w, methods, truth, settings, progress, work_at(tokens));
      const auto rows = rows_of(w, measurements, peaks);
      progress.clear();
      print_section(w, truth, measurements, rows);
      for (const Row& row : rows) rows_json.push_back(json_of(w, truth, row));
      for (std::size_t m = 0; m < rows.size(); ++m) lines[m].speedup.push_back(rows[m].speedup);
      workload = workload_text(flags, w);
    }
  if (csv_file.wanted()) csv_file.write(csv(rows_json));
  if (json_file.wanted()) {
    const Json report{{"machine", machine_json(source.device(), source.threads(), flags.workload.kernel)},
                      {"peaks", peaks ? json_of(*peaks) : Json()},
                      {"rows", rows_json}};
    json_file.write(report.dump(2) + "\n");
  }
  if (plot_file.wanted()) write_plot(plot_file, workload, lengths, lines, {machine, command_line});
}

void bench_ranks(const BenchFlags& flags, World& world) {
  std::optional<ReportFile> csv_file, json_file;
  std::optional<WorkloadSource> source;
  std::vector<const Method*> methods;
  std::vector<std::int64_t> lengths;
  std::int64_t rows = 0;
  world.together([&] {
    const bool writes = world.rank() == 0;
    csv_file.emplace("--csv", writes ? flags.csv : "");
    json_file.emplace("--json", writes ? flags.json : "");
    require_different_files({&*csv_file, &*json_file});
    require(flags.workload.device == "cpu", "--ranks is for --device cpu");
    require(flags.quantized.empty(), "--quantized is not for --ranks");
    require(flags.plot.empty() && flags.tokens_per_call.empty() && !flags.sample_above,
            "--plot, --tokens-per-call and --sample-above are not for --ranks");
    methods = methods_of(flags.workload.method);
    lengths = lengths_of(flags);
    rows = flags.rows.empty() ? 0 : count_of("--rows", flags.rows);
    check_runs(flags.settings);
    source.emplace(flags.workload);
    for (const std::int64_t tokens : lengths) {
      const Workload w = source->check(methods, tokens);
      require(w.query.shape[2] == w.key.shape[2], "bench needs as many queries as keys; give --lengths");
    }
  });
  bench_on_ranks(world, {*source, methods, lengths, flags.settings, rows, &*csv_file, &*json_file});
}

}  // namespace

void add_bench(CLI::App& app, const std::string& command_line) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Speed and accuracy of the methods, quantisation included, against exact attention");
  add_workload(*command, flags->workload);
  command->add_option("--lengths", flags->lengths, "Tokens: N,... like 512,4K,1M; 1K,4K for data, all of a file unless given");
  command
      ->add_option("--tokens-per-call", flags->tokens_per_call,
                   "Tokens of a call, like 32K: the batch is this over each length; instead of --batch")
      ->excludes(command->get_option("--batch"))
      ->excludes(command->get_option("--input"));
  add_runs(*command, flags->settings);
  command->add_option("--rows", flags->rows,
                      "Query rows of a head compared with double precision; unless given, as many as a few seconds allow");
  command->add_option("--sample-above", flags->sample_above,
                      fmt::format("Seconds: on a CPU, a method whose call would take longer ({:g}, unless given) is timed on a sample of "
                                  "query rows, and the table says so",
                                  flags->settings.sample_above));
  command->add_option("--quantized", flags->quantized,
                      "Operands that come quantised, of query,key,value: on a GPU, quantised before anything is timed");
  command->add_option("--plot", flags->plot, "Draw the methods' speed-up over exact against the length here, an .svg");
  command->add_option("--csv", flags->csv, "Write the rows here as well");
  command->add_option("--json", flags->json, "Write machine, peaks and rows here as well");
  add_ranks(*command, flags->ranks);
  command->callback([flags, command_line] {
    if (flags->ranks.wanted())
      on_ranks(flags->ranks, [&](World& world) { bench_ranks(*flags, world); });
    else
      bench(*flags, command_line);
  });
}

}  // namespace chitu::cli
