// SPDX-License-Identifier: Apache-2.0
#include "cli/commands/options.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

namespace chitu::cli {

void add_device(CLI::App& command, std::string& word) {
  command.add_option("--device", word, "cpu, or cuda: GPU 0")->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
}

void add_workload(CLI::App& command, WorkloadFlags& flags) {
  command.add_option("--method", flags.method, "all, or names: NAME,... (chitu methods lists them)")->capture_default_str();
  CLI::Option* file = command.add_option(
      "--input", flags.input,
      "A .safetensors file with tensors q, k and v, instead of --data. Any other tensor is refused by name, but for out, lse and NAME.q, "
      "NAME.k, NAME.v");
  command.add_option("--layout", flags.layout, "Order of the file's sizes: bhsd or bshd")->capture_default_str()->needs(file);
  CLI::Option* const of_data[] = {
      command.add_option("--data", flags.data, "all, or names: NAME,... (listed below)")->capture_default_str(),
      command.add_option("--batch", flags.batch, "Batch")->capture_default_str()->check(CLI::Range(1, most_heads)),
      command.add_option("--heads", flags.heads, "Query heads")->capture_default_str()->check(CLI::Range(1, most_heads)),
      command.add_option("--kv-heads", flags.kv_heads, "Key and value heads; as many as query heads unless given")
          ->check(CLI::Range(1, most_heads)),
      command.add_option("--dim", flags.dim, "Channels of a head")->capture_default_str()->check(CLI::Range(1, max_dim)),
      command.add_option("--dtype", flags.dtype, "Type of the data: f32, f16 or bf16; f32 on a CPU, bf16 on a GPU unless given"),
      command.add_option("--seed", flags.seed, "Seed of the data")->capture_default_str(),
  };
  for (CLI::Option* option : of_data) file->excludes(option);
  command.add_flag("--causal", flags.causal, "No query sees a later key");
  command.add_option("--window", flags.window, "LEFT,RIGHT: the keys a query sees before and after its own; -1: unbounded");
  command.add_option("--threads", flags.threads, "CPU threads; 0, and unless given: all")->check(CLI::Range(0, max_threads));
  add_device(command, flags.device);
  command.add_option("--kernel", flags.kernel, "Run this kernel or refuse (chitu methods lists them)");
  command.footer("Data, made from the seed:\n" + describe_distributions());
}

void add_runs(CLI::App& command, MeasureSettings& settings) {
  command
      .add_option("--runs", settings.runs,
                  fmt::format("Timed runs of each method; unless given {}, on a GPU {} to {}: as many as take about a second",
                              settings.cpu_runs, least_gpu_runs, most_gpu_runs))
      ->check(CLI::Range(1, 1000));
  command
      .add_option("--in-a-row", settings.in_a_row,
                  "Timed runs of a method before another method's turn: a GPU that another method has driven to its power limit is slower "
                  "for some calls")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command.add_option("--rest", settings.rest_ms, "Milliseconds before each turn in which the device does nothing, for the same reason")
      ->capture_default_str()
      ->check(CLI::Range(0, 60000));
}

void check_runs(const MeasureSettings& settings) {
  require(!settings.runs || settings.in_a_row <= *settings.runs, "--in-a-row is ", settings.in_a_row, ", more than --runs ",
          settings.runs.value_or(0));
  require(settings.sample_above >= 0, "--sample-above is ", settings.sample_above, "; it must be 0 seconds or more");
}

}  // namespace chitu::cli
