// SPDX-License-Identifier: Apache-2.0
// A block of rows, from its queries to its outputs:
//
//   for each tile of 128 keys:              (floating operands are unpacked to panels here, once a block and tile)
//     for each step of rows:                scores -> softmax -> weights . values, all in L1
//
// A row is a query of one of the heads that share a kv head, so that grouped heads share panels too.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "common/limits.h"
#include "common/numbers.h"
#include "common/score.h"
#include "cpu/exp2-inl.h"
#include "cpu/products-inl.h"
#include "cpu/shared-inl.h"
#include "cpu/tiles-inl.h"
#include "cpu/weighers-inl.h"

namespace chitu::cpu {

// A task of a thread.
template <class S, class Score, class Weight>
class Block {
  using Common = Shared<S, Score, Weight>;
  using Unit = typename Common::Unit;
  using Scratch = cpu::Scratch<S, Weight>;
  using Weighed = typename Scratch::Weighed;
  using F = typename S::F;
  using I = typename S::I;
  using L = Layout<S>;
  static constexpr int W = S::width, R = L::R, vectors = tile_tokens / W;
  static constexpr bool int8_scores = Common::int8_scores, int8_weights = Common::int8_weights;
  static constexpr bool tile_scores = L::template on_tiles<Score>, tile_weights = L::template on_tiles<Weight>;
  static constexpr int weight_bytes = 4 / Weight::group;
  static constexpr int VR = S::has_tiles ? 4 : R;  // rows of a product on vectors
  // The next step's weights are made in the shade of a step's product with the values.
  static constexpr bool overlapped = int8_weights && S::overlaps;
  static constexpr float infinity = std::numeric_limits<float>::infinity();

 public:
  Block(const Common& shared, const Unit& unit, const Panels<S>& panels, std::int64_t first_row, Scratch& scratch)
      : shared_(shared),
        p_(shared.problem),
        l_(shared.layout),
        unit_(unit),
        sequence_(shared.sequence_of(unit)),
        panels_(panels),
        x_(scratch),
        first_row_(first_row),
        rows_(static_cast<int>(std::min<std::int64_t>(L::block, shared.rows_of(unit) - first_row))),
        value_(shared.operands.value, unit.sequence, unit.head) {
    const Scaling scaling = shared.operands.value.quant.scaling;
    for (int c = 0; c < l_.dim; ++c)
      channel_scale_[c] = scaling == Scaling::head      ? value_.scales[0]
                          : scaling == Scaling::channel ? value_.scales[c]
                          : scaling == Scaling::tile    ? value_.channels[c]
                                                        : 1;
  }

  void run() {
    [[maybe_unused]] const typename S::Tiles tiles;
    attend();
    for (int r = 0; r < rows_; ++r) finish_row(r);
    if (overflowed_) attend_again();
  }

 private:
  // From the queries to unscaled outputs and their sums.
  void attend() {
    Range all{std::numeric_limits<std::int64_t>::max(), 0};
    for (int r = 0; r < round_up(rows_, R); ++r) all = join(all, start_row(r));
    std::fill_n(x_.out.data(), std::int64_t{round_up(rows_, R)} * l_.width, 0.f);
    Step before{};
    for (std::int64_t tile = all.empty() ? 0 : all.begin / tile_tokens; tile * tile_tokens < all.end; ++tile) {
      bool entered = false;
      for (int r = 0; r < rows_; r += L::step) {
        const int rows = std::min(L::step, rows_ - r);
        Range seen{std::numeric_limits<std::int64_t>::max(), 0};
        for (int i = r; i < r + rows; ++i) seen = join(seen, x_.seen[static_cast<std::size_t>(i)]);
        const Range part{std::max<std::int64_t>(seen.begin - tile * tile_tokens, 0),
                         std::min<std::int64_t>(seen.end - tile * tile_tokens, tile_tokens)};
        if (part.empty()) continue;
        if (!entered) enter(tile);
        entered = true;
        const Step step{tile, r, rows, part};
        score(step);
        update_maxima(step);
        if constexpr (int8_weights)
          shared_.sums_unrounded ? weigh_int8<true>(step, before) : weigh_int8<false>(step, before);
        else
          weigh(step);
        std::swap(now_, done_);
        if (overlapped)
          before = step;
        else
          accumulate(step, nothing_);
      }
    }
    if (before.rows) accumulate(before, nothing_);
  }

  static Range join(const Range& a, const Range& b) { return b.empty() ? a : Range{std::min(a.begin, b.begin), std::max(a.end, b.end)}; }
  std::int64_t head(int r) const { return unit_.head * p_.group() + (first_row_ + r) / sequence_.queries; }
  std::int64_t query(int r) const { return (first_row_ + r) % sequence_.queries; }
  std::int64_t token(int r) const { return sequence_.query_begin + query(r); }

  // Rows that are computed for the sake of `rows`: products on vectors make whole register blocks.
  static int computed(int rows) { return S::has_tiles ? rows : round_up(rows, R); }

  struct Step {
    std::int64_t tile;
    int row, rows;
    Range part;  // keys of the tile that its rows see
  };

  // Puts a row's query into place; returns the keys that it sees. Rows past the last are zeros and see none.
  Range start_row(int r) {
    const auto i = static_cast<std::size_t>(r);
    const int lanes = l_.template lanes<Score>();
    typename Score::Stored numbers[Packer<S, Score>::row_numbers] = {};
    x_.seen[i] = {};
    x_.maximum[i] = -infinity;
    std::fill_n(x_.output_sum[r], W, 0.f);
    std::fill_n(x_.lse_sum[r], W, 0.f);
    if (r < rows_) {
      const Indexed& q = shared_.operands.query;
      const Locator where(q, unit_.sequence, head(r));
      read(q, head(r), sequence_.query_begin + query(r), numbers);
      if (p_.scale() < 0) negate<S>(numbers, l_.dim);  // so that larger scores are larger weights
      const float unit = shared_.query_unit;
      x_.row_scale[i] = std::fabs(p_.scale()) / unit * std::numbers::log2e_v<float>;
      if (q.quant.scaling == Scaling::none && unit != 1) multiply<S>(numbers, l_.dim, unit);
      if (q.quant.scaling == Scaling::tokens) x_.row_scale[i] *= unit * where.scales[where.group(query(r))] / panels_.key_unit;
      if (q.quant.scaling == Scaling::head)
        x_.row_scale[i] *= unit * where.scales[0] * Locator(shared_.operands.key, unit_.sequence, unit_.head).scales[0];
      x_.seen[i] = sequence_.visible(p_.options.window, query(r));
    }
    if constexpr (tile_scores)
      std::memcpy(x_.query.data() + r * lanes * 4, numbers, static_cast<std::size_t>(lanes) * 4);
    else
      spread(numbers, x_.query.data() + (r / R * R * lanes + r % R) * 4);
    return x_.seen[i];
  }

  // A query's lanes into a register block of rows.
  void spread(const typename Score::Stored* numbers, std::byte* to) const {
    for (int lane = 0; lane < l_.template lanes<Score>(); ++lane) {
      std::uint32_t four;
      std::memcpy(&four, numbers + lane * Score::group, 4);
      if (int8_scores) four ^= 0x80808080u;  // + 128
      std::memcpy(to + lane * R * 4, &four, 4);
    }
  }

  // A row of an operand as the numbers of a product; NaN and infinity as 0.
  void read(const Quantized& x, std::int64_t head, std::int64_t token, std::int8_t* to) const {
    std::memcpy(to, row(x.values, sequence_.batch, head, token), static_cast<std::size_t>(l_.dim));
  }
  void read(const Quantized& x, std::int64_t head, std::int64_t token, std::uint16_t* to) const {
    std::memcpy(to, row(x.values, sequence_.batch, head, token), static_cast<std::size_t>(l_.dim) * 2);
    if (!x.nonfinite.empty())
      std::replace_if(
          to, to + l_.dim, [](std::uint16_t h) { return (h & 0x7f80) == 0x7f80; }, std::uint16_t{0});
  }
  void read(const Quantized& x, std::int64_t head, std::int64_t token, float* to) const {
    const std::byte* from = row(x.values, sequence_.batch, head, token);
    if (x.values.type == DType::e4m3) {
      static const std::array<float, 256> table = e4m3_table();
      for (int c = 0; c < l_.dim; ++c) to[c] = table[static_cast<std::size_t>(from[c])];
    } else {
      Quantizer<S>::to_f32(from, x.values.type, to, l_.dim);
    }
    if (!x.nonfinite.empty())
      std::replace_if(
          to, to + l_.dim, [](float f) { return !is_finite(f); }, 0.f);
  }

  // What all steps of a tile share; floating operands are unpacked.
  void enter(std::int64_t tile) {
    biased_ = set_bias(tile);
    key_scale_ = shared_.keys_share_scales ? S::load(panels_.key_scale.data() + tile * tile_tokens) : S::set(1);
    const std::int64_t first = tile * tile_tokens;
    const auto from = [&](const Quantized& x) {
      return [&, this](int j, auto* numbers) {
        if (first + j < sequence_.keys)
          read(x, unit_.head, sequence_.key_begin + first + j, numbers);
        else
          std::fill_n(numbers, l_.dim, std::remove_reference_t<decltype(*numbers)>{});
      };
    };
    const int count = static_cast<int>(std::min<std::int64_t>(tile_tokens, sequence_.keys - first));
    if constexpr (!int8_scores) Packer<S, Score>::keys(l_, count, x_.keys.data(), from(shared_.operands.key));
    if constexpr (!int8_weights)
      Packer<S, Weight>::values(l_, count, x_.values.data(), [&, read = from(shared_.operands.value)](int j, auto* numbers) {
        read(j, numbers);
        if (value_unit_ != 1) multiply<S>(numbers, l_.dim, value_unit_);
      });
  }

  void score(const Step& s) {
    // Where a vector of scores goes to tells whose they are: a functor made anew for each product would cost the loop 0.7 %.
    const auto change = [&](const float* to, F score) {
      const std::int64_t at = to - x_.scores, key = s.tile * tile_tokens + at % tile_tokens;
      const int row = s.row + static_cast<int>(at / tile_tokens);
      const F unit = S::mul(S::set(x_.row_scale[static_cast<std::size_t>(row)] * std::numbers::ln2_v<float>), key_scale_);
      return changed_score<F>(score, unit,
                              {head(row), sequence_.query_position(query(row)), sequence_.key_position(key), sequence_.key_positions.step});
    };
    const std::byte* keys = int8_scores ? panels_.keys + s.tile * shared_.tile_key_bytes : x_.keys.data();
    const float* scale = int8_scores && !shared_.keys_share_scales ? panels_.key_scale.data() + s.tile * tile_tokens : nullptr;
    if constexpr (tile_scores)
      score_on_tiles(s, keys, scale, change);
    else
      score_on_vectors(s, keys, scale, change);
  }

  template <class Change>
  void score_on_vectors(const Step& s, const std::byte* keys, const float* scale, const Change& change) {
    using P = VectorProducts<S, Score>;
    const int lanes = l_.template lanes<Score>(), first = static_cast<int>(s.part.begin) / L::panel;
    for (int panel = first; panel * L::panel < s.part.end; ++panel) {
      const std::byte* k = keys + panel * L::panel * lanes * 4;
      const std::int32_t* start = int8_scores ? panels_.key_start.data() + s.tile * tile_tokens + panel * L::panel : nullptr;
      const float* by = scale ? scale + panel * L::panel : nullptr;
      for (int r = 0; r < s.rows; r += R) {
        const std::byte* q = x_.query.data() + (s.row + r) * lanes * 4;
        float* to = x_.scores + r * tile_tokens + panel * L::panel;
        s.rows - r == 1 ? P::template scores<1>(q, k, start, by, lanes, to, x_.top + r, panel == first, change)
                        : P::template scores<R>(q, k, start, by, lanes, to, x_.top + r, panel == first, change);
        if (int8_scores) prefetch(k + shared_.tile_key_bytes, L::panel * lanes * 4, s.row + r);
        if ((panel + 1) * L::panel >= s.part.end)  // here, where the next product hides most of it
          for (int i = r; i < r + R; ++i) find_maximum(s, i);
      }
    }
  }

  // Each two tiles of keys are finished beside the products of the next two.
  template <class Change>
  void score_on_tiles(const Step& s, const std::byte* keys, const float* scale, const Change& change) {
    using P = TileProducts<S, Score>;
    const int lanes = l_.template lanes<Score>(), begin = static_cast<int>(s.part.begin) / P::pair * P::pair;
    const int end = round_up(static_cast<int>(s.part.end), P::pair);
    for (int r = 0; r < s.rows; ++r) S::store(x_.top[r], S::set(-infinity));
    const auto finish = [&](int at) {
      scale ? P::template finish<true>(s.rows, at, scale, x_.scores, x_.top, change)
            : P::template finish<false>(s.rows, at, scale, x_.scores, x_.top, change);
    };
    for (int first = begin; first < end; first += P::pair)
      P::scores(s.rows, x_.query.data() + s.row * lanes * 4, keys, lanes, first, x_.scores + first, [&] {
        if (first > begin) finish(first - P::pair);
      });
    finish(end - P::pair);
    for (int r = 0; r < s.rows; ++r) find_maximum(s, r);
  }

  // A panel of the next tile on its way to the caches, a part of it beside each register block of rows: without, the first step of
  // each tile takes half as long again. After the last tile the hint is void.
  static void prefetch(const std::byte* panel, int bytes, int row) {
    const int share = bytes * R / L::block;
    for (int b = 0; b < share; b += 64) __builtin_prefetch(panel + row / R * share + b);
  }

  // A row's largest score in the tile, after masking.
  void find_maximum(const Step& s, int r) {
    const auto i = static_cast<std::size_t>(s.row + r);
    const Range& seen = x_.seen[i];
    const int begin = static_cast<int>(std::max<std::int64_t>(seen.begin - s.tile * tile_tokens, 0));
    const int end = static_cast<int>(std::min<std::int64_t>(seen.end - s.tile * tile_tokens, tile_tokens));
    const bool whole = begin == 0 && end == tile_tokens && !biased_;
    const F factor = S::mul(S::set(x_.row_scale[i]), key_scale_);
    S::store(x_.factor[r], factor);
    // The second maximum is for lanes without a key in a call with scale 0: -inf * 0.
    x_.tile_maximum[r] =
        begin >= end ? -infinity
                     : S::reduce_max(S::max(S::mul(factor, whole ? S::load(x_.top[r]) : mask_row(r, begin, end)), S::set(-infinity)));
  }

  // Is there a key in the tile that must weigh nothing? Then the bias is set.
  bool set_bias(std::int64_t tile) {
    const std::int64_t first = tile * tile_tokens;
    auto key = std::lower_bound(unit_.nonfinite_keys.begin(), unit_.nonfinite_keys.end(), first);
    if (key == unit_.nonfinite_keys.end() || *key >= first + tile_tokens) return false;
    std::fill_n(x_.bias, tile_tokens, 0.f);
    for (; key != unit_.nonfinite_keys.end() && *key < first + tile_tokens; ++key) x_.bias[*key - first] = -infinity;
    return true;
  }

  // Makes the scores of keys that are not seen -inf; returns the others' maximum, lane by lane.
  F mask_row(int r, int begin, int end) {
    float* scores = x_.scores + r * tile_tokens;
    F top = S::set(-infinity);
    for (int v = 0; v < vectors; ++v) {
      F score = S::load(scores + v * W);
      if (biased_) score = S::add(score, S::load(x_.bias + v * W));
      score = S::keep(score, v * W, begin, end, S::set(-infinity));
      S::store(scores + v * W, score);
      top = S::max(score, top);
    }
    return top;
  }

  // With the maxima of all rows: what the step's weights, sums and products are multiplied by.
  void update_maxima(const Step& s) {
    const bool by_tile = shared_.weights.by_tile;
    const float unit = shared_.sum_unit *
                       (value_.scales && shared_.operands.value.quant.scaling == Scaling::tile ? value_.scales[s.tile] : 1) *
                       (int8_weights ? value_unit_ : 1);
    const int rows = computed(s.rows), padded = round_up(rows, W);
    std::fill(x_.tile_maximum + rows, x_.tile_maximum + padded, -infinity);
    float* running = x_.maximum.data() + s.row;
    F change = S::zero();
    for (int r = 0; r < padded; r += W) {
      // max() gives its second operand where the first is NaN: -inf - -inf.
      const F top = S::load(x_.tile_maximum + r), before = S::load(running + r);
      // Weights by tile do not depend on the running maximum, which is just the unit of the sums. It may lag then, so that the output
      // is rarely rescaled.
      const F now = S::max(shared_.lags ? S::sub(top, S::set(Common::lag)) : top, before), relative_to = by_tile ? top : now;
      const F keep = exp2<S, 5>(S::sub(before, now)), weight = exp2<S, 5>(S::sub(relative_to, now));
      change = S::max(S::sub(S::set(1), keep), change);
      S::store(running + r, now);
      S::store(now_->keep + r, keep);
      S::store(now_->weight + r, S::mul(weight, S::set(unit)));
      S::store(now_->residual_weight + r, S::mul(weight, S::set(unit / residual_parts)));
      S::store(now_->sum_weight + r, S::mul(weight, S::set(shared_.sum_unit)));
      // Adding log2_top_ here makes the loop faster. With scores from 1e5 on the sum is rounded, so that u8 weights may saturate; such
      // scores have larger errors of their own. Where unrounded weights are summed, exponential() adds it instead.
      S::store(x_.offset + r, S::sub(S::set(int8_weights ? shared_.log2_top : 0), relative_to));
    }
    now_->kept = S::reduce_max(change) == 0;
    for (int r = 0; r < rows; ++r)
      if (x_.tile_maximum[r] == -infinity) x_.offset[r] = -infinity;  // sees no key in the tile: all weights 0
  }

  template <bool unrounded>
  void weigh_int8(const Step& s, const Step& before) {
    const int rows = computed(s.rows);
    if (unrounded) std::fill_n(now_->unrounded[0], rows * W, 0.f);
    using Aside = std::conditional_t<tile_weights, RowWeigher<S, unrounded>, VectorWeigher<S, unrounded>>;
    Aside weigher{&x_, now_->weights, now_->unrounded, 0, static_cast<unsigned>(tile_weights ? rows : rows * vectors)};
    if (overlapped && before.rows) accumulate(before, weigher);
    while (weigher.left()) weigher();
  }

  void weigh(const Step& s) {
    const Weights& w = shared_.weights;
    for (int r = 0; r < computed(s.rows); ++r)
      if (x_.tile_maximum[r] == -infinity)
        std::memset(now_->weights + r * tile_tokens * weight_bytes, 0, tile_tokens * weight_bytes);
      else if constexpr (std::is_same_v<Weight, Bf16>)
        weigh_row_bf16(s.row, r);
      else if (w.type == DType::f16)
        weigh_row_f32<round_f16<S>>(s.row, r);
      else if (w.type == DType::e4m3)
        weigh_row_f32<round_e4m3<S>>(s.row, r);
      else
        weigh_row_f32<not_rounded<S>>(s.row, r);
  }

  // 2^(scores - what they are relative to), times the recipe's top: vector v of a row.
  F exponential(int r, int v) const {
    const F score = S::mul(S::load(x_.scores + r * tile_tokens + v * W), S::load(x_.factor[r]));
    return exp2<S, 5>(S::add(S::add(score, S::set(x_.offset[r])), S::set(shared_.log2_top)));
  }

  void weigh_row_bf16(int r0, int r) {
    F sum = S::zero();
    unroll<vectors / 2>([&](auto pair) {
      const F a = exponential(r, pair * 2), b = exponential(r, pair * 2 + 1);
      S::store_i(now_->weights + (r * tile_tokens + pair * 2 * W) * 2, S::pack_bf16(a, b));
      sum = S::add(sum, S::add(a, b));
    });
    add_sums(*now_, r0, r, sum, sum);
  }

  template <F (*round)(F)>
  void weigh_row_f32(int r0, int r) {
    F unrounded = S::zero(), rounded = S::zero();
    unroll<vectors>([&](auto v) {
      const F p = exponential(r, v), u = round(p);
      S::store(reinterpret_cast<float*>(now_->weights) + r * tile_tokens + v * W, u);
      unrounded = S::add(unrounded, p);
      rounded = S::add(rounded, u);
    });
    add_sums(*now_, r0, r, rounded, unrounded);
  }

  // Of the u8 weights of rows [first, last) of a step.
  void add_sums_int8(int r0, int first, int last) {
    for (int r = first; r < last; ++r) {
      I sum = S::set_i(0);
      unroll<vectors / 4>(
          [&](auto v) { sum = S::dot4(sum, S::load_i(done_->weights + r * tile_tokens + v * 4 * W), S::set_i(0x01010101)); });
      add_sums(*done_, r0, r, S::to_float(sum), shared_.sums_unrounded ? S::load(done_->unrounded[r]) : S::zero());
    }
  }

  void add_sums(const Weighed& of, int r0, int r, F rounded, F unrounded) {
    const F keep = S::set(of.keep[r]), weight = S::set(of.sum_weight[r]);
    const auto add = [&](float* sum, Sum kind) {
      S::store(sum, S::fma(S::load(sum), keep, S::mul(weight, kind == Sum::rounded ? rounded : unrounded)));
    };
    add(x_.output_sum[r0 + r], shared_.weights.output);
    if (shared_.weights.lse != shared_.weights.output) add(x_.lse_sum[r0 + r], shared_.weights.lse);
  }

  template <class Aside>
  void accumulate(const Step& s, Aside& aside) {
    const float* keep = done_->kept ? nullptr : done_->keep;
    if constexpr (int8_weights) {
      product(panels_.values + s.tile * shared_.tile_value_bytes, s, keep, done_->weight, aside);
      const std::int32_t flagged = panels_.residual_of.empty() ? -1 : panels_.residual_of[static_cast<std::size_t>(s.tile)];
      if (flagged >= 0) product(panels_.residuals.data() + flagged * shared_.tile_value_bytes, s, nullptr, done_->residual_weight, aside);
    } else {
      product(x_.values.data(), s, keep, done_->weight, aside);
    }
  }

  template <class Aside>
  void product(const std::byte* values, const Step& s, const float* keep, const float* weight, Aside& aside) {
    const bool sums = int8_weights && weight == done_->weight;  // of the tile's weights are still to be added
    const int begin = static_cast<int>(s.part.begin), end = static_cast<int>(s.part.end);
    if constexpr (tile_weights) {
      if (sums) add_sums_int8(s.row, 0, s.rows);
      return TileProducts<S, Weight>::values(l_, s.rows, done_->weights, values, begin, end, keep, weight,
                                             x_.out.data() + std::int64_t{s.row} * l_.width, aside);
    }
    using P = VectorProducts<S, Weight>;
    for (int c = 0; c < l_.width; c += L::panel)
      for (int r = 0; r < s.rows; r += VR) {
        const auto call = [&]<int NV>(std::integral_constant<int, NV>) {
          const std::byte *w = done_->weights + r * tile_tokens * weight_bytes, *v = values + c * tile_tokens * weight_bytes;
          float* out = x_.out.data() + std::int64_t{s.row + r} * l_.width + c;
          const float* kept = keep ? keep + r : nullptr;
          if (sums && c == 0) add_sums_int8(s.row, r, r + R);  // hidden by the product
          if (int8_weights) prefetch(v + shared_.tile_value_bytes, NV * W * tile_tokens, s.row + r);
          s.rows - r == 1 ? P::template values<1, NV>(w, v, begin, end, kept, weight + r, out, l_.width, aside)
                          : P::template values<VR, NV>(w, v, begin, end, kept, weight + r, out, l_.width, aside);
        };
        with_vectors(l_.panel_width(c) / W, call);
      }
  }

  template <class Call, int NV = L::V>
  static void with_vectors(int count, const Call& call) {
    if constexpr (NV > 1) {
      if (count != NV) return with_vectors<Call, NV - 1>(count, call);
    }
    call(std::integral_constant<int, NV>{});
  }

  // The end of a row: finish-inl.h.
  float factor_of(int r) const;
  void scale_row(int r);
  void store_row(int r, bool finite);
  void finish_row(int r);
  void attend_again();

  const Common& shared_;
  const Problem& p_;
  const L& l_;
  const Unit& unit_;
  const Sequence& sequence_;
  const Panels<S>& panels_;
  Scratch& x_;
  const std::int64_t first_row_;
  const int rows_;
  const Locator value_;
  Weighed *now_ = &x_.weighed[0], *done_ = &x_.weighed[1];  // of the step that is weighed, and of the one before
  struct {
    int left() const { return 0; }
    void operator()() {}
  } nothing_;
  bool biased_ = false;                                // the tile has a bias
  bool overflowed_ = false;                            // a row's output
  float value_unit_ = 1;                               // what values are multiplied by, in attend_again()
  F key_scale_;                                        // of the tile's keys, lane by lane, where the products have left it out; else 1
  alignas(64) float channel_scale_[max_dim + W] = {};  // what each channel of the output is multiplied by at the end
};

}  // namespace chitu::cpu
