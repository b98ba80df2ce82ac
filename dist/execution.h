// SPDX-License-Identifier: Apache-2.0
// One call on one rank. attention.cpp executes the steps, results.cpp what comes after them.
#pragma once

#include <chrono>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "facts.h"
#include "tags.h"
#include "wire.h"

namespace chitu::dist {

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

inline Array array(DType type, const Shape& shape) {
  Array a{.memory = Bytes(static_cast<std::size_t>(elements(shape) * bytes(type)))};
  a.tensor = dense(a.memory.data(), type, shape);
  return a;
}

inline Tensor first_tokens(const Tensor& t, std::int64_t count) {  // of the memory of a dense tensor, dense again
  return dense(t.data, t.type, {t.shape[0], t.shape[1], count, t.shape[3]});
}

struct KeyValue {
  Quantized key, value;
};

// Keys and values of this rank for some kv heads, by run. The values of both are sent from where they lie, the rest from `rest`.
struct Own {
  std::vector<KeyValue> runs;
  Bytes rest;
  std::vector<std::int64_t> starts;  // of each run within `rest`, and its end
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
  void post_sends(const Transfer& to, const std::string& when);
  void arrive(std::size_t step);
  void compute(std::size_t step);
  void attend(const Call& call);
  template <class Function>
  void for_received(std::size_t step, const Function& function) const;
  Tensor values_of(Role role, const RunOf& run, std::byte* memory) const;
  Quantized own_quantized(const Tensor& x, Role role);
  std::int64_t queries_in(const Call& call) const;
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

  std::map<int, Queries> queries_;                  // by rank of the group, and joint_tokens
  std::vector<Array> to_send_;                      // dense copies, until they are sent
  std::vector<Pending> sends_, receives_;           // not done yet; receives of the next step only
  std::map<std::int64_t, Own> own_;                 // by first kv head of a slice
  std::map<int, std::vector<std::int64_t>> sizes_;  // Own::starts of a rank that sends some
  Bytes buffers_[2];                                // of what travels: of this step and the next
  Array partial_, partial_lse_;
  KeyValue joint_kv_;
  std::map<std::pair<int, int>, KeyValue> received_;           // of this step, by rank and run
  std::map<std::pair<int, int>, const KeyValue*> key_values_;  // the same, with this rank's own
  Stats stats_;
};

}  // namespace chitu::dist
