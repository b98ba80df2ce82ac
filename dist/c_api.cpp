// SPDX-License-Identifier: Apache-2.0
// The C interface of plans: each function converts its arguments, calls the C++ one, and turns what is thrown into a status.
#include <array>
#include <cstdio>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "chitu/dist.h"
#include "chitu/dist_c.h"

struct chitu_shards {
  chitu::dist::Task task;
  std::vector<std::vector<chitu_run>> queries, keys;  // by rank
};

struct chitu_plan {
  std::vector<chitu_call> calls;
  std::vector<chitu_transfer> transfers;
  std::vector<int64_t> heads;
  chitu_run joint{};
  int32_t steps = 0;
  size_t places = 0;
};

namespace {

using chitu::require;
namespace dist = chitu::dist;

thread_local std::array<char, 4096> last_error{};

chitu_status fail(chitu_status status, const char* what) {
  std::snprintf(last_error.data(), last_error.size(), "%s", what);
  return status;
}

template <class Body>
chitu_status guarded(const Body& body) noexcept {
  try {
    body();
    return CHITU_OK;
  } catch (const chitu::Error& error) {
    return fail(static_cast<chitu_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(CHITU_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return fail(CHITU_INTERNAL, error.what());
  } catch (...) {
    return fail(CHITU_INTERNAL, "unknown exception");
  }
}

chitu_run run_of(const dist::Run& run) { return {run.sequence, run.count, run.at.first, run.at.step}; }

std::vector<std::vector<chitu_run>> runs_of(const dist::Layout& layout) {
  std::vector<std::vector<chitu_run>> all;
  for (const dist::Shard& shard : layout) {
    all.emplace_back();
    for (const dist::Run& run : shard) all.back().push_back(run_of(run));
  }
  return all;
}

chitu_shards* made(dist::Task task) {
  auto queries = runs_of(task.queries), keys = runs_of(task.keys);
  return new chitu_shards{std::move(task), std::move(queries), std::move(keys)};
}

dist::Ranks ranks_of(int32_t ring, int32_t ulysses) {
  constexpr int most = 1 << 20;
  require(ring >= 1 && ulysses >= 1 && ring <= most && ulysses <= most / ring, "ring ", ring, " and ulysses ", ulysses,
          " must be 1 or more, and no more than ", most, " ranks together");
  return {ring, ulysses};
}

std::int64_t bound(int64_t given, const char* name) {
  require(given >= -1, name, " is ", given, "; it must be 0 or more, or -1 for no bound");
  return given == -1 ? chitu::unbounded : given;
}

dist::Task task_of(const chitu_shards& shards, const chitu_task& t) {
  require(t.struct_size == sizeof t, "chitu_task.struct_size is ", t.struct_size, "; it must be sizeof(chitu_task), here ", sizeof t);
  require(t.reserved == 0, "chitu_task.reserved is ", t.reserved, "; it must be 0");
  dist::Task task = shards.task;
  task.window = {bound(t.window_left, "window_left"), bound(t.window_right, "window_right")};
  task.heads = t.heads;
  task.kv_heads = t.kv_heads;
  task.joint = t.joint;
  task.joint_rear = t.joint_rear != 0;
  return task;
}

void add_step(const dist::Step& step, int32_t number, chitu_plan& plan) {
  for (const dist::Call& c : step.calls)
    plan.calls.push_back({number, c.query.rank, c.query.run, c.query_runs, c.key.rank, c.key.run, c.pairs});
  for (const bool is_send : {false, true})
    for (const dist::Transfer& transfer : is_send ? step.sends : step.receives)
      for (const int run : transfer.runs) plan.transfers.push_back({number, transfer.peer, run, is_send});
}

chitu_plan* made(const dist::Task& task, int32_t rank) {
  const dist::Plan steps = dist::plan(task, rank);
  auto plan = std::make_unique<chitu_plan>();
  for (const dist::Step& step : steps.steps) add_step(step, plan->steps++, *plan);
  for (int place = 0; place < task.ranks.ulysses; ++place) {
    const dist::HeadRange heads = dist::heads_of(task, place), kv = dist::kv_heads_of(task, place);
    for (const int64_t x : {heads.first, heads.count, kv.first, kv.count}) plan->heads.push_back(x);
  }
  plan->places = static_cast<size_t>(task.ranks.ulysses);
  if (task.joint > 0) plan->joint = run_of(dist::run_of(task, task.queries, {dist::joint_tokens, 0}));
  return plan.release();
}

}  // namespace

extern "C" {

int32_t chitu_dist_abi_version(void) { return CHITU_DIST_ABI_VERSION; }
const char* chitu_dist_last_error(void) { return last_error.data(); }

chitu_status chitu_shards_make(int32_t sharding, int32_t ring, int32_t ulysses, const int64_t* query_lengths, const int64_t* key_lengths,
                               size_t count, chitu_shards** shards) {
  return guarded([&] {
    require(shards, "shards is NULL");
    require(query_lengths || count == 0, "query_lengths is NULL, but count is ", count);
    require(sharding >= CHITU_CONTIGUOUS && sharding <= CHITU_WHOLE, "sharding is ", sharding,
            "; it must be 0 (contiguous), 1 (zigzag), 2 (striped) or 3 (whole)");
    *shards = made(dist::shard(static_cast<dist::Sharding>(sharding), ranks_of(ring, ulysses), {query_lengths, count},
                               {key_lengths, key_lengths ? count : 0}));
  });
}

chitu_status chitu_shards_of_sizes(int32_t ring, int32_t ulysses, const int64_t* tokens_of_rank, chitu_shards** shards) {
  return guarded([&] {
    require(shards, "shards is NULL");
    require(tokens_of_rank, "tokens_of_rank is NULL");
    const dist::Ranks ranks = ranks_of(ring, ulysses);
    *shards = made(dist::shard(ranks, {tokens_of_rank, static_cast<size_t>(ranks.size())}));
  });
}

void chitu_shards_free(chitu_shards* shards) { delete shards; }

chitu_status chitu_shards_runs(const chitu_shards* shards, int32_t rank, int32_t of_keys, const chitu_run** runs, size_t* count) {
  return guarded([&] {
    require(shards && runs && count, "shards, runs or count is NULL");
    const auto& all = of_keys ? shards->keys : shards->queries;
    require(rank >= 0 && static_cast<size_t>(rank) < all.size(), "rank ", rank, " is not one of ", all.size());
    *runs = all[static_cast<size_t>(rank)].data();
    *count = all[static_cast<size_t>(rank)].size();
  });
}

chitu_status chitu_plan_make(const chitu_shards* shards, const chitu_task* task, int32_t rank, chitu_plan** plan) {
  return guarded([&] {
    require(shards && task && plan, "shards, task or plan is NULL");
    *plan = made(task_of(*shards, *task), rank);
  });
}

void chitu_plan_free(chitu_plan* plan) { delete plan; }

chitu_status chitu_plan_view(const chitu_plan* plan, chitu_plan_parts* parts) {
  return guarded([&] {
    require(plan && parts, "plan or parts is NULL");
    const size_t size = parts->struct_size;
    require(size == sizeof *parts, "parts.struct_size is ", size, "; it must be sizeof(chitu_plan_parts), here ", sizeof *parts);
    *parts = {size,
              plan->steps,
              0,
              plan->calls.data(),
              plan->calls.size(),
              plan->transfers.data(),
              plan->transfers.size(),
              plan->heads.data(),
              plan->places,
              plan->joint};
  });
}

}  // extern "C"
