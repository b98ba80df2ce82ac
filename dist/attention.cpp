// SPDX-License-Identifier: Apache-2.0
// Executes a plan: queries of the Ulysses group come together by heads, keys and values travel as integers while the rank computes with
// those that came before, partial results merge in fp32.
#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "facts.h"
#include "tags.h"
#include "wire.h"

namespace chitu::dist {
namespace {

using Clock = std::chrono::steady_clock;

// Adds the time of its life to a number of seconds.
class Timer {
 public:
  explicit Timer(double& seconds) : seconds_(seconds) {}
  Timer(const Timer&) = delete;
  ~Timer() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  double& seconds_;
  Clock::time_point start_ = Clock::now();
};

// A dense tensor with its memory.
struct Array {
  Bytes memory;
  Tensor tensor{};
};

Array array(DType type, const Shape& shape) {
  Array a{.memory = Bytes(static_cast<std::size_t>(elements(shape) * bytes(type)))};
  a.tensor = dense(a.memory.data(), type, shape);
  return a;
}

std::span<std::byte> bytes_of(const Tensor& t) {  // of a dense one
  return {static_cast<std::byte*>(t.data), static_cast<std::size_t>(elements(t.shape) * bytes(t.type))};
}

Tensor first_tokens(const Tensor& t, std::int64_t count) {  // of the memory of a dense tensor, dense again
  return dense(t.data, t.type, {t.shape[0], t.shape[1], count, t.shape[3]});
}

struct KeyValue {
  Quantized key, value;
};

// Queries of one rank, or the joint ones, for this rank's heads, and their result so far.
struct Queries {
  Array received{}, out_memory{}, lse_memory{};
  Tensor query{};
  Output result{Tensor{}};
  std::vector<bool> has_part;  // of each run: some keys have been merged
};

struct Pending {
  Communicator::Request request;
  std::string what;
};

// A part that counts nothing: what queries get that see no key.
class Nothing {
 public:
  Output like(const Tensor& out) {
    zeros_.assign(static_cast<std::size_t>(out.shape[3]), 0.f);
    Tensor zero = dense(zeros_.data(), DType::f32, out.shape),
           lse = dense(&minus_infinity_, DType::f32, {out.shape[0], out.shape[1], out.shape[2], 1});
    zero.stride = {0, 0, 0, 1};
    lse.stride = {0, 0, 0, 1};
    return {zero, lse};
  }

 private:
  std::vector<float> zeros_;
  float minus_infinity_ = -std::numeric_limits<float>::infinity();
};

class Execution {
 public:
  Execution(Communicator& comm, const Arguments& call)
      : comm_(comm),
        call_(call),
        task_(call.task),
        rank_(comm.rank()),
        place_(task_.ranks.place_of(rank_)),
        plan_(plan(task_, rank_)),
        heads_(heads_of(task_, place_)),
        wants_lse_(call.output.lse.shape != Shape{}),
        batch_(call.query.shape[0]),
        dim_(call.query.shape[3]) {}

  void run();
  const Stats& stats() const { return stats_; }

 private:
  // What a message carries is said in `what`, and by whom and when, in case it does not come.
  void send(int peer, int tag, std::span<const std::byte> bytes, const std::string& what);
  void receive(int peer, int tag, std::span<std::byte> bytes, const std::string& what);
  void wait_for(std::vector<Pending>& pending);
  void progress();

  void exchange_queries();
  void quantize_own();
  void exchange_sizes();
  void post(std::size_t step);
  void arrive(std::size_t step);
  void compute(std::size_t step);
  void attend(const Call& call);
  void finish();
  void finish_joint();

  Queries begin(const Tensor& query, std::size_t runs, const Output* direct) const;
  Shape shape_of(std::int64_t tokens) const { return {batch_, heads_.count, tokens, dim_}; }
  const Shard& keys_of(int rank) const { return task_.keys[static_cast<std::size_t>(rank)]; }
  const Shard& queries_of(int rank) const { return task_.queries[static_cast<std::size_t>(rank)]; }
  MergeOptions merging() const { return {.threads = call_.options.threads}; }
  // To the other's type and strides: a merge of one part.
  void convert(const Output& from, const Output& to) const { chitu::merge(std::span(&from, 1), to, merging()); }
  int peer_at(int place) const { return task_.ranks.group_of(rank_) * task_.ranks.ulysses + place; }
  template <class Function>
  void for_peers_in_group(const Function& function) const {  // the others of the Ulysses group, beginning behind this rank
    for (int i = 1; i < task_.ranks.ulysses; ++i) function(peer_at((place_ + i) % task_.ranks.ulysses));
  }

  Communicator& comm_;
  const Arguments& call_;
  const Task& task_;
  const int rank_, place_;
  const Plan plan_;
  const HeadRange heads_;
  const bool wants_lse_;
  const std::int64_t batch_, dim_;

  std::map<int, Queries> queries_;         // by rank of the group, and joint_tokens
  std::vector<Array> to_send_;             // dense copies, until they are sent
  std::vector<Pending> sends_, receives_;  // not done yet; receives of the next step only
  std::map<std::int64_t, Bytes> own_;      // by first kv head of a slice: keys and values of all runs, as they are sent
  std::map<std::int64_t, std::vector<std::int64_t>> own_starts_;  // of each run within it
  std::map<int, std::vector<std::int64_t>> sizes_;                // of the runs of a rank that sends some
  Bytes buffers_[2];                                              // of what travels: of this step and the next
  Array partial_, partial_lse_;
  Bytes joint_kv_;
  std::map<std::pair<int, int>, KeyValue> key_values_;  // of this step, by rank and run
  Stats stats_;
};

void Execution::send(int peer, int tag, std::span<const std::byte> bytes, const std::string& what) {
  if (!bytes.empty()) sends_.push_back({comm_.send(peer, tag, bytes), "rank " + std::to_string(peer) + " to take " + what});
}

void Execution::receive(int peer, int tag, std::span<std::byte> bytes, const std::string& what) {
  if (!bytes.empty()) receives_.push_back({comm_.receive(peer, tag, bytes), "rank " + std::to_string(peer) + " to send " + what});
}

void Execution::wait_for(std::vector<Pending>& pending) {
  const Timer timer(stats_.waiting);
  for (const Pending& p : pending) wait(comm_, p.request, call_.options.timeout, p.what);
  pending.clear();
}

void Execution::progress() {
  for (const auto* pending : {&sends_, &receives_})
    for (const Pending& p : *pending) comm_.done(p.request);
}

// direct: where the result may be accumulated at once, if it is f32.
Queries Execution::begin(const Tensor& query, std::size_t runs, const Output* direct) const {
  Queries q{.query = query, .has_part = std::vector<bool>(runs)};
  if (direct && direct->out.type == DType::f32) {
    q.result.out = direct->out;
  } else {
    q.out_memory = array(DType::f32, query.shape);
    q.result.out = q.out_memory.tensor;
  }
  if (direct && wants_lse_) {
    q.result.lse = direct->lse;
  } else {
    q.lse_memory = array(DType::f32, {query.shape[0], query.shape[1], query.shape[2], 1});
    q.result.lse = q.lse_memory.tensor;
  }
  return q;
}

// Each rank of the group gets the others' queries, in the type that they came in, for its own heads.
void Execution::exchange_queries() {
  for_peers_in_group([&](int peer) {
    Array received = array(call_.query.type, shape_of(tokens_of(queries_of(peer))));
    receive(peer, query_tag, bytes_of(received.tensor), "queries, before step 0");
    Queries q = begin(received.tensor, queries_of(peer).size(), nullptr);
    q.received = std::move(received);
    queries_.emplace(peer, std::move(q));
  });
  for_peers_in_group([&](int peer) {
    const HeadRange theirs = heads_of(task_, task_.ranks.place_of(peer));
    const Tensor part = heads_of(call_.query, theirs.first, theirs.count);
    to_send_.push_back(array(part.type, part.shape));
    copy(part, to_send_.back().tensor);
    stats_.query_bytes += static_cast<std::int64_t>(to_send_.back().memory.size());
    send(peer, query_tag, bytes_of(to_send_.back().tensor), "queries, before step 0");
  });
  const Output own{heads_of(call_.output.out, heads_.first, heads_.count),
                   wants_lse_ ? heads_of(call_.output.lse, heads_.first, heads_.count) : Tensor{}};
  queries_.emplace(rank_, begin(heads_of(call_.query, heads_.first, heads_.count), queries_of(rank_).size(), &own));
  if (task_.joint > 0) queries_.emplace(joint_tokens, begin(heads_of(call_.options.joint.query, heads_.first, heads_.count), 1, nullptr));
}

// Appends keys and values of some heads and tokens, quantised by themselves.
void write_quantized(const Arguments& call, const Tensor& key, const Tensor& value, Bytes& to) {
  const QuantizeOptions options{.threads = call.options.threads};
  write(quantize(key, Role::key, call.options.recipe, options), to);
  write(quantize(value, Role::value, call.options.recipe, options), to);
}

KeyValue read_quantized(const Arguments& call, std::span<std::byte> from) {
  const Recipe& recipe = call.options.recipe;
  KeyValue result;
  result.key = read(from, Role::key, recipe.key);
  result.value = read(from, Role::value, recipe.value);
  return result;
}

// Each run is quantised by itself, with a centre and scales of its own: it meets queries in calls of its own.
void Execution::quantize_own() {
  const Timer timer(stats_.quantize);
  for (int place = 0; place < task_.ranks.ulysses; ++place) {
    const HeadRange kv = kv_heads_of(task_, place);
    if (own_.contains(kv.first)) continue;
    const Tensor key = heads_of(call_.key, kv.first, kv.count), value = heads_of(call_.value, kv.first, kv.count);
    Bytes& to = own_[kv.first];
    to.reserve(static_cast<std::size_t>(elements(key.shape) * (bytes(key.type) + bytes(value.type)) * 9 / 8 + 4096));
    std::vector<std::int64_t>& starts = own_starts_[kv.first];
    std::int64_t first = 0;
    for (const Run& run : keys_of(rank_)) {
      starts.push_back(static_cast<std::int64_t>(to.size()));
      write_quantized(call_, tokens_of(key, first, run.count), tokens_of(value, first, run.count), to);
      first += run.count;
    }
    starts.push_back(static_cast<std::int64_t>(to.size()));
  }
  if (task_.joint == 0) return;
  const HeadRange kv = kv_heads_of(task_, place_);
  write_quantized(call_, heads_of(call_.options.joint.key, kv.first, kv.count), heads_of(call_.options.joint.value, kv.first, kv.count),
                  joint_kv_);
}

// How long the runs of keys and values are depends on the data (residual planes). Who will receive some is told.
void Execution::exchange_sizes() {
  for (const Step& step : plan_.steps) {
    for (const Transfer& from : step.receives) {
      std::vector<std::int64_t>& sizes = sizes_[from.peer];
      sizes.resize(keys_of(from.peer).size() + 1);
      receive(from.peer, sizes_tag, std::as_writable_bytes(std::span(sizes)), "sizes of keys and values, before step 0");
    }
    for (const Transfer& to : step.sends) {
      const auto& starts = own_starts_[kv_heads_of(task_, task_.ranks.place_of(to.peer)).first];
      send(to.peer, sizes_tag, std::as_bytes(std::span(starts)), "sizes of keys and values, before step 0");
    }
  }
}

// Calls function(first, end) for each stretch of runs that follow each other: one message.
template <class Function>
void for_stretches(const std::vector<int>& runs, const Function& function) {
  for (std::size_t i = 0; i < runs.size();) {
    std::size_t end = i + 1;
    while (end < runs.size() && runs[end] == runs[end - 1] + 1) ++end;
    function(static_cast<std::size_t>(runs[i]), static_cast<std::size_t>(runs[end - 1]) + 1);
    i = end;
  }
}

// Starts the transfers of a step.
void Execution::post(std::size_t step) {
  const std::string when = "keys and values for step " + std::to_string(step);
  std::size_t size = 0;
  for (const Transfer& from : plan_.steps[step].receives)
    for (const int run : from.runs) {
      const auto& starts = sizes_[from.peer];
      size += static_cast<std::size_t>(starts[static_cast<std::size_t>(run) + 1] - starts[static_cast<std::size_t>(run)]);
    }
  Bytes& buffer = buffers_[step % 2];
  if (buffer.size() < size) buffer.resize(size);
  std::size_t offset = 0;
  for (const Transfer& from : plan_.steps[step].receives)
    for_stretches(from.runs, [&](std::size_t first, std::size_t end) {
      const auto& starts = sizes_[from.peer];
      const auto length = static_cast<std::size_t>(starts[end] - starts[first]);
      receive(from.peer, kv_tag, std::span(buffer).subspan(offset, length), when);
      offset += length;
    });
  for (const Transfer& to : plan_.steps[step].sends) {
    const HeadRange kv = kv_heads_of(task_, task_.ranks.place_of(to.peer));
    const auto& starts = own_starts_[kv.first];
    for_stretches(to.runs, [&](std::size_t first, std::size_t end) {
      const auto begin = static_cast<std::size_t>(starts[first]), length = static_cast<std::size_t>(starts[end]) - begin;
      send(to.peer, kv_tag, std::span(own_[kv.first]).subspan(begin, length), when);
      stats_.kv_bytes += static_cast<std::int64_t>(length);
      for (std::size_t run = first; run < end; ++run) stats_.kv_numbers += 2 * batch_ * kv.count * keys_of(rank_)[run].count * dim_;
    });
  }
}

// Makes the keys and values of a step ready: they have been received into its buffer.
void Execution::arrive(std::size_t step) {
  key_values_.clear();
  if (step == 0) {
    const std::int64_t first = kv_heads_of(task_, place_).first;
    const auto& starts = own_starts_[first];
    for (std::size_t run = 0; run < keys_of(rank_).size(); ++run)
      key_values_[{rank_, static_cast<int>(run)}] =
          read_quantized(call_, std::span(own_[first]).subspan(static_cast<std::size_t>(starts[run])));
    if (task_.joint > 0) key_values_[{joint_tokens, 0}] = read_quantized(call_, joint_kv_);
    return;
  }
  std::size_t offset = 0;
  for (const Transfer& from : plan_.steps[step].receives)
    for (const int run : from.runs) {
      const auto& starts = sizes_[from.peer];
      key_values_[{from.peer, run}] = read_quantized(call_, std::span(buffers_[step % 2]).subspan(offset));
      offset += static_cast<std::size_t>(starts[static_cast<std::size_t>(run) + 1] - starts[static_cast<std::size_t>(run)]);
    }
}

void Execution::compute(std::size_t step) {
  const Timer timer(stats_.compute);
  for (const Call& call : plan_.steps[step].calls) {
    progress();
    attend(call);
    stats_.pairs += call.pairs * batch_ * heads_.count;
  }
}

// One run of queries, one of keys: the only place that calls attention(). Where a call can have several runs, they are joined here.
void Execution::attend(const Call& call) {
  Queries& q = queries_.at(call.query.rank);
  std::int64_t first = 0;
  if (call.query.rank != joint_tokens)
    for (int run = 0; run < call.query.run; ++run) first += queries_of(call.query.rank)[static_cast<std::size_t>(run)].count;
  const Run queries = run_of(task_, task_.queries, call.query), keys = run_of(task_, task_.keys, call.key);
  const Output result{tokens_of(q.result.out, first, queries.count), tokens_of(q.result.lse, first, queries.count)};
  chitu::Options options = options_of(call_);
  options.query_positions = queries.at;
  options.key_positions = keys.at;
  const KeyValue& kv = key_values_.at({call.key.rank, call.key.run});
  const Tensor query = tokens_of(q.query, first, queries.count);
  const auto run = static_cast<std::size_t>(call.query.run);
  if (!q.has_part[run]) {
    chitu::attention(query, kv.key, kv.value, result, options);
    q.has_part[run] = true;
    return;
  }
  const Output part{first_tokens(partial_.tensor, queries.count), first_tokens(partial_lse_.tensor, queries.count)};
  chitu::attention(query, kv.key, kv.value, part, options);
  merge(result, part, result, merging());
}

// Sends results to those whose queries they are, and takes those of this rank's own queries for the other heads.
void Execution::finish() {
  for (auto& [rank, q] : queries_) {  // queries that see no key
    std::int64_t first = 0;
    for (std::size_t run = 0; run < q.has_part.size(); ++run) {
      const std::int64_t count = rank == joint_tokens ? task_.joint : queries_of(rank)[run].count;
      const Output none{tokens_of(q.result.out, first, count), tokens_of(q.result.lse, first, count)};
      if (!q.has_part[run]) convert(Nothing().like(none.out), none);
      first += count;
    }
  }
  const Output& output = call_.output;
  std::map<int, Array> outs, lses;
  for_peers_in_group([&](int peer) {
    outs[peer] = array(output.out.type, shape_of(tokens_of(queries_of(rank_))));
    receive(peer, out_tag, bytes_of(outs[peer].tensor), "output, after the last step");
    if (!wants_lse_) return;
    lses[peer] = array(DType::f32, {batch_, heads_.count, tokens_of(queries_of(rank_)), 1});
    receive(peer, lse_tag, bytes_of(lses[peer].tensor), "the lse, after the last step");
  });
  for_peers_in_group([&](int peer) {
    const Output& result = queries_.at(peer).result;
    Tensor out = result.out;
    if (output.out.type != DType::f32) {
      to_send_.push_back(array(output.out.type, out.shape));
      out = to_send_.back().tensor;
      convert(result, {out, result.lse});
    }
    send(peer, out_tag, bytes_of(out), "output, after the last step");
    stats_.output_bytes += static_cast<std::int64_t>(bytes_of(out).size());
    if (wants_lse_) send(peer, lse_tag, bytes_of(result.lse), "the lse, after the last step");
  });
  if (output.out.type != DType::f32) {
    const Output& result = queries_.at(rank_).result;
    convert(result, {heads_of(output.out, heads_.first, heads_.count), result.lse});
  }
  wait_for(receives_);
  for_peers_in_group([&](int peer) {
    const HeadRange heads = heads_of(task_, task_.ranks.place_of(peer));
    copy(outs[peer].tensor, heads_of(output.out, heads.first, heads.count));
    if (wants_lse_) copy(lses[peer].tensor, heads_of(output.lse, heads.first, heads.count));
  });
}

// Each rank has the joint queries' result for its heads and its group's keys. All ranks get all of these, and merge them in one order.
void Execution::finish_joint() {
  const Output& own = queries_.at(joint_tokens).result;
  const Joint& joint = call_.options.joint;
  std::map<int, std::pair<Array, Array>> parts;
  for (int i = 1; i < comm_.size(); ++i) {
    const int peer = (rank_ + i) % comm_.size();
    auto& [out, lse] = parts[peer];
    out = array(DType::f32, own.out.shape);
    lse = array(DType::f32, own.lse.shape);
    receive(peer, joint_tag, bytes_of(out.tensor), "joint output, after the last step");
    receive(peer, joint_tag, bytes_of(lse.tensor), "the joint lse, after the last step");
    send(peer, joint_tag, bytes_of(own.out), "joint output, after the last step");
    send(peer, joint_tag, bytes_of(own.lse), "the joint lse, after the last step");
    stats_.output_bytes += static_cast<std::int64_t>(bytes_of(own.out).size());
  }
  wait_for(receives_);
  wait_for(sends_);  // `own` is merged into
  const auto part = [&](int rank) { return rank == rank_ ? own : Output{parts[rank].first.tensor, parts[rank].second.tensor}; };
  for (int place = 0; place < task_.ranks.ulysses; ++place) {
    const Output sum = part(place);
    for (int group = 1; group < task_.ranks.ring; ++group) merge(sum, part(group * task_.ranks.ulysses + place), sum, merging());
    const HeadRange heads = heads_of(task_, place);
    const Tensor lse = joint.lse.data ? heads_of(joint.lse, heads.first, heads.count) : sum.lse;
    convert(sum, {heads_of(joint.out, heads.first, heads.count), lse});
  }
}

void Execution::run() {
  const Timer timer(stats_.total);
  exchange_queries();
  quantize_own();
  exchange_sizes();
  wait_for(receives_);
  std::int64_t most = task_.joint;
  for (const auto& [rank, q] : queries_)
    if (rank != joint_tokens)
      for (const Run& run : queries_of(rank)) most = std::max(most, run.count);
  partial_ = array(DType::f32, shape_of(most));
  partial_lse_ = array(DType::f32, {batch_, heads_.count, most, 1});
  for (std::size_t step = 0; step < plan_.steps.size(); ++step) {
    arrive(step);
    if (step + 1 < plan_.steps.size()) post(step + 1);
    compute(step);
    wait_for(receives_);
  }
  finish();
  if (task_.joint > 0) finish_joint();
  wait_for(sends_);
}

}  // namespace

void attention(Communicator& comm, const Task& task, const Tensor& query, const Tensor& key, const Tensor& value, const Output& output,
               const Options& options) {
  const Arguments call{task, query, key, value, output, options};
  std::optional<Error> error;
  std::string facts;
  try {
    check_call(comm, call);
    facts = facts_of(call);
  } catch (const Error& e) {
    error = e;
  } catch (const std::bad_alloc&) {
    error = Error(ErrorCode::out_of_memory, "no memory for this call");
  }
  agree(comm, facts, error ? &*error : nullptr, options.timeout);
  Execution execution(comm, call);
  if (comm.size() == 1) {
    execution.run();
  } else {
    try {
      execution.run();
    } catch (const std::exception& e) {
      comm.abort("rank " + std::to_string(comm.rank()) + " failed after the work had begun: " + e.what());
    }
  }
  if (options.stats) *options.stats = execution.stats();
}

}  // namespace chitu::dist
