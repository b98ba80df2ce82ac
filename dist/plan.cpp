// SPDX-License-Identifier: Apache-2.0
// Who holds which tokens, and who computes what in which step. Nothing here communicates.
#include <algorithm>
#include <numeric>

#include "chitu/dist.h"

namespace chitu::dist {
namespace {

constexpr std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// The sum of clamp(a + slope * i, 0, most) over i < count; slope > 0.
std::int64_t sum_clamped(std::int64_t a, std::int64_t slope, std::int64_t count, std::int64_t most) {
  const auto first_reaching = [&](std::int64_t x) { return std::clamp<std::int64_t>(-floor_div(a - x, slope), 0, count); };
  const std::int64_t rising = first_reaching(0), full = std::max(rising, first_reaching(most)), n = full - rising;
  const std::int64_t ramp = n == 0 ? 0 : n * (a + slope * rising) + slope * (n * (n - 1) / 2);
  return ramp + (count - full) * most;
}

// Tokens [begin, end) of a run.
Run part_of(const Run& run, std::int64_t begin, std::int64_t end) {
  return {run.sequence, end - begin, {run.at.first + begin * run.at.step, run.at.step}};
}

void append(Shard& shard, const Run& run) {
  if (run.count > 0) shard.push_back(run);
}

// The runs of a group's part of a sequence.
Shard part_of_group(Sharding sharding, const Ranks& ranks, int group, const Run& sequence) {
  const std::int64_t n = sequence.count, ring = ranks.ring;
  const auto chunk = [&](std::int64_t i, std::int64_t chunks) { return part_of(sequence, n * i / chunks, n * (i + 1) / chunks); };
  Shard part;
  switch (sharding) {
    case Sharding::contiguous:
      append(part, chunk(group, ring));
      break;
    case Sharding::zigzag:
      append(part, chunk(group, 2 * ring));
      append(part, chunk(2 * ring - 1 - group, 2 * ring));
      if (part.size() == 2 && part[0].at.first + part[0].count == part[1].at.first)
        part = {part_of(sequence, n * group / (2 * ring), n * (2 * ring - group) / (2 * ring))};
      break;
    case Sharding::striped:
      append(part, {sequence.sequence, (n - group + ring - 1) / ring, {sequence.at.first + group, ring}});
      break;
    case Sharding::whole:
      append(part, sequence);
      break;
  }
  return part;
}

// Cuts a group's part into contiguous shards for its ranks.
void deal_within_group(const Ranks& ranks, int group, const Shard& part, Layout& layout) {
  const std::int64_t all = tokens_of(part);
  for (int place = 0; place < ranks.ulysses; ++place) {
    const std::int64_t begin = all * place / ranks.ulysses, end = all * (place + 1) / ranks.ulysses;
    std::int64_t offset = 0;
    for (const Run& run : part) {
      const std::int64_t from = std::clamp<std::int64_t>(begin - offset, 0, run.count),
                         to = std::clamp<std::int64_t>(end - offset, 0, run.count);
      append(layout[static_cast<std::size_t>(group * ranks.ulysses + place)], part_of(run, from, to));
      offset += run.count;
    }
  }
}

// The group that gets each whole sequence.
std::vector<int> deal_out(const Ranks& ranks, std::span<const std::int64_t> queries, std::span<const std::int64_t> keys) {
  std::vector<std::size_t> order(queries.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto work = [&](std::size_t i) { return static_cast<double>(queries[i]) * static_cast<double>(keys[i]); };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return work(a) > work(b); });
  std::vector<double> load(static_cast<std::size_t>(ranks.ring));
  std::vector<int> groups(queries.size());
  for (const std::size_t i : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += work(i);
    groups[i] = static_cast<int>(least - load.begin());
  }
  return groups;
}

// Where the joint tokens stand: just before the first key of the sequence, or just after its last.
Run joint_run(const Task& task) {
  std::int64_t first = 0, end = 0;
  bool any = false;
  for (const Shard& shard : task.keys)
    for (const Run& run : shard) {
      const std::int64_t last = run.at.first + (run.count - 1) * run.at.step;
      first = any ? std::min(first, run.at.first) : run.at.first;
      end = any ? std::max(end, last + 1) : last + 1;
      any = true;
    }
  return {0, task.joint, {task.joint_rear ? end : first - task.joint, 1}};
}

// The calls of all queries of a group, the joint ones too if asked for, with the keys of a run.
void add_calls(const Task& task, int group, bool joint_queries, const RunOf& key, std::vector<Call>& calls) {
  const Run keys = run_of(task, task.keys, key);
  bool joins = false;  // the last call has no mask
  const auto add = [&](const RunOf& query) {
    const std::int64_t queries = run_of(task, task.queries, query).count,
                       pairs = visible_pairs(task.window, run_of(task, task.queries, query), keys);
    if (pairs == 0) return;
    const bool sees_all = pairs == queries * keys.count;
    if (joins && sees_all && calls.back().query.rank == query.rank && calls.back().query.run + calls.back().query_runs == query.run) {
      calls.back().pairs += pairs;
      ++calls.back().query_runs;
    } else {
      calls.push_back({query, key, pairs});
    }
    joins = sees_all;
  };
  for (int place = 0; place < task.ranks.ulysses; ++place) {
    const int rank = group * task.ranks.ulysses + place;
    const Shard& shard = task.queries[static_cast<std::size_t>(rank)];
    for (int run = 0; run < static_cast<int>(shard.size()); ++run)
      if (shard[static_cast<std::size_t>(run)].sequence == keys.sequence) add({rank, run});
  }
  if (joint_queries) add({joint_tokens, 0});
}

// The calls of a group with the keys of a rank. The joint queries meet a rank's keys in the rank's own group.
std::vector<Call> calls_with(const Task& task, int group, int owner) {
  std::vector<Call> calls;
  const bool joint = task.joint > 0 && task.ranks.group_of(owner) == group;
  for (int run = 0; run < static_cast<int>(task.keys[static_cast<std::size_t>(owner)].size()); ++run)
    add_calls(task, group, joint, {owner, run}, calls);
  return calls;
}

std::vector<int> runs_in(const std::vector<Call>& calls) {
  std::vector<int> runs;
  for (const Call& call : calls)
    if (runs.empty() || runs.back() != call.key.run) runs.push_back(call.key.run);
  return runs;
}

void check_layout(const Task& task, const Layout& layout, const char* name) {
  require(static_cast<int>(layout.size()) == task.ranks.size(), "task: ", name, " are laid out for ", layout.size(), " ranks, but ring ",
          task.ranks.ring, " x ulysses ", task.ranks.ulysses, " is ", task.ranks.size());
  for (const Shard& shard : layout)
    for (const Run& run : shard) {
      require(run.count >= 0 && run.count <= max_tokens && run.at.step >= 1, "task: a run of ", name, " has ", run.count, " tokens, step ",
              run.at.step, "; counts are 0 ... ", max_tokens, ", steps 1 or more");
      require(task.joint == 0 || run.sequence == 0, "task: joint tokens belong to one sequence, but there are several");
    }
}

}  // namespace

std::int64_t tokens_of(const Shard& shard) {
  return std::accumulate(shard.begin(), shard.end(), std::int64_t{0}, [](std::int64_t sum, const Run& run) { return sum + run.count; });
}

std::int64_t visible_pairs(const Window& window, const Run& query, const Run& key) {
  // Query i sees the keys j with i's position - left <= j's position <= i's position + right: end(i) - begin(i) of them, each a clamped
  // line in i if the queries' step is a multiple of the keys'.
  const Positions q = query.at, k = key.at;
  const auto below = [&](std::int64_t offset, std::int64_t count, std::int64_t first) {  // keys at or before position + offset, summed
    const std::int64_t a = floor_div(first + offset - k.first, k.step) + 1;
    return sum_clamped(a, std::max<std::int64_t>(q.step / k.step, 1), count, key.count);
  };
  const auto pairs = [&](std::int64_t first, std::int64_t count) {
    return below(window.right, count, first) - below(-window.left - 1, count, first);
  };
  if (q.step % k.step == 0) return pairs(q.first, query.count);
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < query.count; ++i) sum += pairs(q.first + i * q.step, 1);
  return sum;
}

Task shard(Sharding sharding, const Ranks& ranks, std::span<const std::int64_t> query_lengths, std::span<const std::int64_t> key_lengths) {
  require(ranks.ring >= 1 && ranks.ulysses >= 1, "ring ", ranks.ring, " and ulysses ", ranks.ulysses, " must be 1 or more");
  const std::span<const std::int64_t> keys = key_lengths.empty() ? query_lengths : key_lengths;
  require(keys.size() == query_lengths.size(), "there are ", query_lengths.size(), " sequences of queries, but ", keys.size(), " of keys");
  for (const std::int64_t length : query_lengths) require(length >= 0, "a sequence has ", length, " queries");
  for (const std::int64_t length : keys) require(length >= 0, "a sequence has ", length, " keys");
  const std::vector<int> groups = sharding == Sharding::whole ? deal_out(ranks, query_lengths, keys) : std::vector<int>{};
  const auto ranks_count = static_cast<std::size_t>(ranks.size());
  Task task{.ranks = ranks, .queries = Layout(ranks_count), .keys = Layout(ranks_count)};
  for (int group = 0; group < ranks.ring; ++group)
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (!groups.empty() && groups[i] != group) continue;
      const auto sequence = static_cast<std::int64_t>(i);
      const Run all_queries{sequence, query_lengths[i], {keys[i] - query_lengths[i], 1}}, all_keys{sequence, keys[i], {0, 1}};
      deal_within_group(ranks, group, part_of_group(sharding, ranks, group, all_queries), task.queries);
      deal_within_group(ranks, group, part_of_group(sharding, ranks, group, all_keys), task.keys);
    }
  return task;
}

Task shard(const Ranks& ranks, std::span<const std::int64_t> tokens_of_rank) {
  Task task{.ranks = ranks};
  std::int64_t first = 0;
  for (const std::int64_t tokens : tokens_of_rank) {
    require(tokens >= 0, "a rank has ", tokens, " tokens");
    task.queries.emplace_back();
    append(task.queries.back(), {0, tokens, {first, 1}});
    first += tokens;
  }
  task.keys = task.queries;
  return task;
}

void check(const Task& task) {
  const auto [ring, ulysses] = task.ranks;
  require(ring >= 1 && ulysses >= 1, "task: ring ", ring, " and ulysses ", ulysses, " must be 1 or more");
  check_layout(task, task.queries, "queries");
  check_layout(task, task.keys, "keys");
  require(task.heads >= 1 && task.kv_heads >= 1 && task.heads % task.kv_heads == 0, "task: ", task.heads, " heads are no multiple of ",
          task.kv_heads, " kv heads");
  require(task.heads % ulysses == 0, "task: ulysses ", ulysses, " cannot share out ", task.heads, " heads; they must be a multiple of it");
  require(task.kv_heads % ulysses == 0 || ulysses % task.kv_heads == 0, "task: ulysses ", ulysses, " cannot share out ", task.kv_heads,
          " kv heads; they must be a multiple of it, or divide it");
  require(task.joint >= 0 && task.joint <= max_tokens, "task: ", task.joint, " joint tokens");
}

HeadRange heads_of(const Task& task, int place) {
  const std::int64_t count = task.heads / task.ranks.ulysses;
  return {place * count, count};
}

HeadRange kv_heads_of(const Task& task, int place) {
  const HeadRange heads = heads_of(task, place);
  const std::int64_t group = task.heads / task.kv_heads, first = heads.first / group;
  return {first, (heads.first + heads.count - 1) / group - first + 1};
}

std::int64_t Plan::pairs() const {
  std::int64_t sum = 0;
  for (const Step& step : steps)
    for (const Call& call : step.calls) sum += call.pairs;
  return sum;
}

Run run_of(const Task& task, const Layout& layout, const RunOf& which) {
  if (which.rank == joint_tokens) return joint_run(task);
  return layout[static_cast<std::size_t>(which.rank)][static_cast<std::size_t>(which.run)];
}

Plan plan(const Task& task, int rank) {
  check(task);
  const auto [ring, ulysses] = task.ranks;
  require(rank >= 0 && rank < task.ranks.size(), "rank ", rank, " is not one of ", task.ranks.size());
  const int group = task.ranks.group_of(rank);
  Plan plan{.steps = std::vector<Step>(static_cast<std::size_t>(1 + ring))};

  plan.steps[0].calls = calls_with(task, group, rank);
  if (task.joint > 0) add_calls(task, group, group == 0, {joint_tokens, 0}, plan.steps[0].calls);
  for (int s = 0; s < ring; ++s) {
    Step& step = plan.steps[static_cast<std::size_t>(1 + s)];
    const int source = (group + ring - s) % ring, target = (group + s) % ring;
    const std::vector<int> wanted = runs_in(calls_with(task, target, rank));
    for (int place = 0; place < ulysses; ++place) {
      const int owner = source * ulysses + place, consumer = target * ulysses + place;
      if (owner != rank) {
        const std::vector<Call> calls = calls_with(task, group, owner);
        if (!calls.empty()) step.receives.push_back({owner, runs_in(calls)});
        step.calls.insert(step.calls.end(), calls.begin(), calls.end());
      }
      if (consumer != rank && !wanted.empty()) step.sends.push_back({consumer, wanted});
    }
  }
  return plan;
}

}  // namespace chitu::dist
