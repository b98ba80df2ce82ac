// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/recommend.h"

#include <cmath>

namespace chitu::cli {

std::vector<Candidate> candidates_of(std::span<const std::string> data, std::span<const std::vector<Measurement>> measurements) {
  std::vector<Candidate> candidates;
  for (std::size_t d = 0; d < data.size(); ++d)
    for (std::size_t m = 0; m < measurements[d].size(); ++m) {
      const Measurement& measured = measurements[d][m];
      if (d == 0) candidates.push_back({measured.method, measured.errors.relative_l1, 0, data[0]});
      Candidate& c = candidates[m];
      c.total_ms += measured.total.median;
      // Unknown on one is unknown on all: nothing was compared there.
      if (measured.errors.relative_l1 <= c.relative_l1 || std::isnan(c.relative_l1)) continue;
      c.relative_l1 = measured.errors.relative_l1;
      c.worst_data = data[d];
    }
  return candidates;
}

std::optional<Candidate> recommend(std::span<const Candidate> candidates, double max_l1) {
  std::optional<Candidate> best;
  for (const Candidate& c : candidates)
    if (c.relative_l1 <= max_l1 && (!best || c.total_ms < best->total_ms)) best = c;
  return best;
}

}  // namespace chitu::cli
