// SPDX-License-Identifier: Apache-2.0
// The subcommands: each adds itself to the parser; its callback runs after parsing. An Error thrown there is printed by
// main() as one line "chitu: error: ..." with exit status 2. CLI::RuntimeError(1) is a verdict, already printed: exit status 1.
#pragma once

#include <string>

namespace CLI {
class App;  // only declared, because CLI11 costs each file that includes it several seconds
}

namespace chitu::cli {

void add_run(CLI::App& app);
void add_bench(CLI::App& app, const std::string& command_line);  // its pictures show command_line
void add_accuracy(CLI::App& app, const std::string& command_line);
void add_plan(CLI::App& app);
void add_explain(CLI::App& app);
void add_methods(CLI::App& app);
void add_doctor(CLI::App& app);

}  // namespace chitu::cli
