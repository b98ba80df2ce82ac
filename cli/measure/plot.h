// SPDX-License-Identifier: Apache-2.0
// The pictures of accuracy --plot and bench --plot: SVG documents, for light and dark pages, with what they show in words below.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "chitu/method.h"

namespace chitu::cli {

// How the numbers came about, below a picture.
struct Caption {
  std::string machine, command;
};

struct AccuracyRow {
  std::string data;
  std::vector<double> relative_l1;  // of each method; not a number where nothing was compared
};
// A row for each data set, a dot for each method on a logarithmic axis. bound: drawn as a line.
std::string accuracy_plot(std::span<const Method* const> methods, std::span<const AccuracyRow> rows, double bound, const Caption& caption);

struct SpeedLine {
  const Method* method;
  std::vector<double> speedup;  // over exact, at each length; not a number where the method did not run
};
// A line for each method against the length, at least two different ones. workload: what was measured, a few words.
std::string speed_plot(const std::string& workload, std::span<const std::int64_t> lengths, std::span<const SpeedLine> lines,
                       const Caption& caption);

}  // namespace chitu::cli
