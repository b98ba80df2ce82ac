// SPDX-License-Identifier: Apache-2.0
// The measurement behind bench and accuracy: errors against double precision, and times with quantisation included, all methods in
// turn so that a drift of the machine hits them alike.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/measure/progress.h"
#include "cli/measure/statistics.h"
#include "cli/measure/truth.h"
#include "cli/measure/workload.h"

namespace chitu::cli {

inline constexpr int least_gpu_runs = 3, most_gpu_runs = 31;

struct MeasureSettings {
  std::optional<int> runs{};  // absent: cpu_runs on a CPU; on a GPU about a second for each method, within these two limits
  int cpu_runs = 5;
  int in_a_row = 1;          // runs of a method before another method's turn
  int rest_ms = 0;           // before each turn the device does nothing for so long
  double sample_above = 20;  // seconds: on a CPU, a method whose call would take longer is timed on a sample of query rows
};

// Times in milliseconds.
// - quantise: quantize() of all three operands; attention: attention() of the quantised operands.
// - total: attention() of the tensors as they came. In a sampled measurement it is the sum of the other two, and attention is extrapolated
//   from `sampled_rows` rows of each head.
// - On a GPU, quantise and attention are the two steps of a call. The second waits for the first; in `total` they may overlap.
struct Measurement {
  const Method* method = nullptr;
  Errors errors{};
  Spread quantise{}, attention{}, total{};
  Spread copy{};  // on a GPU: of a copy in its memory that moves quantise_bytes(); unknown if they are 0
  int runs = 0;
  std::optional<std::int64_t> sampled_rows{};
  bool attention_quantises_queries = false;  // on a GPU: then the quantise step makes keys and values only
  std::optional<int> sm_mhz{};               // a GPU's clock under this work; absent where the driver does not tell
  std::optional<double> joules{};            // that the whole GPU uses in a call, calls back to back; absent where the driver does not tell
  std::string refused{};                     // why the GPU does not run the method; the rest is then not a number. Never on a CPU
};

// Bytes that a method's quantise step must move at least: each operand that it quantises is read once, and written once in its new type.
// Scales, samples and residual planes are not counted.
double quantise_bytes(const Workload& workload, const Method& method, bool with_queries);

// Measures on the device of the workload. work: how much all of it adds to the progress.
std::vector<Measurement> measure(const Workload& workload, std::span<const Method* const> methods, const Truth& truth,
                                 const MeasureSettings& settings, Progress& progress, double work);

}  // namespace chitu::cli
