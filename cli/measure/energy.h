// SPDX-License-Identifier: Apache-2.0
// Power from readings of an energy counter that moves in steps, some tens of milliseconds apart.
#pragma once

#include <cstdint>

namespace chitu::cli {

// Takes readings under steady work, in order. Mean power is over a span that begins and ends where the counter moves, so a step's length
// costs no accuracy; only the time between two readings does. Readings of the first settle_ms are left out: the power still rises.
class EnergyReadings {
 public:
  static constexpr double settle_ms = 100, span_ms = 500;

  void add(double ms, std::uint64_t millijoules);
  bool enough() const { return last_.ms - first_.ms >= span_ms; }
  double watts() const;  // not a number until enough()

 private:
  struct Reading {
    double ms = 0;
    std::uint64_t millijoules = 0;
  };
  bool any_ = false, begun_ = false;
  std::uint64_t before_ = 0;  // the last reading
  Reading first_, last_;      // where the counter moved
};

}  // namespace chitu::cli
