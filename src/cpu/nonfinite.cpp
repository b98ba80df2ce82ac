// SPDX-License-Identifier: Apache-2.0
// NaN and infinity in inputs. Quantisers and kernels leave them out (a key weighs nothing, a value's number is 0), which keeps them
// from every other row. Here they get into the outputs that they would reach in exact attention.
//
// The keys that a head's queries see move forwards, so counts of what is not finite among them are kept up to date. A head costs
// (tokens) x (dim), however many tokens are not finite.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/numbers.h"
#include "common/parallel.h"
#include "common/score.h"
#include "cpu/backend.h"
#include "cpu/rows.h"

namespace chitu::cpu {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();

template <class T>
using Channels = std::array<T, max_dim>;
using Counts = Channels<std::int32_t>;

// Of the tokens that are not finite in a window: how many have what, channel by channel.
class Census {
 public:
  Census(std::span<const NonFinite> tokens, int dim) : tokens_(tokens), dim_(dim) {}

  // Returns whether the counts changed. Both ends of the window may only move forwards.
  bool move(const Range& window) {
    const std::size_t first = first_, last = last_;
    for (; last_ < tokens_.size() && tokens_[last_].token < window.end; ++last_) count(tokens_[last_], 1);
    for (; first_ < last_ && tokens_[first_].token < window.begin; ++first_) count(tokens_[first_], -1);
    return first != first_ || last != last_;
  }
  bool empty() const { return first_ == last_; }

  Counts plus{}, minus{}, nans{};  // +infinity, -infinity, NaN

 private:
  void count(const NonFinite& token, std::int32_t one) {
    const float* x = token.values.data();
    for (int c = 0; c < dim_; ++c) {
      plus[static_cast<std::size_t>(c)] += x[c] == infinity ? one : 0;
      minus[static_cast<std::size_t>(c)] += x[c] == -infinity ? one : 0;
      nans[static_cast<std::size_t>(c)] += x[c] != x[c] ? one : 0;
    }
  }

  const std::span<const NonFinite> tokens_;
  const int dim_;
  std::size_t first_ = 0, last_ = 0;  // of those in the window
};

class NonFiniteHead {
 public:
  NonFiniteHead(const Problem& p, const Operands& o, std::int64_t sequence, std::int64_t head)
      : p_(p),
        s_(p.sequences[static_cast<std::size_t>(sequence)]),
        head_(head),
        kv_head_(head / p.group()),
        scores_known_(!p.query.quantized() && !p.key.quantized()),
        queries_(nonfinite_of(o.query, sequence, head)),
        keys_(nonfinite_of(o.key, sequence, kv_head_), p.dim()),
        values_(nonfinite_of(o.value, sequence, kv_head_), p.dim()) {}

  void run() {
    auto bad_query = queries_.begin();
    for (std::int64_t i = 0; i < s_.queries; ++i) {
      while (bad_query != queries_.end() && bad_query->token < i) ++bad_query;
      if (const Range seen = s_.visible(p_.options.window, i); !seen.empty())
        propagate(i, seen, bad_query != queries_.end() && bad_query->token == i);
    }
  }

 private:
  void propagate(std::int64_t i, const Range& seen, bool query_is_nonfinite) {
    keys_.move(seen);
    if (values_.move(seen)) sum_values();
    if (query_is_nonfinite) return weighs_no_key(i, seen) ? fill(i, 0, -infinity) : fill(i, nan, nan);
    if (!keys_.empty() && !weigh_nothing(i, seen)) return fill(i, nan, nan);
    if (values_.empty()) return;
    const DType type = p_.output.out.type;
    if (type == DType::f32)
      spoil(reinterpret_cast<float*>(out(i)), [](float x) { return x != x; });
    else
      spoil(reinterpret_cast<std::uint16_t*>(out(i)), [end = type == DType::f16 ? 0x7c00 : 0x7f80](int x) { return (x & 0x7fff) > end; });
  }

  // What the window's values that are not finite come to.
  void sum_values() {
    for (int c = 0; c < p_.dim(); ++c) {
      const auto i = static_cast<std::size_t>(c);
      const bool plus = values_.plus[i], minus = values_.minus[i], has_nan = values_.nans[i] || (plus && minus);
      store(sums_.data(), p_.output.out.type, c, has_nan ? nan : plus ? infinity : minus ? -infinity : 0);
    }
  }

  // Adds it to a row, which has NaN or numbers of the type.
  template <class Number, class IsNan>
  void spoil(Number* numbers, const IsNan& is_nan) const {
    const auto* sums = reinterpret_cast<const Number*>(sums_.data());
    for (int c = 0; c < p_.dim(); ++c) numbers[c] = sums[c] == Number{} || is_nan(numbers[c]) ? numbers[c] : sums[c];
  }

  // Do the window's keys that are not finite all weigh nothing, as those whose score is -inf do? All their numbers that are not finite must
  // make it so, and none the opposite. Any other score that is not finite makes the row NaN, and so does an operand that came quantised:
  // its score is no longer known.
  bool weigh_nothing(std::int64_t i, const Range& seen) {
    if (!minus_infinity_stays(i, seen)) return false;
    read_query(i);
    std::int32_t bad = 0;
    for (std::size_t c = 0; c < static_cast<std::size_t>(p_.dim()); ++c) {
      const std::int32_t plus = keys_.plus[c], minus = keys_.minus[c];
      bad |= keys_.nans[c] | (query_[c] > 0 ? plus : query_[c] < 0 ? minus : plus | minus);
    }
    return bad == 0;
  }

  // Are all scores of a query that is not finite -inf?
  bool weighs_no_key(std::int64_t i, const Range& seen) {
    if (!weigh_nothing(i, seen)) return false;
    const std::span numbers(query_.data(), static_cast<std::size_t>(p_.dim()));
    if (std::any_of(numbers.begin(), numbers.end(), [](float x) { return std::isnan(x); })) return false;
    count_signs(seen);
    bool all = true;  // numbers of keys have the sign opposite to an infinity
    for (std::size_t c = 0; c < numbers.size(); ++c)
      if (std::isinf(numbers[c])) all &= (numbers[c] > 0 ? negative_ : positive_)[c] == seen.end - seen.begin;
    return all;
  }

  // Of all keys in the window; it is brought up to date only for queries with an infinity.
  void count_signs(const Range& seen) {
    Channels<float> key;
    const auto count = [&](std::int64_t j, std::int32_t one) {
      read(p_.key.tensor(), kv_head_, s_.key_begin + j, key);
      for (std::size_t c = 0; c < static_cast<std::size_t>(p_.dim()); ++c) {
        positive_[c] += key[c] > 0 ? one : 0;
        negative_[c] += key[c] < 0 ? one : 0;
      }
    };
    for (; signs_.end < seen.end; ++signs_.end) count(signs_.end, 1);
    for (; signs_.begin < seen.begin; ++signs_.begin) count(signs_.begin, -1);
  }

  // With a change of scores that keeps it, and a scale other than 0.
  bool minus_infinity_stays(std::int64_t i, const Range& seen) const {
    const ScorePlace place{head_, s_.query_position(i), s_.key_position(seen.begin), s_.key_positions.step};
    return scores_known_ && p_.scale() != 0 && changed_score(-infinity, 1.f, place) == -infinity;
  }

  // As it counts for the sign of a score.
  void read_query(std::int64_t i) {
    read(p_.query.tensor(), head_, s_.query_begin + i, query_);
    if (p_.scale() < 0)
      for (float& x : query_) x = -x;
  }

  void read(const Tensor& x, std::int64_t head, std::int64_t token, Channels<float>& to) const {
    best_backend().to_f32(row(x, s_.batch, head, token), x.type, to.data(), p_.dim());
  }

  std::byte* out(std::int64_t i) const { return row(p_.output.out, s_.batch, head_, s_.query_begin + i); }

  void fill(std::int64_t i, float value, float lse) const {
    const DType type = p_.output.out.type;
    std::byte* const to = out(i);
    store(to, type, 0, value);
    for (std::int64_t b = bytes(type); b < p_.dim() * bytes(type); b += bytes(type)) std::copy_n(to, bytes(type), to + b);
    if (p_.output.lse.data) store(row(p_.output.lse, s_.batch, head_, s_.query_begin + i), DType::f32, 0, lse);
  }

  const Problem& p_;
  const Sequence& s_;
  const std::int64_t head_, kv_head_;
  const bool scores_known_;
  const std::span<const NonFinite> queries_;
  Census keys_, values_;
  alignas(float) std::array<std::byte, max_dim * sizeof(float)> sums_{};  // of values_, in the output's type; 0: nothing
  Channels<float> query_{};
  Counts positive_{}, negative_{};  // keys in signs_
  Range signs_{};
};

}  // namespace

std::span<const NonFinite> nonfinite_of(const Quantized& x, std::int64_t sequence, std::int64_t head) {
  const auto before = [](const NonFinite& n, const std::pair<std::int64_t, std::int64_t>& place) {
    return std::pair(n.sequence, n.head) < place;
  };
  const auto first = std::lower_bound(x.nonfinite.begin(), x.nonfinite.end(), std::pair(sequence, head), before);
  const auto last = std::lower_bound(first, x.nonfinite.end(), std::pair(sequence, head + 1), before);
  return {first, last};
}

void propagate_nonfinite(const Problem& p, const Operands& o) {
  if (o.query.nonfinite.empty() && o.key.nonfinite.empty() && o.value.nonfinite.empty()) return;
  const std::int64_t heads = p.heads();
  parallel_for(static_cast<std::int64_t>(p.sequences.size()) * heads, p.options.threads, [&](std::int64_t i) {
    const std::int64_t sequence = i / heads, head = i % heads, kv_head = head / p.group();
    if (!nonfinite_of(o.query, sequence, head).empty() || !nonfinite_of(o.key, sequence, kv_head).empty() ||
        !nonfinite_of(o.value, sequence, kv_head).empty())
      NonFiniteHead(p, o, sequence, head).run();
  });
}

}  // namespace chitu::cpu
