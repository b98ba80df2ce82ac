// SPDX-License-Identifier: Apache-2.0
// Run by mpirun with any number of ranks: attention over these ranks against the same call on one. Each rank makes the whole data, and
// compares its own part. `ranks_test stall` and `ranks_test kill`: a rank stops, and the job must end.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <map>
#include <sstream>
#include <thread>

#include "chitu/chitu.h"
#include "chitu/dist_mpi.h"
#include "support.h"

namespace chitu::dist {
namespace {

using test::Array;
using test::Random;

Communicator* world = nullptr;

std::vector<Ranks> degrees() {
  std::vector<Ranks> all;
  for (int ulysses = 1; ulysses <= world->size(); ++ulysses)
    if (world->size() % ulysses == 0) all.push_back({world->size() / ulysses, ulysses});
  return all;
}

// Heads that Ulysses can share out.
std::int64_t heads_for(const Ranks& ranks) { return ranks.ulysses == 3 ? 6 : 8; }

struct Data {
  Array query, key, value;
};

// Keys have a large common part, which methods that centre them take out, and which the LSE must get back.
Data data(const Shape& query, const Shape& key, DType type, std::uint64_t seed) {
  Random random(seed);
  const auto filled = [&](const Shape& shape, float common) {
    return Array(type, shape).fill([&](std::int64_t, std::int64_t h, std::int64_t, std::int64_t c) {
      return random.normal() + common * static_cast<float>((h + c) % 3 - 1);
    });
  };
  return {filled(query, 0), filled(key, 2), filled(key, 0)};
}

// Copies the tokens of a shard from the whole tensor to the rank's, or back. Position p of sequence i is token first[i] + p of the whole.
void copy_part(const Shard& shard, const std::vector<std::int64_t>& first, const Tensor& whole, const Tensor& mine, bool to_mine) {
  const auto row = [](const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t token) {
    return static_cast<std::byte*>(t.data) + (b * t.stride[0] + h * t.stride[1] + token * t.stride[2]) * bytes(t.type);
  };
  const auto size = static_cast<std::size_t>(whole.shape[3] * bytes(whole.type));
  std::int64_t at = 0;
  for (const Run& run : shard)
    for (std::int64_t i = 0; i < run.count; ++i, ++at)
      for (std::int64_t b = 0; b < whole.shape[0]; ++b)
        for (std::int64_t h = 0; h < whole.shape[1]; ++h) {
          const std::int64_t token = first[static_cast<std::size_t>(run.sequence)] + run.at.first + i * run.at.step;
          std::byte *const there = row(whole, b, h, token), *const here = row(mine, b, h, at);
          std::memcpy(to_mine ? here : there, to_mine ? there : here, size);
        }
}

Array part(const Tensor& whole, const Shard& shard, const std::vector<std::int64_t>& first) {
  Array result(whole.type, {whole.shape[0], whole.shape[1], tokens_of(shard), whole.shape[3]});
  copy_part(shard, first, whole, result, true);
  return result;
}

test::Difference lse_difference(const std::vector<float>& x, const std::vector<float>& y) {
  return test::difference(x, std::vector<double>(y.begin(), y.end()));
}

// A call on all ranks, and what one rank makes of it.
struct Case {
  Task task;
  Data whole;
  Recipe recipe;
  DType out = DType::f32;
  std::vector<std::int64_t> query_starts{0}, key_starts{0};  // of several sequences: their starts; of one: just 0
  chitu::Options options{};
};

std::string text(const Case& c, std::string_view method) {
  const Task& t = c.task;
  return std::string(method) + ", ring " + std::to_string(t.ranks.ring) + ", ulysses " + std::to_string(t.ranks.ulysses) + ", window " +
         std::to_string(t.window.left) + "," + std::to_string(t.window.right) + ", heads " + std::to_string(t.heads) + ":" +
         std::to_string(t.kv_heads) + ", rank " + std::to_string(world->rank());
}

// The same call is asked for with each layout, so results are kept.
const test::Result& on_one_rank(const Case& c, const Recipe& recipe) {
  std::ostringstream key;
  for (const Method& method : methods)
    if (method.recipe == recipe) key << method.name;
  key << ' ' << c.task.window.left << ' ' << c.task.window.right << ' ' << c.whole.query.numbers()[0] << ' ' << c.whole.key.numbers()[0];
  for (const std::int64_t size : c.whole.query.shape()) key << ' ' << size;
  for (const std::int64_t size : c.whole.key.shape()) key << ' ' << size;
  static std::map<std::string, test::Result> results;
  const auto [at, missing] = results.try_emplace(key.str());
  if (!missing) return at->second;
  chitu::Options options{.recipe = recipe, .window = c.task.window, .threads = 1};
  if (c.query_starts.size() > 1) options.query_starts = c.query_starts, options.key_starts = c.key_starts;
  return at->second = test::attend(c.whole.query.tensor(), c.whole.key.tensor(), c.whole.value.tensor(), options);
}

// The whole result of all ranks against that of one, the errors of both measured against the truth.
void expect_close(const Case& c, const test::Result& all) {
  const test::Result& one = on_one_rank(c, c.recipe);
  const double rounding = test::rounding_of(c.out);
  if (c.recipe == recipes::exact) {
    EXPECT_LE(test::relative_l1(all.out.numbers(), one.out.numbers()), 1e-6 + rounding);
    EXPECT_LE(lse_difference(all.lse.numbers(), one.lse.numbers()).largest, 1e-5);
    return;
  }
  const test::Result& truth = on_one_rank(c, recipes::exact);
  EXPECT_LE(test::relative_l1(all.out.numbers(), truth.out.numbers()),
            test::relative_l1(one.out.numbers(), truth.out.numbers()) + 2e-3 + rounding);
  // Which row's LSE is the worst, and by how much, is chance; the mean is not.
  const test::Difference own = lse_difference(one.lse.numbers(), truth.lse.numbers()),
                         lse = lse_difference(all.lse.numbers(), truth.lse.numbers());
  EXPECT_LE(lse.mean, own.mean + 2e-3);
  EXPECT_LE(lse.largest, 3 * own.largest + 2e-3);
}

// Where queries of sequence i stand: position p is token first[i] + p of the tensor.
std::vector<std::int64_t> firsts(const Case& c, bool keys) {
  if (c.query_starts.size() == 1) return {keys ? 0 : c.whole.query.shape()[2] - c.whole.key.shape()[2]};
  std::vector<std::int64_t> first;
  for (std::size_t i = 0; i + 1 < c.query_starts.size(); ++i) {
    const std::int64_t queries = c.query_starts[i + 1] - c.query_starts[i], of_keys = c.key_starts[i + 1] - c.key_starts[i];
    first.push_back(keys ? c.key_starts[i] : c.query_starts[i] + queries - of_keys);
  }
  return first;
}

// This rank's part of the result.
test::Result on_all_ranks(const Case& c, Stats* stats = nullptr) {
  const auto rank = static_cast<std::size_t>(world->rank());
  const Array query = part(c.whole.query, c.task.queries[rank], firsts(c, false)),
              key = part(c.whole.key, c.task.keys[rank], firsts(c, true)), value = part(c.whole.value, c.task.keys[rank], firsts(c, true));
  const Shape& s = query.shape();
  test::Result result{Array(c.out, s), Array(DType::f32, {s[0], s[1], s[2], 1})};
  attention(*world, c.task, query, key, value, {result.out, result.lse}, {.recipe = c.recipe, .threads = 1, .timeout = 60, .stats = stats});
  return result;
}

// On rank 0 the whole result, from all ranks' parts; on the others it is empty.
test::Result gather(const Case& c, test::Result mine, const std::vector<std::int64_t>& first) {
  const auto raw = [](const Array& x) { return std::as_writable_bytes(std::span(const_cast<std::vector<std::byte>&>(x.raw()))); };
  if (world->rank() != 0) {
    wait(*world, world->send(0, 100, raw(mine.out)), 60, "rank 0");
    wait(*world, world->send(0, 101, raw(mine.lse)), 60, "rank 0");
    return {};
  }
  const Shape& s = c.whole.query.shape();
  test::Result whole{Array(c.out, s), Array(DType::f32, {s[0], s[1], s[2], 1})};
  for (int rank = 0; rank < world->size(); ++rank) {
    const Shard& shard = c.task.queries[static_cast<std::size_t>(rank)];
    if (rank > 0) {
      mine = {Array(c.out, {s[0], s[1], tokens_of(shard), s[3]}), Array(DType::f32, {s[0], s[1], tokens_of(shard), 1})};
      wait(*world, world->receive(rank, 100, raw(mine.out)), 60, "a rank");
      wait(*world, world->receive(rank, 101, raw(mine.lse)), 60, "a rank");
    }
    copy_part(shard, first, whole.out, mine.out, false);
    copy_part(shard, first, whole.lse, mine.lse, false);
  }
  return whole;
}

void expect_as_one_rank(const Case& c, std::string_view method, Stats* stats = nullptr) {
  SCOPED_TRACE(text(c, method));
  const test::Result all = gather(c, on_all_ranks(c, stats), firsts(c, false));
  if (world->rank() == 0) expect_close(c, all);
}

Case one_sequence(Sharding sharding, const Ranks& ranks, std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads,
                  const Method& method, const Window& window, std::int64_t queries = -1) {
  const std::int64_t q[] = {queries < 0 ? tokens : queries}, k[] = {tokens};
  Case c{.task = shard(sharding, ranks, q, k),
         .whole = data({1, heads, q[0], 32}, {1, kv_heads, tokens, 32}, DType::f32, 7),
         .recipe = method.recipe};
  c.task.heads = heads;
  c.task.kv_heads = kv_heads;
  c.task.window = window;
  return c;
}

const std::vector<Sharding> spreads{Sharding::contiguous, Sharding::zigzag, Sharding::striped};
const std::vector<Window> windows{everything, causal, {150, 20}};

TEST(Ranks, EachMethodAndSharding) {
  for (const Ranks& ranks : degrees())
    for (const Sharding sharding : spreads)
      for (const Window& window : windows)
        for (const Method& method : methods) {
          if (window != causal && method.name != "exact" && method.name != "chitu") continue;
          expect_as_one_rank(one_sequence(sharding, ranks, 500, heads_for(ranks), heads_for(ranks), method, window), method.name);
        }
}

TEST(Ranks, GroupedHeads) {
  for (const Ranks& ranks : degrees())
    for (const std::int64_t kv_heads : {1, 2, 3, 4})
      for (const char* name : {"exact", "chitu"}) {
        if (heads_for(ranks) % kv_heads != 0 || (kv_heads % ranks.ulysses != 0 && ranks.ulysses % kv_heads != 0)) continue;
        const Method& method = find_method(name);
        expect_as_one_rank(one_sequence(Sharding::zigzag, ranks, 411, heads_for(ranks), kv_heads, method, causal), name);
      }
}

TEST(Ranks, FewQueriesOfManyKeys) {
  for (const Ranks& ranks : degrees())
    for (const Window& window : windows)
      expect_as_one_rank(
          one_sequence(Sharding::contiguous, ranks, 500, heads_for(ranks), heads_for(ranks), find_method("exact"), window, 90), "exact");
}

TEST(Ranks, MoreRanksThanTokens) {
  for (const Ranks& ranks : degrees())
    for (const Sharding sharding : spreads)
      expect_as_one_rank(one_sequence(sharding, ranks, 3, heads_for(ranks), heads_for(ranks), find_method("exact"), causal), "exact");
}

TEST(Ranks, SixteenBitTensors) {
  for (const Ranks& ranks : degrees())
    for (const DType type : {DType::f16, DType::bf16})
      for (const char* name : {"exact", "sage", "chitu"}) {
        Case c = one_sequence(Sharding::zigzag, ranks, 300, heads_for(ranks), heads_for(ranks) / 2, find_method(name), causal);
        c.whole = data({2, heads_for(ranks), 300, 32}, {2, heads_for(ranks) / 2, 300, 32}, type, 9);  // and two batch entries
        c.out = type;
        if (c.recipe == recipes::exact && type == DType::bf16) continue;  // its kernel rounds weights, each to its own call's maximum
        expect_as_one_rank(c, name);
      }
}

TEST(Ranks, PackedSequences) {
  for (const Ranks& ranks : degrees())
    for (const Sharding sharding : {Sharding::contiguous, Sharding::zigzag, Sharding::striped, Sharding::whole})
      for (const char* name : {"exact", "chitu"}) {
        const std::vector<std::int64_t> queries{130, 0, 257, 5, 60}, keys{130, 20, 257, 9, 60};
        Case c{.task = shard(sharding, ranks, queries, keys),
               .whole = data({1, heads_for(ranks), 452, 32}, {1, heads_for(ranks) / 2, 476, 32}, DType::f32, 11),
               .recipe = find_method(name).recipe};
        c.task.heads = heads_for(ranks);
        c.task.kv_heads = heads_for(ranks) / 2;
        c.task.window = causal;
        for (const std::int64_t n : queries) c.query_starts.push_back(c.query_starts.back() + n);
        for (const std::int64_t n : keys) c.key_starts.push_back(c.key_starts.back() + n);
        expect_as_one_rank(c, name);
      }
}

TEST(Ranks, ShardsOfAnySize) {
  for (const Ranks& ranks : degrees()) {
    std::vector<std::int64_t> sizes;
    std::int64_t all = 0;
    for (int i = 0; i < ranks.size(); ++i) sizes.push_back(i % 3 == 1 ? 0 : 40 + 33 * i), all += sizes.back();
    Case c = one_sequence(Sharding::contiguous, ranks, all, heads_for(ranks), heads_for(ranks), find_method("chitu"), causal);
    const Task uneven = shard(ranks, sizes);
    c.task.queries = uneven.queries;
    c.task.keys = uneven.keys;
    expect_as_one_rank(c, "chitu");
  }
}

// A key or value that is not finite travels with its exact numbers.
TEST(Ranks, NotFinite) {
  for (const Ranks& ranks : degrees()) {
    Case c = one_sequence(Sharding::contiguous, ranks, 300, heads_for(ranks), heads_for(ranks), find_method("chitu"), causal);
    c.whole.key.set(0, 3, 250, 5, NAN);    // key
    c.whole.query.set(0, 0, 0, 0, 0.25f);  // not another case's data
    c.whole.value.set(0, 5, 120, 7, INFINITY);
    const test::Result all = gather(c, on_all_ranks(c), {0});
    if (world->rank() != 0) continue;
    const std::vector<float> expected = on_one_rank(c, c.recipe).out.numbers(), got = all.out.numbers();
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(std::isnan(got[i]), std::isnan(expected[i])) << i;
      EXPECT_EQ(std::isinf(got[i]), std::isinf(expected[i])) << i;
    }
  }
}

TEST(Ranks, JointTokens) {
  constexpr std::int64_t text_tokens = 20, tokens = 330;
  for (const Ranks& ranks : degrees())
    for (const bool rear : {false, true})
      for (const Window& window : windows)
        for (const char* name : {"exact", "chitu"}) {
          const Method& method = find_method(name);
          const std::int64_t heads = heads_for(ranks);
          Case c = one_sequence(Sharding::contiguous, ranks, tokens, heads, heads / 2, method, window);
          c.task.joint = text_tokens;
          c.task.joint_rear = rear;
          c.whole = data({1, heads, tokens + text_tokens, 32}, {1, heads / 2, tokens + text_tokens, 32}, DType::f32, 13);
          const std::vector<std::int64_t> own_first{rear ? 0 : text_tokens};
          const std::int64_t joint_first = rear ? tokens : 0;
          const auto rank = static_cast<std::size_t>(world->rank());
          const Array query = part(c.whole.query, c.task.queries[rank], own_first), key = part(c.whole.key, c.task.keys[rank], own_first),
                      value = part(c.whole.value, c.task.keys[rank], own_first);
          const auto joint = [&](const Tensor& t) { return test::tokens_of(t, joint_first, joint_first + text_tokens); };
          const Shape& s = query.shape();
          const Array out(DType::f32, s), lse(DType::f32, {1, heads, s[2], 1}), joint_out(DType::f32, {1, heads, text_tokens, 32}),
              joint_lse(DType::f32, {1, heads, text_tokens, 1});
          attention(*world, c.task, query, key, value, {out, lse},
                    {.recipe = c.recipe,
                     .threads = 1,
                     .joint = {joint(c.whole.query), joint(c.whole.key), joint(c.whole.value), joint_out, joint_lse}});
          SCOPED_TRACE(text(c, name) + (rear ? ", rear" : ", front"));
          const test::Result all = gather(c, {out, lse}, own_first);
          // Each rank has the joint result, and all have the same bits.
          std::vector<std::byte> first = joint_out.raw();
          if (world->rank() == 0)
            for (int other = 1; other < world->size(); ++other) {
              std::vector<std::byte> theirs(first.size());
              wait(*world, world->receive(other, 102, theirs), 60, "a rank");
              EXPECT_TRUE(theirs == first) << "rank " << other;
            }
          else
            wait(*world, world->send(0, 102, first), 60, "rank 0");
          if (world->rank() != 0) continue;
          copy_part({{0, text_tokens, {0, 1}}}, {joint_first}, all.out, joint_out, false);
          copy_part({{0, text_tokens, {0, 1}}}, {joint_first}, all.lse, joint_lse, false);
          expect_close(c, all);
        }
}

// INT8 methods send little more than a byte for each number of a key or value.
TEST(Ranks, BytesOnTheWire) {
  for (const Ranks& ranks : degrees())
    for (const auto& [name, most] : {std::pair{"chitu", 1.1}, {"int8", 1.1}, {"sage", 1.6}, {"exact", 4.1}}) {
      const std::int64_t tokens = 1024 * world->size(), lengths[] = {tokens}, heads = ranks.ulysses;
      Case c{.task = shard(Sharding::contiguous, ranks, lengths),
             .whole = data({1, heads, tokens, 64}, {1, heads, tokens, 64}, DType::f32, 3),
             .recipe = find_method(name).recipe};
      c.task.heads = c.task.kv_heads = heads;
      c.task.window = {100, 0};
      Stats stats;
      on_all_ranks(c, &stats);
      if (stats.kv_numbers == 0) continue;
      EXPECT_LE(static_cast<double>(stats.kv_bytes) / static_cast<double>(stats.kv_numbers), most) << name << " on rank " << world->rank();
    }
}

// All ranks must get this error, and before anything moves.
void expect_refused(const std::function<void()>& call, ErrorCode code, const std::string& words) {
  test::expect_error(call, code, {words});
}

TEST(Refusals, OfEveryRankAlike) {
  const int n = world->size();
  Case c = one_sequence(Sharding::contiguous, {n, 1}, 64, 8, 8, find_method("chitu"), causal);
  const Case good = c;
  c.task.ranks = {n + 1, 1};
  expect_refused([&] { on_all_ranks(c); }, ErrorCode::bad_argument, "laid out for");
  const std::int64_t lengths[] = {64};
  c.task = shard(Sharding::contiguous, {n + 1, 1}, lengths);
  c.task.heads = c.task.kv_heads = 8;
  expect_refused([&] { on_all_ranks(c); }, ErrorCode::bad_argument,
                 "is " + std::to_string(n + 1) + " ranks, but there are " + std::to_string(n));
  c = good;
  c.task.ranks = {1, n};
  c.task.heads = n + 1;
  c.task.kv_heads = 1;
  if (n > 1) expect_refused([&] { on_all_ranks(c); }, ErrorCode::bad_argument, "cannot share out " + std::to_string(n + 1) + " heads");
  on_all_ranks(good);  // nothing is left over from the calls that were refused
}

TEST(Refusals, OfWhatOneRankHasOtherwise) {
  const int n = world->size(), last = n - 1;
  if (n == 1) GTEST_SKIP() << "one rank agrees with itself";
  const bool odd = world->rank() == last;
  const Case good = one_sequence(Sharding::contiguous, {n, 1}, 64, 8, 8, find_method("chitu"), causal);
  Case c = good;
  if (odd) c.task.window = everything;
  expect_refused([&] { on_all_ranks(c); }, ErrorCode::bad_argument, "the ranks do not agree: rank 0 has window: ");
  c = good;
  if (odd) c.recipe = recipes::sage;
  expect_refused([&] { on_all_ranks(c); }, ErrorCode::bad_argument,
                 "rank 0 has method: chitu; rank " + std::to_string(last) + " has method: sage");
  c = good;
  if (odd) c.whole = data({2, 8, 64, 32}, {2, 8, 64, 32}, DType::f32, 7);
  expect_refused([&] { on_all_ranks(c); }, ErrorCode::bad_argument, "batch: 1");
  c = good;
  if (odd) c.whole = data({1, 8, 64, 32}, {1, 8, 64, 32}, DType::f16, 7);
  expect_refused([&] { on_all_ranks(c); }, ErrorCode::bad_argument,
                 "type of query: f32; rank " + std::to_string(last) + " has type of query: f16");
  c = good;
  if (odd) c.whole = data({1, 4, 64, 32}, {1, 4, 64, 32}, DType::f32, 7);  // an error of one rank alone
  expect_refused([&] { on_all_ranks(c); }, ErrorCode::bad_argument,
                 "rank " + std::to_string(last) + ": query has 4 heads, but the task has 8 heads");
  on_all_ranks(good);
}

// A rank that stops in the middle of a call: of three ranks, from the first keys and values that it would receive on.
class Stopping final : public Communicator {
 public:
  Stopping(Communicator& comm, bool kill) : comm_(comm), kill_(kill) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  Request send(int peer, int tag, std::span<const std::byte> bytes) override { return comm_.send(peer, tag, bytes); }
  Request receive(int peer, int tag, std::span<std::byte> bytes) override {
    if (++receives_ > 4 && rank() == 1) {
      if (kill_) std::raise(SIGKILL);
      std::this_thread::sleep_for(std::chrono::hours(1));
    }
    return comm_.receive(peer, tag, bytes);
  }
  bool done(const Request& request) override { return comm_.done(request); }
  void abort(const std::string& why) override { comm_.abort(why); }

 private:
  Communicator& comm_;
  bool kill_;
  int receives_ = 0;
};

int stop(bool kill) {
  const Case c = one_sequence(Sharding::contiguous, {world->size(), 1}, 300, 8, 8, find_method("chitu"), everything);
  const auto rank = static_cast<std::size_t>(world->rank());
  const Array query = part(c.whole.query, c.task.queries[rank], {0}), key = part(c.whole.key, c.task.keys[rank], {0}),
              out(DType::f32, query.shape());
  Stopping comm(*world, kill);
  attention(comm, c.task, query, key, key, Output(out), {.threads = 1, .timeout = 2});
  return 0;
}

}  // namespace
}  // namespace chitu::dist

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int status = 0;
  {
    chitu::dist::MpiCommunicator comm;
    chitu::dist::world = &comm;
    const std::string_view word = argc > 1 ? argv[1] : "";
    if (word == "stall" || word == "kill") {
      status = chitu::dist::stop(word == "kill");
    } else {
      testing::InitGoogleTest(&argc, argv);
      auto& listeners = testing::UnitTest::GetInstance()->listeners();
      if (comm.rank() != 0) {  // say only what fails
        delete listeners.Release(listeners.default_result_printer());
        struct Failures : testing::EmptyTestEventListener {
          void OnTestPartResult(const testing::TestPartResult& result) override {
            if (result.failed()) std::fprintf(stderr, "%s:%d: %s\n", result.file_name(), result.line_number(), result.message());
          }
        };
        listeners.Append(new Failures);
      }
      status = RUN_ALL_TESTS();
    }
  }
  MPI_Finalize();
  return status;
}
