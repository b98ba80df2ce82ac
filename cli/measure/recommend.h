// SPDX-License-Identifier: Apache-2.0
// Which method to take: the fastest whose error stays within a bound on all data sets.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "cli/measure/measure.h"

namespace chitu::cli {

// A method over all data sets: its largest relative L1 and where, its times summed.
struct Candidate {
  const Method* method = nullptr;
  double relative_l1 = 0, total_ms = 0;
  std::string worst_data;
};

// measurements[d][m]: of data set d, each with the same methods.
std::vector<Candidate> candidates_of(std::span<const std::string> data, std::span<const std::vector<Measurement>> measurements);

std::optional<Candidate> recommend(std::span<const Candidate> candidates, double max_l1);

}  // namespace chitu::cli
