// SPDX-License-Identifier: Apache-2.0
// What bench and accuracy both say about measurements: a row of JSON, cells and sentences.
#pragma once

#include <span>
#include <string>

#include "cli/measure/measure.h"
#include "cli/measure/report.h"

namespace chitu::cli {

// Keys in one order, null for what a refused method does not have.
Json json_of(const Workload& workload, const Truth& truth, const Measurement& measurement);
std::string timed_rows(const Workload& workload, const Measurement& measurement);  // "all", "768 of 4096"
std::string refused_text(std::span<const Measurement> measurements);               // a list in Markdown for below the table, or nothing

std::string left_out_text(const Truth& truth);                          // a paragraph for below the table, or nothing
std::string runs_text(const MeasureSettings& settings, Device device);  // "5 runs, up to 2 in a row"

}  // namespace chitu::cli
