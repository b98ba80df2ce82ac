// SPDX-License-Identifier: Apache-2.0
// Plans of all ranks at once, against the mask's definition: each pair of query and key that it allows is computed once.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <tuple>

#include "chitu/dist.h"

namespace chitu::dist {
namespace {

const std::vector<Sharding> shardings{Sharding::contiguous, Sharding::zigzag, Sharding::striped, Sharding::whole};
const std::vector<Window> windows{everything, causal, {7, 0}, {3, 5}, {0, 0}, {unbounded, 4}};

std::vector<Plan> plans_of(const Task& task) {
  std::vector<Plan> plans;
  for (int rank = 0; rank < task.ranks.size(); ++rank) plans.push_back(plan(task, rank));
  return plans;
}

// All ways to write `size` as ring x ulysses.
std::vector<Ranks> degrees(int size) {
  std::vector<Ranks> all;
  for (int ulysses = 1; ulysses <= size; ++ulysses)
    if (size % ulysses == 0) all.push_back({size / ulysses, ulysses});
  return all;
}

std::string text(const Task& task, Sharding sharding) {
  std::ostringstream out;
  out << "ring " << task.ranks.ring << ", ulysses " << task.ranks.ulysses << ", sharding " << static_cast<int>(sharding) << ", window "
      << task.window.left << "," << task.window.right << ", joint " << task.joint << (task.joint_rear ? " rear" : "");
  return out.str();
}

std::vector<std::int64_t> positions(const Run& run) {
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < run.count; ++i) all.push_back(run.at.first + i * run.at.step);
  return all;
}

using Pair = std::tuple<std::int64_t, std::int64_t, std::int64_t>;  // sequence, positions of query and key

// Every token's position, by sequence; each must be there once.
std::map<std::int64_t, std::set<std::int64_t>> tokens(const Layout& layout) {
  std::map<std::int64_t, std::set<std::int64_t>> all;
  for (const Shard& shard : layout)
    for (const Run& run : shard)
      for (const std::int64_t p : positions(run)) EXPECT_TRUE(all[run.sequence].insert(p).second) << "token " << p << " twice";
  return all;
}

std::map<Pair, int> allowed(const Task& task) {
  auto queries = tokens(task.queries), keys = tokens(task.keys);
  if (task.joint > 0)
    for (const std::int64_t p : positions(run_of(task, task.keys, {joint_tokens, 0}))) {
      EXPECT_TRUE(queries[0].insert(p).second);
      EXPECT_TRUE(keys[0].insert(p).second);
    }
  std::map<Pair, int> pairs;
  for (const auto& [sequence, of] : queries)
    for (const std::int64_t q : of)
      for (const std::int64_t k : keys[sequence])
        if (k >= q - task.window.left && k <= q + task.window.right) pairs[{sequence, q, k}] = 1;
  return pairs;
}

// Counts the pairs that the ranks at one place of their groups compute: all of them, for that place's heads.
std::map<Pair, int> computed(const Task& task, const std::vector<Plan>& plans, int place) {
  std::map<Pair, int> pairs;
  for (int group = 0; group < task.ranks.ring; ++group)
    for (const Step& step : plans[static_cast<std::size_t>(group * task.ranks.ulysses + place)].steps)
      for (const Call& call : step.calls) {
        const Run k = run_of(task, task.keys, call.key);
        std::int64_t count = 0, all = 0;
        for (int run = 0; run < call.query_runs; ++run) {
          const Run q = run_of(task, task.queries, {call.query.rank, call.query.run + run});
          EXPECT_EQ(q.sequence, k.sequence);
          all += q.count * k.count;
          for (const std::int64_t i : positions(q))
            for (const std::int64_t j : positions(k))
              if (j >= i - task.window.left && j <= i + task.window.right) ++pairs[{q.sequence, i, j}], ++count;
        }
        EXPECT_EQ(count, call.pairs);
        EXPECT_GT(count, 0) << "a call without work";
        EXPECT_TRUE(call.query_runs == 1 || count == all) << "runs are joined, but there is a mask";
      }
  return pairs;
}

// What a rank uses it has, or receives in the same step, and it uses all that it receives. What it receives is sent.
void expect_fitting_transfers(const Task& task, const std::vector<Plan>& plans) {
  for (int rank = 0; rank < task.ranks.size(); ++rank) {
    const Plan& mine = plans[static_cast<std::size_t>(rank)];
    ASSERT_EQ(mine.steps.size(), static_cast<std::size_t>(task.ranks.ring) + 1);
    for (std::size_t s = 0; s < mine.steps.size(); ++s) {
      std::set<std::pair<int, int>> used, received;
      for (const Call& call : mine.steps[s].calls)
        if (call.key.rank != joint_tokens && call.key.rank != rank) used.insert({call.key.rank, call.key.run});
      for (const Transfer& from : mine.steps[s].receives) {
        for (const int run : from.runs) EXPECT_TRUE(received.insert({from.peer, run}).second);
        const auto& sends = plans[static_cast<std::size_t>(from.peer)].steps[s].sends;
        EXPECT_EQ(std::count_if(sends.begin(), sends.end(), [&](const Transfer& to) { return to.peer == rank && to.runs == from.runs; }),
                  1);
      }
      EXPECT_EQ(used, received) << "rank " << rank << ", step " << s;
      for (const Transfer& to : mine.steps[s].sends) {
        const auto& receives = plans[static_cast<std::size_t>(to.peer)].steps[s].receives;
        EXPECT_TRUE(std::any_of(receives.begin(), receives.end(), [&](const Transfer& from) { return from.peer == rank; }));
      }
    }
  }
}

void expect_complete(const Task& task, const std::string& what) {
  SCOPED_TRACE(what);
  const std::vector<Plan> plans = plans_of(task);
  const auto wanted = allowed(task);
  for (int place = 0; place < task.ranks.ulysses; ++place) EXPECT_TRUE(computed(task, plans, place) == wanted) << "place " << place;
  expect_fitting_transfers(task, plans);
}

class Worlds : public testing::TestWithParam<int> {};

TEST_P(Worlds, EachPairIsComputedOnce) {
  for (const Ranks& ranks : degrees(GetParam()))
    for (const Sharding sharding : shardings)
      for (const Window& window : windows)
        for (const std::int64_t n : {1, 37, 70}) {
          const std::int64_t queries[] = {n}, keys[] = {n % 2 ? n : n + 13};
          Task task = shard(sharding, ranks, queries, keys);
          task.window = window;
          task.heads = task.kv_heads = ranks.ulysses;
          expect_complete(task, text(task, sharding));
        }
}

TEST_P(Worlds, PackedSequences) {
  const std::int64_t queries[] = {5, 0, 33, 1, 18}, keys[] = {5, 4, 33, 9, 12};
  for (const Ranks& ranks : degrees(GetParam()))
    for (const Sharding sharding : shardings)
      for (const Window& window : windows) {
        Task task = shard(sharding, ranks, queries, keys);
        task.window = window;
        task.heads = task.kv_heads = ranks.ulysses;
        expect_complete(task, text(task, sharding));
      }
}

TEST_P(Worlds, JointTokens) {
  const std::int64_t lengths[] = {41};
  for (const Ranks& ranks : degrees(GetParam()))
    for (const Sharding sharding : {Sharding::contiguous, Sharding::zigzag, Sharding::striped})
      for (const bool rear : {false, true})
        for (const Window& window : windows) {
          Task task = shard(sharding, ranks, lengths);
          task.window = window;
          task.joint = 6;
          task.joint_rear = rear;
          task.heads = task.kv_heads = ranks.ulysses;
          expect_complete(task, text(task, sharding));
        }
}

TEST_P(Worlds, ShardsOfAnySize) {
  std::mt19937 random(static_cast<unsigned>(GetParam()));
  for (const Ranks& ranks : degrees(GetParam()))
    for (const Window& window : windows) {
      std::vector<std::int64_t> sizes;
      for (int i = 0; i < ranks.size(); ++i) sizes.push_back(static_cast<std::int64_t>(random() % 12));
      Task task = shard(ranks, sizes);
      task.window = window;
      task.heads = task.kv_heads = ranks.ulysses;
      for (std::size_t rank = 0; rank < sizes.size(); ++rank) EXPECT_EQ(tokens_of(task.keys[rank]), sizes[rank]);
      expect_complete(task, text(task, Sharding::contiguous));
    }
}

TEST_P(Worlds, ZigzagAndStripesBalanceCausalWork) {
  for (const Ranks& ranks : degrees(GetParam()))
    for (const std::int64_t n : {std::int64_t{16000}, std::int64_t{100003}})
      for (const Sharding sharding : {Sharding::zigzag, Sharding::striped}) {
        const std::int64_t lengths[] = {n};
        Task task = shard(sharding, ranks, lengths);
        task.window = causal;
        task.heads = task.kv_heads = ranks.ulysses;
        std::int64_t most = 0, all = 0;
        for (const Plan& plan : plans_of(task)) most = std::max(most, plan.pairs()), all += plan.pairs();
        EXPECT_EQ(all, ranks.ulysses * (n * (n + 1) / 2));
        EXPECT_LE(static_cast<double>(most), 1.05 * static_cast<double>(all) / ranks.size()) << text(task, sharding);
      }
}

INSTANTIATE_TEST_SUITE_P(Size, Worlds, testing::Range(1, 17), testing::PrintToStringParamName());

// Both runs of a causal zigzag see all keys of a group before theirs, and that is one call.
TEST(Plan, RunsWithoutAMaskAreOneCall) {
  const std::int64_t lengths[] = {800};
  Task task = shard(Sharding::zigzag, {4, 1}, lengths);
  task.window = causal;
  const Plan two = plan(task, 2);  // steps 2, 3, 4: keys of ranks 1, 0, 3
  for (const std::size_t step : {2u, 3u}) {
    ASSERT_EQ(two.steps[step].calls.size(), 1u);
    EXPECT_EQ(two.steps[step].calls[0].query_runs, 2);
    EXPECT_EQ(two.steps[step].calls[0].pairs, 200 * 100);
  }
  const Plan one = plan(task, 1);
  EXPECT_EQ(one.steps[4].calls.size(), 2u);  // with keys of rank 2: its second run alone sees both of theirs
  for (const Call& call : one.steps[4].calls) EXPECT_EQ(call.query_runs, 1);
}

std::int64_t tokens_sent(const Task& task) {
  std::int64_t sum = 0;
  for (int rank = 0; rank < task.ranks.size(); ++rank)
    for (const Step& step : plan(task, rank).steps)
      for (const Transfer& to : step.sends)
        for (const int run : to.runs) sum += task.keys[static_cast<std::size_t>(rank)][static_cast<std::size_t>(run)].count;
  return sum;
}

TEST(Plan, SendsNothingThatNobodyNeeds) {
  const std::int64_t lengths[] = {8000};
  Task task = shard(Sharding::contiguous, {8, 1}, lengths);
  EXPECT_EQ(tokens_sent(task), 8000 * 7);
  task.window = causal;
  EXPECT_EQ(tokens_sent(task), 1000 * (7 + 6 + 5 + 4 + 3 + 2 + 1));
  task.window = {1000, 0};  // a query sees its own shard and the one before
  EXPECT_EQ(tokens_sent(task), 1000 * 7);
  task.window = {0, 0};
  EXPECT_EQ(tokens_sent(task), 0);

  Task zigzag = shard(Sharding::zigzag, {8, 1}, lengths);
  zigzag.window = causal;  // of a later group only its first part is seen
  EXPECT_EQ(tokens_sent(zigzag), 500 * (8 * 7 / 2 * 1 + 8 * 7 / 2 * 2));

  const std::int64_t packed[] = {100, 50, 60, 90, 70};
  Task whole = shard(Sharding::whole, {3, 1}, packed);
  EXPECT_EQ(tokens_sent(whole), 0);
}

TEST(Plan, KvHeads) {
  const auto task = [](int ulysses, std::int64_t heads, std::int64_t kv_heads) {
    const std::int64_t lengths[] = {64};
    Task t = shard(Sharding::contiguous, {1, ulysses}, lengths);
    t.heads = heads;
    t.kv_heads = kv_heads;
    check(t);
    return t;
  };
  for (const auto& [ulysses, heads, kv_heads] : {std::tuple{4, 16, 8}, {4, 16, 4}, {4, 16, 2}, {8, 16, 1}, {2, 6, 2}, {3, 9, 1}}) {
    const Task t = task(ulysses, heads, kv_heads);
    for (int place = 0; place < ulysses; ++place) {
      const HeadRange q = heads_of(t, place), kv = kv_heads_of(t, place);
      EXPECT_EQ(q.count % kv.count, 0);
      for (std::int64_t h = 0; h < q.count; ++h)  // as the whole call has it
        EXPECT_EQ(kv.first + h / (q.count / kv.count), (q.first + h) / (heads / kv_heads)) << ulysses << " " << heads << " " << kv_heads;
    }
  }
  const auto refused = [&](int ulysses, std::int64_t heads, std::int64_t kv_heads, const char* words) {
    try {
      task(ulysses, heads, kv_heads);
      ADD_FAILURE() << "not refused: " << words;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  };
  refused(3, 8, 8, "ulysses 3 cannot share out 8 heads");
  refused(2, 12, 3, "ulysses 2 cannot share out 3 kv heads");
  refused(2, 8, 3, "8 heads are no multiple of 3 kv heads");
}

TEST(Plan, RefusesALayoutForOtherRanks) {
  const std::int64_t lengths[] = {64};
  Task task = shard(Sharding::contiguous, {4, 1}, lengths);
  task.ranks = {2, 1};
  EXPECT_THROW(plan(task, 0), Error);
  EXPECT_THROW(plan(shard(Sharding::contiguous, {4, 1}, lengths), 4), Error);
}

TEST(Plan, VisiblePairsOfAnyRuns) {
  std::mt19937 random(5);
  const auto below = [&](int n) { return static_cast<std::int64_t>(random() % static_cast<unsigned>(n)); };
  for (int i = 0; i < 3000; ++i) {
    const dist::Run q{0, below(20), {below(60) - 30, 1 + below(5)}}, k{0, below(20), {below(60) - 30, 1 + below(5)}};
    const Window w{below(3) ? below(40) : unbounded, below(3) ? below(40) : unbounded};
    std::int64_t count = 0;
    for (const std::int64_t a : positions(q))
      for (const std::int64_t b : positions(k)) count += b >= a - w.left && b <= a + w.right;
    ASSERT_EQ(visible_pairs(w, q, k), count);
  }
  const dist::Run long_run{0, 100'000'000, {0, 1}};
  EXPECT_EQ(visible_pairs(causal, long_run, long_run), 5'000'000'050'000'000);
}

TEST(Plan, CostOfARingFollowsTheDefinition) {
  const std::int64_t lengths[] = {4096};
  Task task = shard(Sharding::contiguous, {4, 1}, lengths);
  task.heads = 16, task.kv_heads = 4;
  const Model model{.dim = 128, .operations_per_second = 1e12, .link = {"a link", 1e9, 0}};
  const Cost c = cost(task, plan(task, 1), 1, model);
  const double compute = 4. * 128 * 16 * 1024 * 1024 / 1e12, receive = 2. * 1024 * 4 * 128 / 1e9;
  ASSERT_EQ(c.steps.size(), 5u);
  EXPECT_DOUBLE_EQ(c.steps[0].compute, compute);
  EXPECT_EQ(c.steps[1].bytes, 0);
  EXPECT_EQ(c.steps[2].bytes, 2 * 1024 * 4 * 128);
  EXPECT_DOUBLE_EQ(c.steps[3].exposed, std::max(0., receive - compute));
  EXPECT_EQ(c.queries, 0);
}

}  // namespace
}  // namespace chitu::dist
