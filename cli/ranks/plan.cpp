// SPDX-License-Identifier: Apache-2.0
// chitu plan: who computes what in which step on several ranks, and how long a model says that it takes.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/commands/commands.h"
#include "cli/commands/options.h"
#include "cli/ranks/parts.h"
#include "cli/words.h"

namespace chitu::cli {
namespace {

constexpr int most_rows = 64;  // of ranks, in a table

struct PlanFlags {
  std::string ranks = "ring=4", sharding = "contiguous", tokens = "32K", method = "chitu", link = "nvlink", window{};
  std::int64_t heads = 16, kv_heads = 0, dim = 128, joint = 0, batch = 1;
  double tflops = 0;
  bool causal = false;
};

// Bytes of a number on the wire, its share of the scales included. A residual plane, which few tiles have, is not.
double wire_bytes(const Quant& q, std::int64_t dim) {
  if (q.scaling == Scaling::none) return 2;
  const double scales = q.scaling == Scaling::tokens ? 4. * static_cast<double>(q.groups.count(tile_tokens)) / tile_tokens
                        : q.scaling == Scaling::tile ? 4. / tile_tokens
                                                     : 0;
  return bytes(q.type) + scales / static_cast<double>(dim);
}

dist::Link link_of(const std::string& word) {
  std::string names;
  for (const dist::Link& link : dist::links()) {
    if (link.name == word) return link;
    names += (names.empty() ? "" : ", ") + std::string(link.name);
  }
  throw Error(ErrorCode::bad_argument, "--link '" + word + "' must be one of " + names);
}

std::string text(const dist::Run& run) {
  const std::int64_t last = run.at.first + (run.count - 1) * run.at.step;
  return fmt::format("{} ... {}{}{}", run.at.first, last, run.at.step > 1 ? fmt::format(" by {}", run.at.step) : "",
                     run.sequence > 0 ? fmt::format(" of sequence {}", run.sequence) : "");
}

std::string text(const dist::Shard& shard) {
  std::string all;
  for (std::size_t i = 0; i < std::min<std::size_t>(shard.size(), 4); ++i) all += (i ? ", " : "") + text(shard[i]);
  return all + (shard.size() > 4 ? fmt::format(" and {} more", shard.size() - 4) : "");
}

// "3: 12 %", the ranks whose keys it is and the part of a rank's fair share of all work.
std::string cell(const dist::Step& step, int rank, double share) {
  std::int64_t pairs = 0;
  std::vector<int> owners;
  for (const dist::Call& call : step.calls) {
    pairs += call.pairs;
    const int owner = call.key.rank == dist::joint_tokens ? rank : call.key.rank;
    if (std::find(owners.begin(), owners.end(), owner) == owners.end()) owners.push_back(owner);
  }
  if (pairs == 0) return "-";
  std::string from = std::to_string(owners.front());
  if (owners.size() > 1) from += (owners.size() > 2 ? " ... " : ", ") + std::to_string(owners.back());
  return fmt::format("{}: {:.0f} %", from, 100 * static_cast<double>(pairs) / share);
}

dist::Task task_of(const PlanFlags& flags) {
  std::vector<std::int64_t> lengths;
  for (const std::string& word : list_of("--tokens", flags.tokens)) lengths.push_back(count_of("--tokens", word));
  const dist::Sharding sharding = flags.sharding == "whole" ? dist::Sharding::whole : parse_sharding(flags.sharding);
  dist::Task task = dist::shard(sharding, parse_ranks(flags.ranks), lengths);
  task.heads = flags.heads;
  task.kv_heads = flags.kv_heads ? flags.kv_heads : flags.heads;
  task.window = window_of(flags.causal, flags.window);
  task.joint = flags.joint;
  dist::check(task);
  return task;
}

void print_schedule(const dist::Task& task, const std::vector<dist::Plan>& plans, double share) {
  Table table{.header = {"rank", "tokens"}, .rows = {}, .text = true};
  for (std::size_t step = 0; step < plans[0].steps.size(); ++step)
    if (step != 1 || task.ranks.ulysses > 1)
      table.header.push_back(step == 0 ? "own keys" : step == 1 ? "group's" : fmt::format("step {}", step));
  for (std::size_t rank = 0; rank < plans.size(); ++rank) {
    std::vector<std::string> row{std::to_string(rank), text(task.keys[rank])};
    for (std::size_t step = 0; step < plans[rank].steps.size(); ++step)
      if (step != 1 || task.ranks.ulysses > 1) row.push_back(cell(plans[rank].steps[step], static_cast<int>(rank), share));
    table.rows.push_back(row);
  }
  fmt::print("Whose keys a rank computes with in each step, and how much work that is: 100 % is an equal part of all.\n\n{}\n",
             table.markdown());
}

void print_plan(const PlanFlags& flags) {
  const dist::Task task = task_of(flags);
  const Recipe& recipe = find_method(flags.method).recipe;
  const int ranks = task.ranks.size();
  dist::Model model{.batch = flags.batch, .dim = flags.dim, .operations_per_second = flags.tflops * 1e12, .link = link_of(flags.link)};
  require(flags.tflops > 0,
          "--tflops is missing: operations of attention that a rank does in a second, in 10^12 (chitu bench measures them)");
  model.key_bytes = wire_bytes(recipe.key, flags.dim);
  model.value_bytes = wire_bytes(recipe.value, flags.dim);
  std::vector<dist::Plan> plans;
  std::int64_t all_pairs = 0;
  for (int rank = 0; rank < ranks; ++rank) plans.push_back(dist::plan(task, rank)), all_pairs += plans.back().pairs();
  const double share = static_cast<double>(all_pairs) / ranks;
  if (ranks <= most_rows) print_schedule(task, plans, share);

  Table table{.header = {"rank", "work", "received", "compute ms", "communication ms", "exposed ms", "total ms"}, .rows = {}};
  double slowest = 0, exposed = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const dist::Plan& plan = plans[static_cast<std::size_t>(rank)];
    const dist::Cost cost = dist::cost(task, plan, rank, model);
    double compute = 0, receive = cost.queries + cost.outputs, waits = cost.queries + cost.outputs;
    std::int64_t received = 0;
    for (const dist::StepTime& step : cost.steps)
      compute += step.compute, receive += step.receive, waits += step.exposed, received += step.bytes;
    if (cost.total > slowest) slowest = cost.total, exposed = waits;
    table.rows.push_back({std::to_string(rank), fmt::format("{:.1f} %", 100 * static_cast<double>(plan.pairs()) / share),
                          fmt::format("{:.1f} MB", static_cast<double>(received) / 1e6), milliseconds(compute * 1e3),
                          milliseconds(receive * 1e3), milliseconds(waits * 1e3), milliseconds(cost.total * 1e3)});
  }
  const double one = 4 * static_cast<double>(flags.dim * flags.batch) * static_cast<double>(task.heads) / task.ranks.ulysses *
                     static_cast<double>(all_pairs) / model.operations_per_second;
  if (ranks <= most_rows)
    fmt::print(
        "The model, {} at {:.0f} GB/s and {:g} us a message, {:g} TFLOPS a rank, {:.2f} and {:.2f} bytes for a number of a key and a "
        "value:\n\n{}\n",
        model.link.name, model.link.bytes_per_second / 1e9, model.link.latency * 1e6, flags.tflops, model.key_bytes, model.value_bytes,
        table.markdown());
  fmt::print("One rank: {} ms. {}: {} ms, {:.2f}x; exposed communication {:.1f} %.\n", milliseconds(one * 1e3), count(ranks, "rank"),
             milliseconds(slowest * 1e3), one / slowest, 100 * exposed / slowest);
}

}  // namespace

void add_plan(CLI::App& app) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* command =
      app.add_subcommand("plan", "Who computes what in which step on several ranks, with a model's times; it needs no mpirun");
  command->add_option("--ranks", flags->ranks, "ring=R,ulysses=U")->capture_default_str();
  command->add_option("--shard", flags->sharding, "contiguous, zigzag, striped or whole (sequences)")->capture_default_str();
  command->add_option("--tokens", flags->tokens, "Length of the sequence, like 128K; of several packed ones: N,...")->capture_default_str();
  command->add_option("--batch", flags->batch, "Batch")->capture_default_str()->check(CLI::Range(1, most_heads));
  command->add_option("--heads", flags->heads, "Query heads")->capture_default_str()->check(CLI::Range(1, most_heads));
  command->add_option("--kv-heads", flags->kv_heads, "Key and value heads; as many as query heads unless given")
      ->check(CLI::Range(1, most_heads));
  command->add_option("--dim", flags->dim, "Channels of a head")->capture_default_str()->check(CLI::Range(1, max_dim));
  command->add_option("--joint", flags->joint, "Tokens before the sequence that every rank holds")->check(CLI::Range(0, 1 << 24));
  command->add_flag("--causal", flags->causal, "No query sees a later key");
  command->add_option("--window", flags->window, "LEFT,RIGHT: the keys a query sees before and after its own; -1: unbounded");
  command->add_option("--method", flags->method, "Quantisation method, which says what travels")->capture_default_str();
  std::string names;
  for (const dist::Link& link : dist::links()) names += (names.empty() ? "" : ", ") + std::string(link.name);
  command->add_option("--link", flags->link, "What joins the ranks: " + names)->capture_default_str();
  command
      ->add_option("--tflops", flags->tflops,
                   "Speed of a rank in 10^12 operations a second, 4 x dim for each pair of query and key; must be given")
      ->check(CLI::PositiveNumber);
  command->callback([flags] { print_plan(*flags); });
}

}  // namespace chitu::cli
