// SPDX-License-Identifier: Apache-2.0
// What outputs are compared with: exact attention in double precision, on as many query rows as there is time for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/files/files.h"
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
  // How many numbers of `out` are not finite, and how many rows, over all heads, hold some.
  std::int64_t not_finite = 0, not_finite_rows = 0;

  std::int64_t rows_of_all_heads() const { return out.tensor.shape[0] * out.tensor.shape[1] * out.tensor.shape[2]; }
};
Truth truth_of(const Workload& workload, RowRuns runs);
std::string nothing_compared(const Truth& truth);  // why no number can be compared with it; empty: some can

Tensor rows_of(Tensor tensor, const RowRun& run);
// The rows of a quantised query, whose scales they keep. run.first must be a multiple of tile_tokens.
Quantized rows_of(const Quantized& query, const RowRun& run);

Errors compare(const Output& output, const Truth& truth);  // on the rows of the truth

}  // namespace chitu::cli
