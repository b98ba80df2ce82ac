// SPDX-License-Identifier: Apache-2.0
// The picture of accuracy --plot: a row for each data set, a dot for each method at its relative L1 on a logarithmic axis.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace chitu::cli {

struct PlotRow {
  std::string data;
  std::vector<double> relative_l1;  // of each method
};

// An SVG document. bound: drawn as a line.
std::string accuracy_plot(std::span<const std::string> methods, std::span<const PlotRow> rows, double bound);

}  // namespace chitu::cli
