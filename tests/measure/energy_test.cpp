// SPDX-License-Identifier: Apache-2.0
// Power from a simulated energy counter: one that moves in steps, is reset, stands still.
#include "cli/measure/energy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cli/measure/data.h"

namespace chitu::cli {
namespace {

// What a counter that moves every step_ms shows at a time.
std::uint64_t counter(double ms, double watts, double step_ms) {
  return static_cast<std::uint64_t>(1e6 + watts * step_ms * std::floor(ms / step_ms));
}

TEST(Energy, PowerIsRightWhateverTheCountersStep) {
  const Stream random(3);
  for (const double step : {1., 20., 37., 100., 250.})
    for (const double watts : {90., 700.}) {
      EnergyReadings readings;
      EXPECT_TRUE(std::isnan(readings.watts()));
      double ms = 0;
      for (std::uint64_t i = 0; !readings.enough(); ++i) {
        ASSERT_LT(ms, 1500) << step;
        ms += 1 + std::fabs(random.normal(i));  // the host is late by a little
        const double rising = ms < EnergyReadings::settle_ms ? watts / 2 : watts;
        readings.add(ms, counter(ms, rising, step));
      }
      EXPECT_GE(ms, EnergyReadings::settle_ms + EnergyReadings::span_ms);
      EXPECT_NEAR(readings.watts(), watts, .02 * watts) << step;
    }
}

TEST(Energy, ACounterThatStandsStillTellsNothing) {
  EnergyReadings readings;
  for (double ms = 0; ms < 5000; ++ms) readings.add(ms, 12345);
  EXPECT_FALSE(readings.enough());
  EXPECT_TRUE(std::isnan(readings.watts()));
}

TEST(Energy, ACounterThatIsResetBeginsAnew) {
  EnergyReadings readings;
  double ms = 0;
  for (; ms < 400; ++ms) readings.add(ms, 1'000'000 + counter(ms, 300, 20));
  for (; !readings.enough(); ++ms) {
    ASSERT_LT(ms, 1200);
    readings.add(ms, counter(ms, 300, 20));
  }
  EXPECT_GE(ms, 400 + EnergyReadings::span_ms);
  EXPECT_NEAR(readings.watts(), 300, 6);
}

}  // namespace
}  // namespace chitu::cli
