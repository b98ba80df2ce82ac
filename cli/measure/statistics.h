// SPDX-License-Identifier: Apache-2.0
// Numbers about numbers: how far an attention's result is from the truth, and the middle and spread of repeated timings.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "chitu/tensor.h"

namespace chitu::cli {

inline constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

// A head, or a row of one (query >= 0), and its relative L1.
struct Place {
  std::int64_t batch = 0, head = 0, query = -1;
  double relative_l1 = unknown;
};

// Errors over all elements that are finite in the truth; "relative L1" is sum |o - r| / sum |r|. Where the truth is not finite, the output
// must have the same NaN or infinity. If it does not, or if it has one where the truth is finite, the difference is infinite. Errors are
// unknown, not 0, if nothing was compared.
struct Errors {
  double max_diff = unknown, mean_diff = unknown, relative_l1 = unknown, rmse = unknown, cosine = unknown;
  double lse_max_diff = unknown, lse_mean_diff = unknown;
  Place worst_head, worst_row;
  std::vector<Place> heads;  // all, in the order of batch entry and head
};

// Collects rows by a call of add() for each run of rows.
class Comparison {
 public:
  Comparison(std::int64_t batches, std::int64_t heads);
  // Outputs [batch, heads, rows, dim], lse [batch, heads, rows, 1], or absent. first_query: the query that row 0 is.
  void add(const Tensor& out, const Tensor& lse, const Tensor& true_out, const Tensor& true_lse, std::int64_t first_query);
  Errors errors() const;

 private:
  struct Sums {
    double difference = 0, size = 0;
    std::int64_t elements = 0;  // finite in the truth
    bool nothing() const { return elements == 0 && difference == 0; }
    double relative() const { return nothing() ? unknown : difference == 0 ? 0 : difference / size; }
    void add(const Sums& other);
  };
  void add_row(const Tensor& out, const Tensor& truth, Place place, std::int64_t row);

  std::int64_t heads_;
  std::vector<Sums> by_head_;
  Place worst_row_;
  double max_ = 0, squares_ = 0, products_ = 0, out_squares_ = 0, true_squares_ = 0, lse_max_ = 0, lse_sum_ = 0;
  std::int64_t lse_rows_ = 0;  // finite in the truth
};

struct Spread {
  double median = unknown, min = unknown, max = unknown;
};
Spread spread_of(std::vector<double> values);  // at least one

}  // namespace chitu::cli
