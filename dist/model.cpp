// SPDX-License-Identifier: Apache-2.0
// The cost model: bytes over bandwidth, pairs over speed, and what of the first does not hide behind the second.
#include <algorithm>
#include <array>

#include "chitu/dist.h"

namespace chitu::dist {
namespace {

// What a link gives in practice, one way, for messages of megabytes: about 80 % of its nominal rate.
constexpr std::array known_links{
    Link{"pcie4", 25e9, 5e-6},         // PCIe 4 x16
    Link{"nvlink", 287e9, 5e-6},       // fourth generation, measured between two H200s by send and receive
    Link{"ethernet100", 10e9, 20e-6},  // 100 Gb/s
    Link{"ethernet400", 40e9, 20e-6},  // 400 Gb/s
};

std::int64_t tokens_in(const Shard& shard, const std::vector<int>& runs) {
  std::int64_t sum = 0;
  for (const int run : runs) sum += shard[static_cast<std::size_t>(run)].count;
  return sum;
}

}  // namespace

std::span<const Link> links() { return known_links; }

Cost cost(const Task& task, const Plan& plan, int rank, const Model& model) {
  const int place = task.ranks.place_of(rank), others = task.ranks.ulysses - 1;
  const double heads = static_cast<double>(heads_of(task, place).count * model.batch), dim = static_cast<double>(model.dim);
  const double kv_heads = static_cast<double>(kv_heads_of(task, place).count * model.batch);
  const auto seconds = [&](double bytes, std::size_t messages) {
    return bytes / model.link.bytes_per_second + static_cast<double>(messages) * model.link.latency;
  };
  Cost cost;
  for (const Step& step : plan.steps) {
    StepTime time;
    double tokens = 0;
    for (const Transfer& from : step.receives)
      tokens += static_cast<double>(tokens_in(task.keys[static_cast<std::size_t>(from.peer)], from.runs));
    const double bytes = tokens * kv_heads * dim * (model.key_bytes + model.value_bytes);
    time.bytes = static_cast<std::int64_t>(bytes);
    time.receive = seconds(bytes, step.receives.size());
    std::int64_t pairs = 0;
    for (const Call& call : step.calls) pairs += call.pairs;
    time.compute = 4 * dim * heads * static_cast<double>(pairs) / model.operations_per_second;
    time.exposed = std::max(0., time.receive - (cost.steps.empty() ? 0 : cost.steps.back().compute));
    cost.total += time.exposed + time.compute;
    cost.steps.push_back(time);
  }
  // As many queries as it sends, about as many it receives; results go the other way.
  const double moved = static_cast<double>(tokens_of(task.queries[static_cast<std::size_t>(rank)])) * heads * dim * others;
  cost.queries = others ? seconds(moved * model.query_bytes, static_cast<std::size_t>(others)) : 0;
  cost.outputs = others ? seconds(moved * model.output_bytes, static_cast<std::size_t>(others)) : 0;
  cost.total += cost.queries + cost.outputs;
  return cost;
}

}  // namespace chitu::dist
