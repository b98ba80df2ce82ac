// SPDX-License-Identifier: Apache-2.0
// A build without chitu::dist_mpi.
#include <CLI/CLI.hpp>

#include "cli/commands/commands.h"
#include "cli/ranks/ranks.h"

namespace chitu::cli {
namespace {

[[noreturn]] void refuse(const char* what) {
  throw Error(ErrorCode::unsupported,
              std::string(what) + ": this build cannot run on several ranks; build it where MPI is installed, with -DCHITU_MPI=ON");
}

}  // namespace

struct World::Parts {};

void add_ranks(CLI::App& command, RanksFlags& flags) {
  command.add_option("--ranks", flags.ranks, "Not in this build, which has no MPI");
  command.add_option("--shard", flags.sharding, "Not in this build")->needs(command.get_option("--ranks"));
}
World::World() { refuse("--ranks"); }
World::~World() = default;
int World::rank() const { return 0; }
void World::lay_out(const RanksFlags&) {}
int World::threads(std::optional<int>) const { return 0; }
void World::together(const std::function<void()>&) {}
void World::attend(const Tensor&, const Tensor&, const Tensor&, const Output&, const Options&) {}
void on_ranks(const RanksFlags&, const std::function<void(World&)>&) { refuse("--ranks"); }
void bench_on_ranks(World&, const RanksBench&) {}

void add_plan(CLI::App& app) {
  CLI::App* command = app.add_subcommand("plan", "Who computes what on several ranks. Not in this build, which has no MPI");
  command->allow_extras();
  command->callback([] { refuse("plan"); });
}

}  // namespace chitu::cli
