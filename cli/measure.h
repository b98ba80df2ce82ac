// SPDX-License-Identifier: Apache-2.0
// The measurement behind bench and accuracy: errors against double precision, and times with quantisation included, all methods in
// turn so that a drift of the machine hits them alike.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "cli/progress.h"
#include "cli/statistics.h"
#include "cli/workload.h"

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
};
Truth truth_of(const Workload& workload, RowRuns runs);

Tensor rows_of(Tensor tensor, const RowRun& run);
// The rows of a quantised query, whose scales they keep. run.first must be a multiple of tile_tokens.
Quantized rows_of(const Quantized& query, const RowRun& run);

struct MeasureSettings {
  int runs = 5;
  double sample_above = 20;  // seconds: a method whose call would take longer is timed on a sample of query rows
};

// Times in milliseconds. quantise: quantize() of all three; attention: attention() of what came out; total: attention() of the
// tensors as they came, unless sampled: then the sum of the two, the second extrapolated from `sampled_rows` rows of each head.
struct Measurement {
  const Method* method = nullptr;
  Errors errors{};
  Spread quantise{}, attention{}, total{};
  std::optional<std::int64_t> sampled_rows{};
};

// work: what all of it adds to the progress.
std::vector<Measurement> measure(const Workload& workload, std::span<const Method* const> methods, const Truth& truth,
                                 const MeasureSettings& settings, Progress& progress, double work);

}  // namespace chitu::cli
