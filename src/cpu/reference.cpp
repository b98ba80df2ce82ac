// SPDX-License-Identifier: Apache-2.0
// What every kernel is measured against: plain loops in double that execute any recipe by reading it (docs/numerics.md). With
// recipes::exact it is the truth. Never optimised; a new method needs no code here.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "common/limits.h"
#include "common/numbers.h"
#include "common/parallel.h"
#include "common/score.h"
#include "cpu/backend.h"
#include "cpu/rows.h"

namespace chitu::cpu {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// One head of one operand, as numbers: integers times scales. NaN and infinity are 0 (propagate_nonfinite() comes after).
std::vector<double> stored(const Indexed& x, const Sequence& s, std::int64_t sequence, std::int64_t head, std::int64_t begin,
                           std::int64_t count) {
  const std::int64_t dim = x.values.shape[3];
  const Locator where(x, sequence, head);
  std::vector<double> numbers(static_cast<std::size_t>(count * dim));
  for (std::int64_t t = 0; t < count; ++t)
    for (std::int64_t c = 0; c < dim; ++c) {
      double number = load(row(x.values, s.batch, head, begin + t), x.values.type, c);
      switch (x.quant.scaling) {
        case Scaling::none:
          break;
        case Scaling::tokens:
          number *= where.scales[where.group(t)];
          break;
        case Scaling::head:
          number *= where.scales[0];
          break;
        case Scaling::channel:
          number *= where.scales[c];
          break;
        case Scaling::tile:
          if (const std::int8_t* residual = where.residual(t / tile_tokens))
            number += residual[t % tile_tokens * dim + c] / double{residual_parts};
          number *= double{where.scales[t / tile_tokens]} * where.channels[c];
          break;
      }
      numbers[static_cast<std::size_t>(t * dim + c)] = number;
    }
  std::replace_if(
      numbers.begin(), numbers.end(), [](double x) { return !std::isfinite(x); }, 0.);
  return numbers;
}

double rounded(const Weights& w, double x) {
  switch (w.type) {
    case DType::u8:
      return std::nearbyint(x);
    case DType::f16:
      return f16_to_f32(f32_to_f16(static_cast<float>(x)));
    case DType::e4m3:
      return e4m3_to_f32(f32_to_e4m3(static_cast<float>(x)));
    default:
      return x;
  }
}

struct Row {
  std::vector<double> out;
  double maximum = -infinity, output_sum = 0, lse_sum = 0;  // sums hold weights times top
};

// One tile of keys folded into a row. scores: of the tile's keys, -inf where unseen.
void fold(Row& r, const Weights& w, const std::vector<double>& scores, const double* values) {
  const double tile_maximum = *std::max_element(scores.begin(), scores.end());
  if (tile_maximum == -infinity) return;
  const double maximum = std::max(r.maximum, tile_maximum), reference = w.by_tile ? tile_maximum : maximum;
  const double keep = std::exp2(r.maximum - maximum), weight = std::exp2(reference - maximum);
  r.maximum = maximum;
  r.output_sum *= keep;
  r.lse_sum *= keep;
  for (double& x : r.out) x *= keep;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    const double p = w.top * std::exp2(scores[j] - reference), u = rounded(w, p);
    r.output_sum += weight * (w.output == Sum::rounded ? u : p);
    r.lse_sum += weight * (w.lse == Sum::rounded ? u : p);
    for (std::size_t c = 0; c < r.out.size(); ++c) r.out[c] += weight * u * values[j * r.out.size() + c];
  }
}

void attend(const Problem& p, const Operands& o, std::int64_t sequence, std::int64_t head) {
  const Sequence& s = p.sequences[static_cast<std::size_t>(sequence)];
  const std::int64_t kv_head = head / p.group();
  const auto dim = static_cast<std::size_t>(p.dim());
  const auto q = stored(o.query, s, sequence, head, s.query_begin, s.queries);
  const auto k = stored(o.key, s, sequence, kv_head, s.key_begin, s.keys), v = stored(o.value, s, sequence, kv_head, s.key_begin, s.keys);
  std::vector<bool> masked(static_cast<std::size_t>(s.keys));
  for (const NonFinite& n : nonfinite_of(o.key, sequence, kv_head)) masked[static_cast<std::size_t>(n.token)] = true;

  for (std::int64_t i = 0; i < s.queries; ++i) {
    const Range seen = s.visible(p.options.window, i);
    Row r{.out = std::vector<double>(dim)};
    for (std::int64_t tile = seen.begin / tile_tokens * tile_tokens; tile < seen.end; tile += tile_tokens) {
      std::vector<double> scores(static_cast<std::size_t>(std::min<std::int64_t>(tile_tokens, s.keys - tile)), -infinity);
      for (std::int64_t j = std::max(seen.begin, tile); j < std::min(seen.end, tile + tile_tokens); ++j) {
        if (masked[static_cast<std::size_t>(j)]) continue;
        double dot = 0;
        for (std::size_t c = 0; c < dim; ++c) dot += q[static_cast<std::size_t>(i) * dim + c] * k[static_cast<std::size_t>(j) * dim + c];
        const ScorePlace place{head, s.query_position(i), s.key_position(j), s.key_positions.step};
        scores[static_cast<std::size_t>(j - tile)] = changed_score(dot * p.scale(), 1., place) * std::numbers::log2e;
      }
      fold(r, p.options.recipe.weights, scores, v.data() + static_cast<std::size_t>(tile) * dim);
    }
    const bool none = r.output_sum == 0;
    for (std::size_t c = 0; c < dim; ++c)
      store(row(p.output.out, s.batch, head, s.query_begin + i), p.output.out.type, static_cast<std::int64_t>(c),
            none ? 0.f : static_cast<float>(within(p.output.out.type, r.out[c] / r.output_sum)));
    if (!p.output.lse.data) continue;
    double lse = (r.maximum + std::log2(r.lse_sum / p.options.recipe.weights.top)) * std::numbers::ln2;
    if (o.query.correction.data)
      lse += double{p.scale()} * *reinterpret_cast<const float*>(row(o.query.correction, s.batch, head, s.query_begin + i));
    *reinterpret_cast<float*>(row(p.output.lse, s.batch, head, s.query_begin + i)) = static_cast<float>(none ? -infinity : lse);
  }
}

}  // namespace

void run_reference(const Problem& p) {
  const Operands operands(p);
  const std::int64_t heads = p.heads();
  parallel_for(static_cast<std::int64_t>(p.sequences.size()) * heads, p.options.threads,
               [&](std::int64_t i) { attend(p, operands, i / heads, i % heads); });
  propagate_nonfinite(p, operands);
}

}  // namespace chitu::cpu
