// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/truth.h"

#include <algorithm>
#include <cmath>

#include "common/numbers.h"

namespace chitu::cli {
namespace {

// Products of a query's and a key's channels that double precision takes in about 3 s on two cores.
constexpr double affordable_products = 0x1p32;

void count_not_finite(Truth& truth) {
  const Shape& s = truth.out.tensor.shape;
  for (std::int64_t b = 0; b < s[0]; ++b)
    for (std::int64_t h = 0; h < s[1]; ++h)
      for (std::int64_t r = 0; r < s[2]; ++r) {
        const auto* x = reinterpret_cast<const float*>(row(truth.out.tensor, b, h, r));
        const auto spoilt = std::count_if(x, x + s[3], [](float number) { return !std::isfinite(number); });
        truth.not_finite += spoilt;
        truth.not_finite_rows += spoilt > 0;
      }
}

}  // namespace

RowRuns last_rows(std::int64_t queries, std::int64_t rows) {
  const std::int64_t count = std::min(rows, queries);
  return {{queries - count, count}};
}

RowRuns spread_rows(std::int64_t queries, std::int64_t rows) {
  if (rows >= queries) return {{0, queries}};
  const std::int64_t length = std::min<std::int64_t>(rows, 32), count = rows / length;
  RowRuns runs;
  for (std::int64_t i = 0; i < count; ++i) runs.push_back({count == 1 ? queries - length : i * (queries - length) / (count - 1), length});
  return runs;
}

std::int64_t affordable_rows(const Workload& w) {
  const std::int64_t queries = w.query.shape[2];
  const double products = static_cast<double>(w.pairs() * w.query.shape[3]);
  if (products <= affordable_products) return queries;
  return std::max<std::int64_t>(8, static_cast<std::int64_t>(static_cast<double>(queries) * affordable_products / products));
}

std::int64_t total(const RowRuns& runs) {
  std::int64_t sum = 0;
  for (const RowRun& run : runs) sum += run.count;
  return sum;
}

Truth truth_of(const Workload& w, RowRuns runs) {
  const Shape& q = w.query.shape;
  const std::int64_t rows = total(runs);
  Truth truth{
      .runs = std::move(runs), .out = allocate(DType::f32, {q[0], q[1], rows, q[3]}), .lse = allocate(DType::f32, {q[0], q[1], rows, 1})};
  std::int64_t at = 0;
  for (const RowRun& run : truth.runs) {
    const RowRun part{at, run.count};
    attention(rows_of(w.query, run), w.key, w.value, {rows_of(truth.out.tensor, part), rows_of(truth.lse.tensor, part)},
              {.recipe = recipes::exact,
               .window = w.window,
               .query_positions = Positions{w.key.shape[2] - q[2] + run.first, 1},
               .threads = w.threads,
               .kernel = "cpu.reference"});
    at += run.count;
  }
  count_not_finite(truth);
  return truth;
}

std::string nothing_compared(const Truth& truth) {
  const std::int64_t rows = truth.rows_of_all_heads();
  if (rows == 0) return "there are no query rows";
  return truth.not_finite == rows * truth.out.tensor.shape[3] ? "no number of the truth is finite" : "";
}

Tensor rows_of(Tensor t, const RowRun& run) {
  if (!t.data) return t;
  t.data = static_cast<std::byte*>(t.data) + run.first * t.stride[2] * bytes(t.type);
  t.shape[2] = run.count;
  return t;
}

Quantized rows_of(const Quantized& query, const RowRun& run) {
  Quantized part = query;
  part.values = rows_of(query.values, run);
  part.correction = rows_of(query.correction, run);
  if (query.quant.scaling == Scaling::tokens)
    part.scales = rows_of(query.scales, {query.quant.groups.count(run.first), query.quant.groups.count(run.count)});
  part.nonfinite.clear();
  for (NonFinite n : query.nonfinite) {
    n.token -= run.first;
    if (n.token >= 0 && n.token < run.count) part.nonfinite.push_back(std::move(n));
  }
  return part;
}

Errors compare(const Output& output, const Truth& truth) {
  Comparison comparison(truth.out.tensor.shape[0], truth.out.tensor.shape[1]);
  std::int64_t at = 0;
  for (const RowRun& run : truth.runs) {
    const RowRun part{at, run.count};
    comparison.add(rows_of(output.out, run), rows_of(output.lse, run), rows_of(truth.out.tensor, part), rows_of(truth.lse.tensor, part),
                   run.first);
    at += run.count;
  }
  return comparison.errors();
}

}  // namespace chitu::cli
