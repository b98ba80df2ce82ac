// SPDX-License-Identifier: Apache-2.0
// The end of a block's rows: outputs are scaled, kept within their type and stored, with their log-sum-exp.
#pragma once

#include "cpu/block-inl.h"

namespace chitu::cpu {

// What a row's output is multiplied by, beside the channels' scales.
template <class S, class Score, class Weight>
float Block<S, Score, Weight>::factor_of(int r) const {
  const auto i = static_cast<std::size_t>(r);
  const float sum = S::reduce_add(S::load(x_.output_sum[i]));
  // Scores that overflowed have no softmax; nothing seen is 0.
  return x_.maximum[i] == infinity ? std::numeric_limits<float>::quiet_NaN() : sum == 0 ? 0 : 1 / sum;
}

template <class S, class Score, class Weight>
void Block<S, Score, Weight>::scale_row(int r) {
  float* numbers = x_.out.data() + std::int64_t{r} * l_.width;
  const F factor = S::set(factor_of(r));
  for (int c = 0; c < l_.width; c += W) S::store(numbers + c, S::mul(S::load(numbers + c), S::mul(S::load(channel_scale_ + c), factor)));
}

template <class S, class Score, class Weight>
void Block<S, Score, Weight>::store_row(int r, bool finite) {
  const Tensor& out = p_.output.out;
  const float* numbers = x_.out.data() + std::int64_t{r} * l_.width;
  std::byte* const to = row(out, sequence_.batch, head(r), token(r));
  // Nearly always all numbers are within the output's type: finite ones within fp32, and then what remains to be asked is one maximum.
  bool fits = finite;
  if (finite && out.type != DType::f32) {
    F most = S::zero();
    for (int c = 0; c < l_.width; c += W) {
      const F x = S::load(numbers + c);
      most = S::max(most, S::max(x, S::sub(S::zero(), x)));
    }
    fits = S::reduce_max(most) <= largest(out.type);
  }
  if (fits) return Quantizer<S>::from_f32(numbers, out.type, to, l_.dim);
  alignas(64) float within[max_dim + W];  // the type, as within() does it: min() and max() give their second operand where that is NaN
  const F high = S::set(largest(out.type)), low = S::set(-largest(out.type));
  for (int c = 0; c < l_.width; c += W) S::store(within + c, S::min(high, S::max(low, S::load(numbers + c))));
  Quantizer<S>::from_f32(within, out.type, to, l_.dim);
}

template <class S, class Score, class Weight>
void Block<S, Score, Weight>::finish_row(int r) {
  const auto i = static_cast<std::size_t>(r);
  const float factor = factor_of(r);
  scale_row(r);
  const bool finite = Quantizer<S>::finite(x_.out.data() + std::int64_t{r} * l_.width, l_.width);
  overflowed_ |= !std::isnan(factor) && !finite;
  store_row(r, finite);
  const Output& output = p_.output;
  if (!output.lse.data) return;
  float lse = -infinity;
  if (factor != 0) {
    const bool same = shared_.weights.lse == shared_.weights.output;
    const float total = S::reduce_add(S::load(same ? x_.output_sum[i] : x_.lse_sum[i]));
    lse = (x_.maximum[i] + std::log2(total / (shared_.weights.top * shared_.sum_unit))) * std::numbers::ln2_v<float>;
    if (const Tensor& correction = shared_.operands.query.correction; correction.data)
      lse += p_.scale() * *reinterpret_cast<const float*>(row(correction, sequence_.batch, head(r), token(r)));
  }
  *reinterpret_cast<float*>(row(output.lse, sequence_.batch, head(r), token(r))) = lse;
}

// Sums of large values overflowed whose mean does not: once more with values that are so much smaller that no sum can, for just those
// numbers of the outputs. All others keep their bits, and calls without such values pay nothing.
template <class S, class Score, class Weight>
void Block<S, Score, Weight>::attend_again() {
  const float* numbers = x_.out.data();
  const std::vector<float> first(numbers, numbers + std::int64_t{rows_} * l_.width);
  value_unit_ = 0x1p-40f;  // 2^31 keys, weights up to 255 or 448
  attend();
  for (int r = 0; r < rows_; ++r) {
    const float* before = first.data() + std::int64_t{r} * l_.width;
    if (Quantizer<S>::finite(before, l_.width)) continue;
    scale_row(r);
    float* now = x_.out.data() + std::int64_t{r} * l_.width;
    for (int c = 0; c < l_.dim; ++c) now[c] = is_finite(before[c]) ? before[c] : now[c] / value_unit_;
    store_row(r, false);
  }
}

}  // namespace chitu::cpu
