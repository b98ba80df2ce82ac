// SPDX-License-Identifier: Apache-2.0
// What measure() asks of a device, for each method on a workload.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "cli/measure/measure.h"

namespace chitu::cli {

// One method on one workload. First warm_up(), then run() in turn with the other methods', at last finish().
class Meter {
 public:
  explicit Meter(const Method& method) { result_.method = &method; }
  virtual ~Meter() = default;
  Meter(const Meter&) = delete;

  // Runs the method and compares what it gives with the truth. Gives about how long a call takes, in milliseconds. Throws Error
  // (unsupported, out_of_memory) where the device cannot run it.
  virtual double warm_up() = 0;
  virtual void run() = 0;  // timed
  // Waits for what has been run, then for this time.
  virtual void rest(std::chrono::milliseconds time) { std::this_thread::sleep_for(time); }
  // Called after the method's last run and before another method runs: checks that the output is still that of the warm-up.
  virtual Measurement finish() = 0;

 protected:
  Measurement result_;
};

using Meters = std::vector<std::unique_ptr<Meter>>;
Meters cpu_meters(const Workload& workload, std::span<const Method* const> methods, const Truth& truth, const MeasureSettings& settings);

// Throws Error(internal) unless a method's output has the errors it had first.
void require_unchanged(const Measurement& first, const Output& output, const Truth& truth);

}  // namespace chitu::cli
