// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/energy.h"

#include "cli/measure/statistics.h"

namespace chitu::cli {

void EnergyReadings::add(double ms, std::uint64_t millijoules) {
  if (ms < settle_ms) return;
  const bool moved = any_ && millijoules != before_, back = any_ && millijoules < before_;
  any_ = true, before_ = millijoules;
  if (!moved) return;
  last_ = {ms, millijoules};
  if (begun_ && !back) return;  // after a step back, which is the driver starting anew, the span begins again
  begun_ = true, first_ = last_;
}

double EnergyReadings::watts() const {
  // Millijoules a millisecond.
  return enough() ? static_cast<double>(last_.millijoules - first_.millijoules) / (last_.ms - first_.ms) : unknown;
}

}  // namespace chitu::cli
