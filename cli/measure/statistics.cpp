// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/statistics.h"

#include <algorithm>
#include <cmath>

#include "common/numbers.h"

namespace chitu::cli {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// How far x is from the truth. It is never NaN, because a maximum could lose a NaN; a wrong NaN or infinity gives infinity. A NaN or
// infinity that the truth has, too, is no difference.
double difference(double x, double truth) {
  if (x == truth || (std::isnan(x) && std::isnan(truth))) return 0;
  const double d = std::fabs(x - truth);
  return std::isnan(d) ? infinity : d;
}

// A place where nothing was compared is not the worst.
void keep_worst(Place& worst, const Place& place) {
  if (place.relative_l1 > worst.relative_l1 || std::isnan(worst.relative_l1)) worst = place;
}

}  // namespace

Comparison::Comparison(std::int64_t batches, std::int64_t heads) : heads_(heads), by_head_(static_cast<std::size_t>(batches * heads)) {}

void Comparison::Sums::add(const Sums& other) {
  difference += other.difference;
  size += other.size;
  elements += other.elements;
}

void Comparison::add(const Tensor& out, const Tensor& lse, const Tensor& true_out, const Tensor& true_lse, std::int64_t first_query) {
  for (std::int64_t b = 0; b < out.shape[0]; ++b)
    for (std::int64_t h = 0; h < heads_; ++h)
      for (std::int64_t r = 0; r < out.shape[2]; ++r) {
        add_row(out, true_out, {b, h, first_query + r}, r);
        if (!lse.data) continue;
        const double truth = load(row(true_lse, b, h, r), true_lse.type, 0), d = difference(load(row(lse, b, h, r), lse.type, 0), truth);
        lse_max_ = std::max(lse_max_, d);
        lse_sum_ += d;
        lse_rows_ += std::isfinite(truth);
      }
}

void Comparison::add_row(const Tensor& out, const Tensor& truth, Place place, std::int64_t r) {
  Sums sums;
  const std::byte *x = row(out, place.batch, place.head, r), *y = row(truth, place.batch, place.head, r);
  for (std::int64_t c = 0; c < out.shape[3]; ++c) {
    const double o = load(x, out.type, c), t = load(y, truth.type, c), d = difference(o, t);
    sums.difference += d;
    max_ = std::max(max_, d);
    squares_ += d * d;
    if (!std::isfinite(t)) continue;
    ++sums.elements;
    sums.size += std::fabs(t);
    products_ += o * t;
    out_squares_ += o * o;
    true_squares_ += t * t;
  }
  by_head_[static_cast<std::size_t>(place.batch * heads_ + place.head)].add(sums);
  place.relative_l1 = sums.relative();
  keep_worst(worst_row_, place);
}

Errors Comparison::errors() const {
  Errors e;
  Sums all;
  for (std::size_t i = 0; i < by_head_.size(); ++i) {
    all.add(by_head_[i]);
    const auto index = static_cast<std::int64_t>(i);
    e.heads.push_back({index / heads_, index % heads_, -1, by_head_[i].relative()});
    keep_worst(e.worst_head, e.heads.back());
  }
  if (lse_rows_ > 0 || lse_max_ > 0) {
    e.lse_max_diff = lse_max_;
    e.lse_mean_diff = lse_sum_ / static_cast<double>(lse_rows_);
  }
  if (all.nothing()) return e;
  const auto elements = static_cast<double>(all.elements);
  e.max_diff = max_;
  e.mean_diff = all.difference / elements;
  e.relative_l1 = all.relative();
  e.rmse = std::sqrt(squares_ / elements);
  // Two zero vectors agree; a NaN agrees with nothing.
  const double lengths = std::sqrt(out_squares_) * std::sqrt(true_squares_);
  e.cosine = all.difference == 0 ? 1 : lengths > 0 && std::isfinite(products_ / lengths) ? products_ / lengths : 0;
  e.worst_row = worst_row_;
  return e;
}

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.front(), values.back()};
}

}  // namespace chitu::cli
