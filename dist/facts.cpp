// SPDX-License-Identifier: Apache-2.0
#include "facts.h"

#include <algorithm>
#include <sstream>

#include "chitu/version.h"

namespace chitu::dist {
namespace {

std::string text_of_quant(const Quant& q) {
  std::ostringstream text;
  text << name(q.type) << '/' << static_cast<int>(q.scaling) << '/' << q.groups.block << '/' << q.groups.lanes << '/'
       << static_cast<int>(q.centre) << '/' << q.rotated << '/' << q.sorted;
  return text.str();
}

std::string text_of(const Recipe& recipe) {
  for (const Method& method : methods)
    if (method.recipe == recipe) return std::string(method.name);
  std::ostringstream text;
  text << "of its own: " << text_of_quant(recipe.query) << ", " << text_of_quant(recipe.key) << ", " << text_of_quant(recipe.value) << ", "
       << name(recipe.weights.type) << '/' << recipe.weights.top << '/' << recipe.weights.by_tile << '/'
       << static_cast<int>(recipe.weights.output) << '/' << static_cast<int>(recipe.weights.lse);
  return text.str();
}

std::uint64_t hash_of(const Layout& layout) {
  std::uint64_t hash = 14695981039346656037u;
  const auto add = [&](std::int64_t x) { hash = (hash ^ static_cast<std::uint64_t>(x)) * 1099511628211u; };
  for (const Shard& shard : layout) {
    add(static_cast<std::int64_t>(shard.size()));
    for (const Run& run : shard)
      for (const std::int64_t x : {run.sequence, run.count, run.at.first, run.at.step}) add(x);
  }
  return hash;
}

std::int64_t all_tokens(const Layout& layout) {
  std::int64_t sum = 0;
  for (const Shard& shard : layout) sum += tokens_of(shard);
  return sum;
}

void check_operand(const Tensor& t, const char* name, const char* heads_name, std::int64_t heads, std::int64_t tokens) {
  require(t.device == Device::cpu, name, " is not in CPU memory; chitu::dist takes no other");
  require(t.shape[1] == heads, name, " has ", t.shape[1], " heads, but the task has ", heads, " ", heads_name);
  require(t.shape[2] == tokens, name, " has ", t.shape[2], " tokens, but this rank's shard has ", tokens);
}

void check_joint(const Arguments& call) {
  const Task& task = call.task;
  const Joint& joint = call.options.joint;
  if (task.joint == 0) {
    require(!joint.query.data && !joint.key.data && !joint.value.data && !joint.out.data && !joint.lse.data,
            "joint tensors are given, but the task has no joint tokens");
    return;
  }
  workspace_size(joint.query, joint.key, joint.value, {joint.out, joint.lse}, options_of(call));
  check_operand(joint.query, "the joint query", "heads", task.heads, task.joint);
  check_operand(joint.key, "the joint key", "kv heads", task.kv_heads, task.joint);
  for (const auto& [t, of, name] :
       {std::tuple{&joint.query, &call.query, "query"}, {&joint.key, &call.key, "key"}, {&joint.value, &call.value, "value"}})
    require(t->type == of->type && t->shape[0] == of->shape[0] && t->shape[3] == of->shape[3], "the joint ", name,
            " has another type, batch or dim than the ", name);
}

}  // namespace

chitu::Options options_of(const Arguments& call) {
  const Options& o = call.options;
  return {.recipe = o.recipe, .window = call.task.window, .scale = o.scale, .threads = o.threads, .kernel = o.kernel};
}

void check_call(const Communicator& comm, const Arguments& call) {
  const Task& task = call.task;
  check(task);
  require(comm.size() == task.ranks.size(), "ring ", task.ranks.ring, " x ulysses ", task.ranks.ulysses, " is ", task.ranks.size(),
          " ranks, but there are ", comm.size());
  require(call.options.timeout > 0, "timeout is ", call.options.timeout, "; it must be more than 0 seconds");
  const auto rank = static_cast<std::size_t>(comm.rank());
  check_operand(call.query, "query", "heads", task.heads, tokens_of(task.queries[rank]));
  check_operand(call.key, "key", "kv heads", task.kv_heads, tokens_of(task.keys[rank]));
  check_operand(call.value, "value", "kv heads", task.kv_heads, tokens_of(task.keys[rank]));
  workspace_size(call.query, call.key, call.value, call.output, options_of(call));  // refuses what attention() would refuse
  check_joint(call);
}

std::string facts_of(const Arguments& call) {
  const Task& task = call.task;
  const Options& o = call.options;
  std::ostringstream text;
  const auto given = [](const Tensor& t) { return t.data ? "asked for" : "not asked for"; };
  text << "chitu: " << CHITU_VERSION << "\nranks: ring " << task.ranks.ring << " x ulysses " << task.ranks.ulysses
       << "\nheads: " << task.heads << "\nkv heads: " << task.kv_heads << "\nbatch: " << call.query.shape[0]
       << "\ndim: " << call.query.shape[3] << "\nqueries in all: " << all_tokens(task.queries) << "\nkeys in all: " << all_tokens(task.keys)
       << "\nlayout of the queries: " << hash_of(task.queries) << "\nlayout of the keys: " << hash_of(task.keys)
       << "\nwindow: " << task.window.left << ", " << task.window.right << "\ntype of query: " << name(call.query.type)
       << "\ntype of key: " << name(call.key.type) << "\ntype of value: " << name(call.value.type)
       << "\ntype of out: " << name(call.output.out.type) << "\nlse: " << (call.output.lse.shape != Shape{} ? "asked for" : "not asked for")
       << "\nmethod: " << text_of(o.recipe) << "\nscale: " << (o.scale ? std::to_string(*o.scale) : "1/sqrt(dim)")
       << "\nkernel: " << o.kernel << "\njoint tokens: " << task.joint << (task.joint_rear ? ", behind" : "")
       << "\njoint lse: " << given(o.joint.lse) << "\ntype of joint out: " << name(o.joint.out.type) << "\n";
  return text.str();
}

}  // namespace chitu::dist
