// SPDX-License-Identifier: Apache-2.0
// Options that several subcommands have.
#pragma once

#include <string>

#include "cli/measure/measure.h"
#include "cli/measure/workload.h"

namespace CLI {
class App;
}

namespace chitu::cli {

inline constexpr int most_heads = 1 << 20;  // or batches, that an option takes

void add_device(CLI::App& command, std::string& word);        // --device
void add_workload(CLI::App& command, WorkloadFlags& flags);   // what is measured: --method, --data, --input ...
void add_runs(CLI::App& command, MeasureSettings& settings);  // how often: --runs, --in-a-row and --rest
void check_runs(const MeasureSettings& settings);             // refuses what no option's range can refuse

}  // namespace chitu::cli
