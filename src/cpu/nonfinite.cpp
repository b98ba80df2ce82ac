// SPDX-License-Identifier: Apache-2.0
// NaN and infinity in inputs. Quantisers and kernels leave them out (a key weighs nothing, a value's number is 0), which keeps them
// from every other row. Here they get into the outputs that they would reach in exact attention. Costs (tokens found) x (queries).
#include <algorithm>
#include <limits>

#include "common/numbers.h"
#include "common/parallel.h"
#include "common/score.h"
#include "cpu/backend.h"

namespace chitu::cpu {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();

using Tokens = std::vector<const NonFinite*>;

Tokens tokens_of(const Quantized& x, std::int64_t sequence, std::int64_t head) {
  Tokens list;
  for (const NonFinite& n : x.nonfinite)
    if (n.sequence == sequence && n.head == head) list.push_back(&n);
  return list;
}

class NonFiniteHead {
 public:
  NonFiniteHead(const Problem& p, const Operands& o, std::int64_t sequence, std::int64_t head)
      : p_(p),
        s_(p.sequences[static_cast<std::size_t>(sequence)]),
        head_(head),
        kv_head_(head / p.group()),
        queries_(tokens_of(o.query, sequence, head)),
        keys_(tokens_of(o.key, sequence, kv_head_)),
        values_(tokens_of(o.value, sequence, kv_head_)) {}

  void run() const {
    if (queries_.empty() && keys_.empty() && values_.empty()) return;
    for (std::int64_t i = 0; i < s_.queries; ++i)
      if (const Range seen = s_.visible(p_.options.window, i); !seen.empty()) propagate(i, seen);
  }

 private:
  void propagate(std::int64_t i, const Range& seen) const {
    const bool query_is_nonfinite = std::any_of(queries_.begin(), queries_.end(), [&](const NonFinite* n) { return n->token == i; });
    if (query_is_nonfinite) return weighs_no_key(i, seen) ? fill(i, 0, -infinity) : fill(i, nan, nan);
    const auto inside = [&](const NonFinite* n) { return n->token >= seen.begin && n->token < seen.end; };
    if (std::any_of(keys_.begin(), keys_.end(), [&](const NonFinite* n) { return inside(n) && !weighs_nothing(i, n->token); }))
      return fill(i, nan, nan);
    for (const NonFinite* n : values_) {
      if (!inside(n)) continue;
      for (int c = 0; c < p_.dim(); ++c)
        if (const float v = n->values[static_cast<std::size_t>(c)]; !is_finite(v))
          store(out(i), p_.output.out.type, c, load(out(i), p_.output.out.type, c) + v);
    }
  }

  // Is the score -inf? Any other score that is not finite makes the row NaN, and so does an operand that came quantised: its score is no
  // longer known.
  bool weighs_nothing(std::int64_t i, std::int64_t j) const {
    if (p_.query.quantized() || p_.key.quantized()) return false;
    const Tensor &q = p_.query.tensor(), &k = p_.key.tensor();
    float dot = 0;
    for (int c = 0; c < p_.dim(); ++c)
      dot += load(row(q, s_.batch, head_, s_.query_begin + i), q.type, c) * load(row(k, s_.batch, kv_head_, s_.key_begin + j), k.type, c);
    const ScorePlace place{head_, s_.query_position(i), s_.key_position(j), s_.key_positions.step};
    return changed_score(p_.scale() * dot, 1.f, place) == -infinity;
  }

  bool weighs_no_key(std::int64_t i, const Range& seen) const {
    for (std::int64_t j = seen.begin; j < seen.end; ++j)
      if (!weighs_nothing(i, j)) return false;
    return true;
  }

  std::byte* out(std::int64_t i) const { return row(p_.output.out, s_.batch, head_, s_.query_begin + i); }

  void fill(std::int64_t i, float value, float lse) const {
    for (int c = 0; c < p_.dim(); ++c) store(out(i), p_.output.out.type, c, value);
    if (p_.output.lse.data) store(row(p_.output.lse, s_.batch, head_, s_.query_begin + i), DType::f32, 0, lse);
  }

  const Problem& p_;
  const Sequence& s_;
  const std::int64_t head_, kv_head_;
  const Tokens queries_, keys_, values_;
};

}  // namespace

void propagate_nonfinite(const Problem& p, const Operands& o) {
  if (o.query.nonfinite.empty() && o.key.nonfinite.empty() && o.value.nonfinite.empty()) return;
  const std::int64_t heads = p.heads();
  parallel_for(static_cast<std::int64_t>(p.sequences.size()) * heads, p.options.threads,
               [&](std::int64_t i) { NonFiniteHead(p, o, i / heads, i % heads).run(); });
}

}  // namespace chitu::cpu
