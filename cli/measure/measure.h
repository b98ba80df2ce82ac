// SPDX-License-Identifier: Apache-2.0
// The measurement behind bench and accuracy: errors against double precision, and times with quantisation included, all methods in
// turn so that a drift of the machine hits them alike.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/measure/progress.h"
#include "cli/measure/report.h"
#include "cli/measure/statistics.h"
#include "cli/measure/workload.h"

namespace chitu::cli {

// Query rows first ... first + count - 1 of every head.
struct RowRun {
  std::int64_t first = 0, count = 0;
};
using RowRuns = std::vector<RowRun>;

RowRuns last_rows(std::int64_t queries, std::int64_t rows);
RowRuns spread_rows(std::int64_t queries, std::int64_t rows);  // about so many, in runs of up to 32, the last at the end
std::int64_t affordable_rows(const Workload& workload);        // for double precision, in a few seconds
std::int64_t total(const RowRuns& runs);

// What double precision gives for some rows, one run after another.
struct Truth {
  RowRuns runs;
  HostTensor out, lse;  // f32 [batch, heads, rows, dim] and [batch, heads, rows, 1]
  // Of `out`: numbers that are not finite, and rows of all heads that hold some.
  std::int64_t not_finite = 0, not_finite_rows = 0;
};
Truth truth_of(const Workload& workload, RowRuns runs);
std::string nothing_compared(const Truth& truth);  // why no number can be compared with it; empty: some can
std::string left_out_text(const Truth& truth);     // a paragraph for below the table, or nothing

Tensor rows_of(Tensor tensor, const RowRun& run);
// The rows of a quantised query, whose scales they keep. run.first must be a multiple of tile_tokens.
Quantized rows_of(const Quantized& query, const RowRun& run);

struct MeasureSettings {
  std::optional<int> runs{};  // unless given: cpu_runs on a CPU; on a GPU as many as take about a second of each method, 3 ... 31
  int cpu_runs = 5;
  int in_a_row = 1;          // runs of a method before it is another's turn
  int rest_ms = 0;           // before each turn the device does nothing for so long
  double sample_above = 20;  // seconds: on a CPU, a method whose call would take longer is timed on a sample of query rows
};
void check_runs(const MeasureSettings& settings);

// Times in milliseconds. quantise: quantize() of all three; attention: attention() of what came out; total: attention() of the
// tensors as they came, unless sampled: then the sum of the two, the second extrapolated from `sampled_rows` rows of each head. On a
// GPU, quantise and attention are the call's two steps, one waiting for the other, as they need not in `total`.
struct Measurement {
  const Method* method = nullptr;
  Errors errors{};
  Spread quantise{}, attention{}, total{};
  Spread copy{};  // on a GPU: of a copy in its memory that moves quantise_bytes(); unknown if they are 0
  int runs = 0;
  std::optional<std::int64_t> sampled_rows{};
  bool attention_quantises_queries = false;  // on a GPU: then the quantise step has keys and values only
  std::optional<int> sm_mhz{};               // a GPU's clock under this work; absent where the driver does not tell
  std::string refused{};                     // why the GPU does not run the method; the rest is then not a number. Never on a CPU
};

// Bytes that a method's quantise step must move at least: each operand that it quantises is read once, and written once in its new type.
// Scales, samples and residual planes are not counted.
double quantise_bytes(const Workload& workload, const Method& method, bool with_queries);

// What bench and accuracy both write of a measurement: keys in one order, null for what a refused method does not have.
Json json_of(const Workload& workload, const Truth& truth, const Measurement& measurement);
std::string timed_rows(const Workload& workload, const Measurement& measurement);  // "all", "768 of 4096"
std::string refused_text(std::span<const Measurement> measurements);               // a list in Markdown for below the table, or nothing

std::string runs_text(const MeasureSettings& settings, Device device);  // "5 runs, up to 2 in a row"
void add_runs(CLI::App& command, MeasureSettings& settings);            // the options --runs, --in-a-row and --rest

// On the device of the workload. work: what all of it adds to the progress.
std::vector<Measurement> measure(const Workload& workload, std::span<const Method* const> methods, const Truth& truth,
                                 const MeasureSettings& settings, Progress& progress, double work);

}  // namespace chitu::cli
