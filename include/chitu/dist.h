// SPDX-License-Identifier: Apache-2.0
// Attention over a sequence that lies on several ranks: Ulysses, a ring, or both. First a pure plan (shard(), plan()), then its execution
// (attention()) over a Communicator. docs/sequence-parallel.md has the schedules drawn. A target of its own, chitu::dist.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chitu/attention.h"

namespace chitu::dist {

// Rank r is number r % ulysses of its Ulysses group, and this group is number r / ulysses of the ring. A group shares out the heads, the
// ring's keys and values travel from group to group.
struct Ranks {
  int ring = 1, ulysses = 1;
  int size() const { return ring * ulysses; }
  int group_of(int rank) const { return rank / ulysses; }
  int place_of(int rank) const { return rank % ulysses; }
  friend bool operator==(const Ranks&, const Ranks&) = default;
};

// Tokens of one sequence that follow each other in a rank's tensor, and where they stand in the sequence.
struct Run {
  std::int64_t sequence = 0, count = 0;
  Positions at{};
};
using Shard = std::vector<Run>;     // what a rank's tensor holds, in this order
using Layout = std::vector<Shard>;  // of each rank
std::int64_t tokens_of(const Shard& shard);

// How sequences are spread over the groups of the ring. Within its group, a part is cut into as many contiguous shards as there are ranks.
enum class Sharding : std::uint8_t {
  contiguous,  // each sequence in as many parts as there are groups
  zigzag,      // in twice as many; group g gets parts g and 2 ring - 1 - g, so that causal work is the same for all
  striped,     // group g gets the tokens g, g + ring, g + 2 ring ...
  whole,       // each sequence to one group, the longest first, to the group with the least work; for packed sequences
};

// What is to be computed: all of it, the same on every rank.
struct Task {
  Ranks ranks{};
  Layout queries{}, keys{};  // each token once; a query and a key of one sequence see each other's positions
  Window window = everything;
  std::int64_t heads = 1, kv_heads = 1;
  // Tokens that every rank holds, queries as well as keys (the text beside an image): before the sequence's first key, or after its last.
  std::int64_t joint = 0;
  bool joint_rear = false;
};

// A task with its layouts: sequence i has query_lengths[i] queries and key_lengths[i] keys (as many unless given). Keys stand at 0, 1, ...,
// the last query at the last key. Parts of a sequence that does not divide differ by one token.
Task shard(Sharding sharding, const Ranks& ranks, std::span<const std::int64_t> query_lengths,
           std::span<const std::int64_t> key_lengths = {});
// The same for one sequence whose shards have any sizes: rank r holds tokens_of_rank[r] tokens, which follow those of rank r - 1.
Task shard(const Ranks& ranks, std::span<const std::int64_t> tokens_of_rank);

// Throws Error(bad_argument): layouts for another number of ranks; heads that Ulysses cannot share out. Query heads must be a multiple of
// `ulysses`. Kv heads must be a multiple of it, too, or divide it: then each kv head is sent to all ranks of a group that need it.
void check(const Task& task);

struct HeadRange {
  std::int64_t first = 0, count = 0;
};
HeadRange heads_of(const Task& task, int place);     // query heads that a rank at this place of its group computes
HeadRange kv_heads_of(const Task& task, int place);  // kv heads that these read

inline constexpr int joint_tokens = -1;  // RunOf::rank of the joint tokens

struct RunOf {
  int rank = 0, run = 0;  // run `run` of this rank's shard
  friend bool operator==(const RunOf&, const RunOf&) = default;
};

// One call of attention(): queries of one run, keys of another. Runs of queries that follow each other in a rank's tensor, and that see all
// keys, so that it does not matter where they stand, are one call. pairs: of query and key, that see each other.
struct Call {
  RunOf query, key;
  std::int64_t pairs = 0;
  int query_runs = 1;  // from `query` on; if there are several, the call has no mask
};

// Key runs with their values that go from one rank to another. A run that nobody needs does not travel.
struct Transfer {
  int peer = 0;
  std::vector<int> runs{};  // of the sender's shard, rising
};

// A step computes with what it has received. All ranks have as many steps. Step 0: a rank's own keys and the joint ones. Step 1: those of
// its Ulysses group. Step 1 + i: those of the group i places before it in the ring.
struct Step {
  std::vector<Transfer> receives, sends;
  std::vector<Call> calls;
};

// What one rank does, for the heads of its place: its group's queries meet all keys that they see. Each such pair of query and key is in
// just one call of one group.
struct Plan {
  std::vector<Step> steps;
  std::int64_t pairs() const;
};
Plan plan(const Task& task, int rank);
Run run_of(const Task& task, const Layout& layout, const RunOf& which);       // the joint tokens' run, too
std::int64_t visible_pairs(const Window&, const Run& query, const Run& key);  // of one sequence

// A transport. Requests make progress in done() only. Messages between two ranks with one tag arrive in order. A message may be empty.
class Communicator {
 public:
  using Request = std::shared_ptr<void>;
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual Request send(int peer, int tag, std::span<const std::byte> bytes) = 0;  // bytes stay until it is done
  virtual Request receive(int peer, int tag, std::span<std::byte> bytes) = 0;     // just as many bytes as are sent
  virtual bool done(const Request& request) = 0;
  [[noreturn]] virtual void abort(const std::string& why) = 0;  // ends the job, on all ranks
};

// What one call of attention() did on this rank.
struct Stats {
  std::int64_t kv_bytes = 0, kv_numbers = 0;       // of keys and values that were sent, scales included
  std::int64_t query_bytes = 0, output_bytes = 0;  // sent
  std::int64_t pairs = 0;                          // computed, times batch and heads
  double quantize = 0, compute = 0, waiting = 0;   // seconds; waiting: for others' messages, with nothing to compute
  double total = 0;
};

// Joint tokens' tensors, the same on every rank: [batch, heads or kv heads, Task::joint, dim]. The result too is on every rank.
struct Joint {
  Tensor query{}, key{}, value{}, out{}, lse{};
};

struct Options {
  Recipe recipe = recipes::chitu;
  std::optional<float> scale{};  // of the scores; 1 / sqrt(dim) unless given
  int threads = 0;               // of this rank; 0: OpenMP's default, which takes no account of other ranks on the machine
  std::string_view kernel{};
  double timeout = 300;  // seconds that a rank waits for another before it ends the job: longer than the longest step
  Joint joint{};
  Stats* stats = nullptr;
};

// Each rank of comm calls it with its shards, in CPU memory: query [batch, heads, its queries, dim], key and value [batch, kv heads, its
// keys, dim], output as in chitu::attention(), for its own queries. Keys and values are quantised once, before they are sent. Ranks whose
// arguments do not fit each other all throw the same Error before any data moves. A rank that is not heard of for `timeout`, and a failure
// after that check, end the job by Communicator::abort(), which names rank, peer and step.
void attention(Communicator& comm, const Task& task, const Tensor& query, const Tensor& key, const Tensor& value, const Output& output,
               const Options& options = {});

// Throws the same Error on every rank if one has an error, or if the facts, lines "name: value", are not the same everywhere. error: this
// rank's, or null.
void agree(Communicator& comm, const std::string& facts, const Error* error, double timeout);

// Waits until it is done; after `timeout` seconds without, aborts with `what` in the message.
void wait(Communicator& comm, const Communicator::Request& request, double timeout, const std::string& what);

// The cost model of docs/sequence-parallel.md.
struct Link {
  std::string_view name;
  double bytes_per_second = 0, latency = 0;  // of a rank's sends, and as many receives at the same time; seconds a message
};
std::span<const Link> links();

struct Model {
  std::int64_t batch = 1, dim = 128;
  double key_bytes = 1, value_bytes = 1, query_bytes = 2, output_bytes = 2;  // of a number on the wire
  double operations_per_second = 0;                                          // of a rank: 4 dim for each pair of query and key
  Link link{};
};

// Seconds of a rank, in the order of the plan's steps; receive: of what the step needs, which overlaps with the step before it.
struct StepTime {
  double receive = 0, compute = 0, exposed = 0;
  std::int64_t bytes = 0;
};
struct Cost {
  std::vector<StepTime> steps;
  double queries = 0, outputs = 0;  // Ulysses: exchanges before and after
  double total = 0;
};
Cost cost(const Task& task, const Plan& plan, int rank, const Model& model);

}  // namespace chitu::dist
