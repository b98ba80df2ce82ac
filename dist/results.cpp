// SPDX-License-Identifier: Apache-2.0
// After the last step: results go to those whose queries they are.
#include <limits>

#include "execution.h"

namespace chitu::dist {
namespace {

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

}  // namespace

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
  if (!joint.lse.data) wait_for(sends_);  // `own.lse` is written to
  const auto part = [&](int rank) { return rank == rank_ ? own : Output{parts[rank].first.tensor, parts[rank].second.tensor}; };
  for (int place = 0; place < task_.ranks.ulysses; ++place) {
    std::vector<Output> of_groups;
    for (int group = 0; group < task_.ranks.ring; ++group) of_groups.push_back(part(group * task_.ranks.ulysses + place));
    const HeadRange heads = heads_of(task_, place);
    const Tensor lse = joint.lse.data ? heads_of(joint.lse, heads.first, heads.count) : of_groups.front().lse;
    chitu::merge(of_groups, {heads_of(joint.out, heads.first, heads.count), lse}, merging());
  }
}

}  // namespace chitu::dist
