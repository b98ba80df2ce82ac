// SPDX-License-Identifier: Apache-2.0
// Number formats and exact attention: oracle.h.
#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/numbers.h"
#include "common/score.h"

namespace chitu::test::oracle {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::vector<double> head_of(const Tensor& t, std::int64_t batch, std::int64_t head) {
  std::vector<double> all;
  for (std::int64_t token = 0; token < t.shape[2]; ++token)
    for (std::int64_t c = 0; c < t.shape[3]; ++c) all.push_back(load(row(t, batch, head, token), t.type, c));
  return all;
}

double dot(const double* x, const double* y, std::size_t dim) {
  double sum = 0;
  for (std::size_t c = 0; c < dim; ++c) sum += x[c] * y[c];
  return sum;
}

// A row's softmax over the scores (-inf: unseen), times value [key][dim].
void row_of(const std::vector<double>& scores, const std::vector<double>& value, std::int64_t first, std::size_t dim, double* out,
            double& lse) {
  double top = -infinity;
  bool nan = false;
  for (const double s : scores) {
    nan |= std::isnan(s);
    top = std::max(top, s);
  }
  std::fill_n(out, dim, 0.);
  lse = nan ? std::numeric_limits<double>::quiet_NaN() : top;
  if (!nan && top == -infinity) return;
  double sum = 0;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    if (scores[j] == -infinity) continue;
    const double weight = nan ? std::numeric_limits<double>::quiet_NaN() : std::exp(scores[j] - top);
    sum += weight;
    for (std::size_t c = 0; c < dim; ++c) out[c] += weight * value[(static_cast<std::size_t>(first) + j) * dim + c];
  }
  for (std::size_t c = 0; c < dim; ++c) out[c] /= sum;
  lse = top + std::log(sum);
}

}  // namespace

double round_to(const Format& format, double x) {
  if (std::isnan(x)) return x;
  const double size = std::fabs(x);
  const int exponent = size == 0 ? format.smallest_exponent : std::max(std::ilogb(std::min(size, 0x1p1000)), format.smallest_exponent);
  const double unit = std::ldexp(1, exponent - format.fraction_bits);
  const double rounded = std::isinf(size) ? size : std::nearbyint(size / unit) * unit;
  const double result = rounded <= format.largest ? rounded : format.has_infinity ? infinity : format.largest;
  return std::copysign(result, x);
}

float round_to(DType type, float x) {
  return type == DType::f32 ? x : static_cast<float>(round_to(type == DType::f16 ? f16 : bf16, double{x}));
}

std::vector<Run> runs(const Call& call) {
  const Options& o = call.options;
  std::vector<Run> all;
  if (o.query_starts.empty())
    for (std::int64_t b = 0; b < call.query.shape[0]; ++b) all.push_back({b, b, 0, call.query.shape[2], 0, call.key.shape[2]});
  for (std::size_t i = 1; i < o.query_starts.size(); ++i)
    all.push_back({0, static_cast<std::int64_t>(i) - 1, o.query_starts[i - 1], o.query_starts[i], o.key_starts[i - 1], o.key_starts[i]});
  return all;
}

static Positions key_positions(const Call& call, const Run& run) {
  const Options& o = call.options;
  return o.key_positions_of.empty() ? o.key_positions.value_or(Positions{0, 1})
                                    : o.key_positions_of[static_cast<std::size_t>(run.sequence)];
}

std::int64_t key_position(const Call& call, const Run& run, std::int64_t key) {
  const Positions keys = key_positions(call, run);
  return keys.first + (key - run.key_begin) * keys.step;
}

std::int64_t query_position(const Call& call, const Run& run, std::int64_t query) {
  const Options& o = call.options;
  if (!o.query_positions_of.empty()) {
    const Positions& queries = o.query_positions_of[static_cast<std::size_t>(run.sequence)];
    return queries.first + (query - run.query_begin) * queries.step;
  }
  if (const auto& queries = o.query_positions) return queries->first + (query - run.query_begin) * queries->step;
  // The last query stands at the last key.
  const Positions keys = key_positions(call, run);
  return key_position(call, run, run.key_end - 1) - (run.query_end - 1 - query) * keys.step;
}

bool sees(const Call& call, const Run& run, std::int64_t query, std::int64_t key) {
  const std::int64_t at_query = query_position(call, run, query), at_key = key_position(call, run, key);
  return at_key >= at_query - call.options.window.left && at_key <= at_query + call.options.window.right;
}

double scale_of(const Call& call) {
  return call.options.scale ? double{*call.options.scale} : 1 / std::sqrt(static_cast<double>(call.query.shape[3]));
}

Exact attention(const Call& call) {
  const auto [batch, heads, queries, channels] = call.query.shape;
  const auto dim = static_cast<std::size_t>(channels);
  const double scale = scale_of(call);
  const auto rows = static_cast<std::size_t>(batch * heads * queries);
  Exact result{std::vector<double>(rows * dim), std::vector<double>(rows)};
  for (const Run& run : runs(call))
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t kv_head = h * call.key.shape[1] / heads;
      const auto q = head_of(call.query, run.batch, h), k = head_of(call.key, run.batch, kv_head),
                 v = head_of(call.value, run.batch, kv_head);
      std::vector<double> scores(static_cast<std::size_t>(run.key_end - run.key_begin));
      for (std::int64_t i = run.query_begin; i < run.query_end; ++i) {
        for (std::int64_t j = run.key_begin; j < run.key_end; ++j)
          scores[static_cast<std::size_t>(j - run.key_begin)] =
              sees(call, run, i, j)
                  ? changed_score(scale * dot(&q[static_cast<std::size_t>(i) * dim], &k[static_cast<std::size_t>(j) * dim], dim), 1.,
                                  {h, query_position(call, run, i), key_position(call, run, j), 1})
                  : -infinity;
        const auto at = static_cast<std::size_t>((run.batch * heads + h) * queries + i);
        row_of(scores, v, run.key_begin, dim, &result.out[at * dim], result.lse[at]);
        // A value counts as it is where it is not finite, also under a score of -inf. Not so in a row that the query itself spoils.
        const bool finite_query = std::all_of(&q[static_cast<std::size_t>(i) * dim], &q[static_cast<std::size_t>(i + 1) * dim - 1] + 1,
                                              [](double x) { return std::isfinite(x); });
        for (std::int64_t j = run.key_begin; j < run.key_end; ++j)
          for (std::size_t c = 0; c < dim; ++c)
            if (const double x = v[static_cast<std::size_t>(j) * dim + c]; finite_query && !std::isfinite(x) && sees(call, run, i, j))
              result.out[at * dim + c] += x;
      }
    }
  return result;
}

}  // namespace chitu::test::oracle
