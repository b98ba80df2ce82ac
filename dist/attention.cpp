// SPDX-License-Identifier: Apache-2.0
// Executes a plan: queries of the Ulysses group come together by heads, keys and values travel as integers while the rank computes with
// those that came before, partial results merge in fp32.
#include <algorithm>

#include "execution.h"

namespace chitu::dist {

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

// Quantised by itself, with its values dense, so that they can be sent.
Quantized Execution::own_quantized(const Tensor& x, Role role) {
  Quantized q = quantize(x, role, call_.options.recipe, {.threads = call_.options.threads});
  if (is_dense(q.values)) return q;
  to_send_.push_back(array(q.values.type, q.values.shape));
  copy(q.values, to_send_.back().tensor);
  q.values = to_send_.back().tensor;
  return q;
}

// Each run is quantised by itself, with a centre and scales of its own.
void Execution::quantize_own() {
  const Timer timer(stats_.quantize);
  for (int place = 0; place < task_.ranks.ulysses; ++place) {
    const HeadRange kv = kv_heads_of(task_, place);
    if (own_.contains(kv.first)) continue;
    const Tensor key = heads_of(call_.key, kv.first, kv.count), value = heads_of(call_.value, kv.first, kv.count);
    Own& own = own_[kv.first];
    own.starts.push_back(0);
    std::int64_t first = 0;
    for (const Run& run : keys_of(rank_)) {
      own.runs.push_back(
          {own_quantized(tokens_of(key, first, run.count), Role::key), own_quantized(tokens_of(value, first, run.count), Role::value)});
      write_rest(own.runs.back().key, own.rest);
      write_rest(own.runs.back().value, own.rest);
      own.starts.push_back(static_cast<std::int64_t>(own.rest.size()));
      first += run.count;
    }
  }
  if (task_.joint == 0) return;
  const HeadRange kv = kv_heads_of(task_, place_);
  joint_kv_ = {own_quantized(heads_of(call_.options.joint.key, kv.first, kv.count), Role::key),
               own_quantized(heads_of(call_.options.joint.value, kv.first, kv.count), Role::value)};
}

// How long all but the values is depends on the data (residual planes). Who will receive some is told.
void Execution::exchange_sizes() {
  for (const Step& step : plan_.steps) {
    for (const Transfer& from : step.receives) {
      std::vector<std::int64_t>& sizes = sizes_[from.peer];
      sizes.resize(keys_of(from.peer).size() + 1);
      receive(from.peer, sizes_tag, std::as_writable_bytes(std::span(sizes)), "sizes of keys and values, before step 0");
    }
    for (const Transfer& to : step.sends) {
      const auto& starts = own_.at(kv_heads_of(task_, task_.ranks.place_of(to.peer)).first).starts;
      send(to.peer, sizes_tag, std::as_bytes(std::span(starts)), "sizes of keys and values, before step 0");
    }
  }
}

// The values of a run that another rank sends to this one, in `memory`.
Tensor Execution::values_of(Role role, const RunOf& run, std::byte* memory) const {
  const Quant& quant = role == Role::key ? call_.options.recipe.key : call_.options.recipe.value;
  const DType given = role == Role::key ? call_.key.type : call_.value.type;
  const std::int64_t tokens = keys_of(run.rank)[static_cast<std::size_t>(run.run)].count;
  return dense(memory, quant.scaling == Scaling::none ? given : quant.type, {batch_, kv_heads_of(task_, place_).count, tokens, dim_});
}

// Calls function(run, its keys' values, its values' values, all else of both) for each run that a step receives, in its buffer's memory.
template <class Function>
void Execution::for_received(std::size_t step, const Function& function) const {
  auto* const memory = const_cast<std::byte*>(buffers_[step % 2].data());
  std::size_t offset = 0;
  const auto take = [&](std::size_t size) {
    const std::size_t at = offset;
    offset += aligned(size);
    return memory + at;
  };
  for (const Transfer& from : plan_.steps[step].receives)
    for (const int run : from.runs) {
      const auto& starts = sizes_.at(from.peer);
      const auto rest = static_cast<std::size_t>(starts[static_cast<std::size_t>(run) + 1] - starts[static_cast<std::size_t>(run)]);
      const RunOf which{from.peer, run};
      Tensor key = values_of(Role::key, which, nullptr), value = values_of(Role::value, which, nullptr);
      key.data = take(bytes_of(key).size());
      value.data = take(bytes_of(value).size());
      function(which, key, value, std::span(take(rest), rest));
    }
}

// Starts the transfers of a step.
void Execution::post(std::size_t step) {
  const std::string when = "keys and values for step " + std::to_string(step);
  std::size_t size = 0;
  for_received(step, [&](const RunOf&, const Tensor& key, const Tensor& value, std::span<std::byte> rest) {
    size += aligned(bytes_of(key).size()) + aligned(bytes_of(value).size()) + aligned(rest.size());
  });
  if (buffers_[step % 2].size() < size) buffers_[step % 2] = Bytes(size);
  for_received(step, [&](const RunOf& run, const Tensor& key, const Tensor& value, std::span<std::byte> rest) {
    for (const std::span<std::byte> bytes : {bytes_of(key), bytes_of(value), rest}) receive(run.rank, kv_tag, bytes, when);
  });
  for (const Transfer& to : plan_.steps[step].sends) post_sends(to, when);
}

void Execution::post_sends(const Transfer& to, const std::string& when) {
  const HeadRange kv = kv_heads_of(task_, task_.ranks.place_of(to.peer));
  const Own& own = own_.at(kv.first);
  for (const int number : to.runs) {
    const auto run = static_cast<std::size_t>(number);
    const auto start = static_cast<std::size_t>(own.starts[run]), end = static_cast<std::size_t>(own.starts[run + 1]);
    const std::span<const std::byte> rest = std::span(own.rest).subspan(start, end - start);
    for (const std::span<const std::byte> bytes : {std::span<const std::byte>(bytes_of(own.runs[run].key.values)),
                                                   std::span<const std::byte>(bytes_of(own.runs[run].value.values)), rest}) {
      send(to.peer, kv_tag, bytes, when);
      stats_.kv_bytes += static_cast<std::int64_t>(bytes.size());
    }
    stats_.kv_numbers += 2 * batch_ * kv.count * keys_of(rank_)[run].count * dim_;
  }
}

// Makes the keys and values of a step ready: they have been received into its buffer.
void Execution::arrive(std::size_t step) {
  key_values_.clear();
  received_.clear();
  if (step == 0) {
    const Own& own = own_.at(kv_heads_of(task_, place_).first);
    for (std::size_t run = 0; run < own.runs.size(); ++run) key_values_[{rank_, static_cast<int>(run)}] = &own.runs[run];
    if (task_.joint > 0) key_values_[{joint_tokens, 0}] = &joint_kv_;
    return;
  }
  const Recipe& recipe = call_.options.recipe;
  for_received(step, [&](const RunOf& run, const Tensor& key, const Tensor& value, std::span<std::byte> rest) {
    KeyValue& kv = received_[{run.rank, run.run}];
    kv.key = read_rest(rest, key, Role::key, recipe.key);
    kv.value = read_rest(rest, value, Role::value, recipe.value);
    key_values_[{run.rank, run.run}] = &kv;
  });
}

void Execution::compute(std::size_t step) {
  const Timer timer(stats_.compute);
  for (const Call& call : plan_.steps[step].calls) {
    progress();
    attend(call);
    stats_.pairs += call.pairs * batch_ * heads_.count;
  }
}

std::int64_t Execution::queries_in(const Call& call) const {
  if (call.query.rank == joint_tokens) return task_.joint;
  std::int64_t sum = 0;
  for (int i = 0; i < call.query_runs; ++i) sum += queries_of(call.query.rank)[static_cast<std::size_t>(call.query.run + i)].count;
  return sum;
}

// The only place that calls attention().
void Execution::attend(const Call& call) {
  Queries& q = queries_.at(call.query.rank);
  const std::int64_t count = queries_in(call);
  std::int64_t first = 0;
  if (call.query.rank != joint_tokens)
    for (int run = 0; run < call.query.run; ++run) first += queries_of(call.query.rank)[static_cast<std::size_t>(run)].count;
  chitu::Options options = options_of(call_);
  if (call.query_runs > 1) {
    options.window = everything;
  } else {
    options.query_positions = run_of(task_, task_.queries, call.query).at;
    options.key_positions = run_of(task_, task_.keys, call.key).at;
  }
  const KeyValue& kv = *key_values_.at({call.key.rank, call.key.run});
  const Tensor query = tokens_of(q.query, first, count);
  const auto result = [&](std::int64_t at, std::int64_t n) {
    return Output{tokens_of(q.result.out, first + at, n), tokens_of(q.result.lse, first + at, n)};
  };
  const auto begin = q.has_part.begin() + call.query.run, end = begin + call.query_runs;
  if (std::find(begin, end, true) == end) {
    chitu::attention(query, kv.key, kv.value, result(0, count), options);
    std::fill(begin, end, true);
    return;
  }
  const Output part{first_tokens(partial_.tensor, count), first_tokens(partial_lse_.tensor, count)};
  chitu::attention(query, kv.key, kv.value, part, options);
  if (std::find(begin, end, false) == end) {
    merge(result(0, count), part, result(0, count), merging());
    return;
  }
  std::int64_t at = 0;
  for (int run = call.query.run; run < call.query.run + call.query_runs; ++run) {
    const std::int64_t n = queries_of(call.query.rank)[static_cast<std::size_t>(run)].count;
    const Output of_run{tokens_of(part.out, at, n), tokens_of(part.lse, at, n)};
    if (q.has_part[static_cast<std::size_t>(run)])
      merge(result(at, n), of_run, result(at, n), merging());
    else
      convert(of_run, result(at, n));
    q.has_part[static_cast<std::size_t>(run)] = true;
    at += n;
  }
}

void Execution::run() {
  const Timer timer(stats_.total);
  exchange_queries();
  quantize_own();
  exchange_sizes();
  wait_for(receives_);
  std::int64_t most = 0;
  for (const Step& step : plan_.steps)
    for (const Call& call : step.calls) most = std::max(most, queries_in(call));
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
