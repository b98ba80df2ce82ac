// SPDX-License-Identifier: Apache-2.0
// chitu bench --ranks: the same call on one rank and on all, in turn.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "cli/measure/machine.h"
#include "cli/measure/results.h"
#include "cli/ranks/parts.h"

namespace chitu::cli {
namespace {

constexpr double patience = 3600;  // seconds that ranks wait while one computes alone

double milliseconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double cpu_seconds() {  // of this process, all its threads
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// What one run costs a rank.
struct RankRun {
  dist::Stats stats{};
  double cpu = 0;  // seconds
};

// What a method did: times of rank 0, which are those of the whole; statistics of all ranks, from the first run.
struct RanksRow {
  const Method* method;
  Errors one{}, all{};
  Spread one_ms{}, all_ms{}, speedup{}, cpu{};
  double bytes_a_number = unknown, megabytes = 0, exposed = 0, balance = 1;
};

// The tensors of this rank, and of the whole where rank 0 needs them.
struct Setting {
  World& world;
  const Workload& w;
  dist::Task task;
  HostTensor query, key, value, out, lse;  // of this rank
  HostTensor whole_out, whole_lse;
  int threads, threads_alone;  // of this rank; of one rank that has the machine alone

  Output whole() const { return {whole_out.tensor, whole_lse.tensor}; }
  dist::Communicator& comm() const { return *world.parts().comm; }
};

// As many as all ranks have together, but no more than the machine has unless that is asked for.
int threads_alone(World& world, std::optional<int> asked) {
  return asked && *asked > 0 ? *asked * world.parts().comm->size() : machine_threads();
}

Setting setting_of(World& world, const Workload& w, std::optional<int> threads) {
  const auto rank = static_cast<std::size_t>(world.rank());
  Setting s{.world = world,
            .w = w,
            .task = world.parts().task(w.query, w.key, w.window),
            .query = {},
            .key = {},
            .value = {},
            .out = {},
            .lse = {},
            .whole_out = {},
            .whole_lse = {},
            .threads = world.threads(threads),
            .threads_alone = threads_alone(world, threads)};
  dist::check(s.task);
  s.query = take(w.query, s.task.queries[rank], 0);
  s.key = take(w.key, s.task.keys[rank], 0);
  s.value = take(w.value, s.task.keys[rank], 0);
  const Shape& shape = s.query.tensor.shape;
  s.out = allocate(w.query.type, shape);
  s.lse = allocate(DType::f32, {shape[0], shape[1], shape[2], 1});
  s.whole_out = allocate(w.query.type, w.query.shape);
  s.whole_lse = allocate(DType::f32, {w.query.shape[0], w.query.shape[1], w.query.shape[2], 1});
  return s;
}

// Milliseconds; 0 but on rank 0.
double run_on_one(const Setting& s, const Method& method, RankRun& run) {
  double ms = 0;
  const double cpu = cpu_seconds();
  if (s.world.rank() == 0)
    ms = milliseconds_of([&] {
      attention(s.w.query, s.w.key, s.w.value, s.whole(),
                {.recipe = method.recipe, .window = s.w.window, .threads = s.threads_alone, .kernel = s.w.kernel});
    });
  run.cpu = cpu_seconds() - cpu;
  dist::agree(s.comm(), "", nullptr, patience);
  return ms;
}

// From the moment at which all are ready until all have their result.
double run_on_all(const Setting& s, const Method& method, RankRun& run) {
  dist::agree(s.comm(), "", nullptr, patience);
  const double cpu = cpu_seconds();
  return milliseconds_of([&] {
    dist::attention(s.comm(), s.task, s.query.tensor, s.key.tensor, s.value.tensor, {s.out.tensor, s.lse.tensor},
                    {.recipe = method.recipe, .threads = s.threads, .kernel = s.w.kernel, .timeout = patience, .stats = &run.stats});
    run.cpu = cpu_seconds() - cpu;
    dist::agree(s.comm(), "", nullptr, patience);
  });
}

// Rank 0 gets the statistics of all ranks.
std::vector<RankRun> collect(dist::Communicator& comm, RankRun mine) {
  std::vector<RankRun> all{mine};
  constexpr int tag = 102;
  if (comm.rank() != 0) {
    dist::wait(comm, comm.send(0, tag, std::as_bytes(std::span(&mine, 1))), patience, "rank 0 to take statistics");
    return all;
  }
  for (int peer = 1; peer < comm.size(); ++peer) {
    dist::wait(comm, comm.receive(peer, tag, std::as_writable_bytes(std::span(&mine, 1))), patience, "statistics");
    all.push_back(mine);
  }
  return all;
}

void add_statistics(RanksRow& row, const std::vector<RankRun>& runs) {
  double numbers = 0, kv = 0, others = 0, waiting = 0, total = 0, pairs = 0, most = 0;
  for (const RankRun& run : runs) {
    const dist::Stats& s = run.stats;
    numbers += static_cast<double>(s.kv_numbers);
    kv += static_cast<double>(s.kv_bytes);
    others += static_cast<double>(s.query_bytes + s.output_bytes);
    waiting += s.waiting, total += s.total;
    pairs += static_cast<double>(s.pairs), most = std::max(most, static_cast<double>(s.pairs));
  }
  if (numbers > 0) row.bytes_a_number = kv / numbers;
  row.megabytes = (kv + others) / 1e6;
  row.exposed = waiting / total;
  row.balance = most > 0 ? pairs / static_cast<double>(runs.size()) / most : 1;
}

std::vector<RanksRow> measure(const Setting& s, const RanksBench& bench, const Truth& truth) {
  std::vector<RanksRow> rows;
  RankRun alone, together;
  for (const Method* method : bench.methods) {  // a warm-up, whose results are compared
    RanksRow row{.method = method};
    run_on_one(s, *method, alone);
    if (s.world.rank() == 0) row.one = compare(s.whole(), truth);
    run_on_all(s, *method, together);
    gather(s.comm(), s.task.queries, s.out.tensor, s.whole_out.tensor, 0, 100);
    gather(s.comm(), s.task.queries, s.lse.tensor, s.whole_lse.tensor, 0, 101);
    if (s.world.rank() == 0) row.all = compare(s.whole(), truth);
    rows.push_back(row);
  }
  std::vector<std::vector<double>> one(rows.size()), all(rows.size()), speedup(rows.size()), cpu(rows.size());
  for (int run = 0; run < bench.settings.runs.value_or(bench.settings.cpu_runs); ++run)
    for (std::size_t m = 0; m < rows.size(); ++m) {
      one[m].push_back(run_on_one(s, *rows[m].method, alone));
      all[m].push_back(run_on_all(s, *rows[m].method, together));
      speedup[m].push_back(one[m].back() / all[m].back());
      const std::vector<RankRun> runs = collect(s.comm(), together);
      double sum = 0;
      for (const RankRun& of_rank : runs) sum += of_rank.cpu;
      cpu[m].push_back(alone.cpu / sum);
      if (run == 0) add_statistics(rows[m], runs);
    }
  for (std::size_t m = 0; m < rows.size(); ++m)
    rows[m].one_ms = spread_of(one[m]), rows[m].all_ms = spread_of(all[m]), rows[m].speedup = spread_of(speedup[m]),
    rows[m].cpu = spread_of(cpu[m]);
  return rows;
}

void print(const Setting& s, const std::vector<RanksRow>& rows) {
  Table table{.header = {"method", "rel L1, one rank", "rel L1, all", "LSE max, one", "LSE max, all", "one rank ms", "all ranks ms",
                         "speed-up", "min ... max", "CPU time", "bytes a number", "sent", "exposed", "balance"},
              .rows = {}};
  for (const RanksRow& r : rows)
    table.rows.push_back(
        {std::string(r.method->name), relative(r.one.relative_l1), relative(r.all.relative_l1), scientific(r.one.lse_max_diff),
         scientific(r.all.lse_max_diff), milliseconds(r.one_ms.median), milliseconds(r.all_ms.median),
         fmt::format("{:.2f}x", r.speedup.median), fmt::format("{:.2f} ... {:.2f}", r.speedup.min, r.speedup.max),
         fmt::format("{:.2f}x", r.cpu.median), std::isnan(r.bytes_a_number) ? "-" : fmt::format("{:.3f}", r.bytes_a_number),
         fmt::format("{:.2f} MB", r.megabytes), fmt::format("{:.0f} %", 100 * r.exposed), fmt::format("{:.0f} %", 100 * r.balance)});
  const Shape& q = s.w.query.shape;
  fmt::print("\n## {}: {}, batch {}, {} ({} of keys), dim {}, {}, {}\n\n{}", s.w.data, count(q[2], "token"), q[0], count(q[1], "head"),
             s.w.key.shape[1], q[3], name(s.w.query.type), window_text(s.w.window), table.markdown());
  std::fflush(stdout);
}

Json json_of(const Setting& s, const RanksRow& r) {
  const Shape& q = s.w.query.shape;
  const dist::Ranks& ranks = s.task.ranks;
  return {{"method", r.method->name},
          {"data", s.w.data},
          {"dtype", name(s.w.query.type)},
          {"batch", q[0]},
          {"heads", q[1]},
          {"kv_heads", s.w.key.shape[1]},
          {"dim", q[3]},
          {"tokens", q[2]},
          {"window", window_text(s.w.window)},
          {"ring", ranks.ring},
          {"ulysses", ranks.ulysses},
          {"threads_a_rank", s.threads},
          {"one_rank_rel_l1", json_number(r.one.relative_l1)},
          {"rel_l1", json_number(r.all.relative_l1)},
          {"one_rank_lse_max_diff", json_number(r.one.lse_max_diff)},
          {"lse_max_diff", json_number(r.all.lse_max_diff)},
          {"one_rank_ms", json_number(r.one_ms.median)},
          {"ms", json_number(r.all_ms.median)},
          {"ms_min", json_number(r.all_ms.min)},
          {"ms_max", json_number(r.all_ms.max)},
          {"speedup", json_number(r.speedup.median)},
          {"speedup_min", json_number(r.speedup.min)},
          {"speedup_max", json_number(r.speedup.max)},
          {"cpu_time", json_number(r.cpu.median)},
          {"kv_bytes_a_number", json_number(r.bytes_a_number)},
          {"sent_mb", json_number(r.megabytes)},
          {"exposed", json_number(r.exposed)},
          {"balance", json_number(r.balance)}};
}

}  // namespace

void bench_on_ranks(World& world, const RanksBench& bench) {
  const bool speaks = world.rank() == 0;
  const dist::Ranks& ranks = world.parts().ranks;
  const std::optional<int> asked = bench.source.asked_threads();
  if (speaks) {
    fmt::print("Machine: {}\nRanks: ring {} x ulysses {}, {} each; one rank alone has {}.\n",
               machine_text(Device::cpu, threads_alone(world, asked), ""), ranks.ring, ranks.ulysses, count(world.threads(asked), "thread"),
               count(threads_alone(world, asked), "thread"));
    fmt::print(
        "Times: median of {}, one rank and all in turn, from tensors as they came, quantisation included. Speed-up: of each such pair of "
        "runs.\n"
        "Bytes a number: of keys and values that were sent, scales included. Sent: by all ranks, with queries and results. Exposed: the "
        "part of "
        "a rank's time in which it waited for others. Balance: the mean of the ranks' work over the most.\n",
        runs_text(bench.settings, Device::cpu));
  }
  Json rows_json = Json::array();
  for (const std::string& data : bench.source.data())
    for (const std::int64_t tokens : bench.lengths) {
      Workload w;
      std::optional<Setting> setting;
      Truth truth;
      world.together([&] {
        w = bench.source.make(data, tokens);
        setting.emplace(setting_of(world, w, asked));
        if (speaks) truth = truth_of(w, spread_rows(w.query.shape[2], bench.rows ? bench.rows : affordable_rows(w)));
      });
      const std::vector<RanksRow> rows = measure(*setting, bench, truth);
      if (!speaks) continue;
      print(*setting, rows);
      for (const RanksRow& row : rows) rows_json.push_back(json_of(*setting, row));
    }
  world.together([&] {
    if (!speaks) return;
    if (bench.csv->wanted()) bench.csv->write(csv(rows_json));
    if (bench.json->wanted())
      bench.json->write(Json{{"machine", machine_json(Device::cpu, threads_alone(world, asked), "")}, {"rows", rows_json}}.dump(2) + "\n");
  });
}

}  // namespace chitu::cli
