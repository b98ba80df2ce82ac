// SPDX-License-Identifier: Apache-2.0
// The quantisers and attention over quantised numbers, a second time: oracle.h. Arithmetic is fp32, one rounding an operation.
#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

#include "common/score.h"
#include "oracle.h"

namespace chitu::test::oracle {
namespace {

constexpr float tiny = 1e-30f;
// Centred or rotated numbers are multiplied by this, so that they never leave fp32. The library uses another power of two.
constexpr float small = 0x1p-16f;
using Row = std::vector<float>;

bool finite(const Row& row) {
  return std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); });
}

float largest_of(const Row& row) {
  float m = 0;
  for (const float x : row) m = std::max(m, std::fabs(x));
  return m;
}

float integer(float x) { return std::clamp(std::nearbyintf(x), -127.f, 127.f); }

std::vector<std::int64_t> all_tokens(std::int64_t count) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

std::vector<std::int64_t> sampled_tokens(std::int64_t count) {
  const std::int64_t samples = std::min(count, std::max<std::int64_t>(64, std::min<std::int64_t>(256, count / 16)));
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = 0; i < samples; ++i) {
    const std::int64_t stride = count / samples;
    const auto scrambled = static_cast<std::int64_t>((static_cast<std::uint32_t>(i) * 2654435769u) >> 16);
    tokens.push_back(i * stride + scrambled * stride / 65536);
  }
  return tokens;
}

std::vector<std::int64_t> finite_of(const std::vector<std::int64_t>& tokens, const std::vector<Row>& rows) {
  std::vector<std::int64_t> kept;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(kept),
               [&](std::int64_t t) { return finite(rows[static_cast<std::size_t>(t)]); });
  return kept;
}

// The mean of f(x) over the listed tokens, for each channel, in double and then to f32; 0 if there are no tokens.
template <class F>
Row mean(const std::vector<Row>& rows, const std::vector<std::int64_t>& tokens, std::size_t dim, const F& f) {
  std::vector<double> sum(dim);
  for (const std::int64_t t : tokens)
    for (std::size_t c = 0; c < dim; ++c) sum[c] += double{f(rows[static_cast<std::size_t>(t)][c])};
  Row result(dim);
  for (std::size_t c = 0; c < dim; ++c) result[c] = tokens.empty() ? 0 : static_cast<float>(sum[c] / static_cast<double>(tokens.size()));
  return result;
}

Row largest_by_channel(const std::vector<Row>& rows, const std::vector<std::int64_t>& tokens, std::size_t dim) {
  Row result(dim);
  for (const std::int64_t t : tokens)
    for (std::size_t c = 0; c < dim; ++c) result[c] = std::max(result[c], std::fabs(rows[static_cast<std::size_t>(t)][c]));
  return result;
}

void rotate(Row& x) {
  const auto dim = static_cast<int>(x.size());
  int block = 1;
  while (dim % (2 * block) == 0) block *= 2;
  for (int c = 0; c < dim; ++c) {
    const int b[6] = {c % 2, c / 2 % 2, c / 4 % 2, c / 8 % 2, c / 16 % 2, c / 32 % 2};
    if ((b[0] * b[2] + b[1] * b[3] + b[4] * b[5]) % 2) x[static_cast<std::size_t>(c)] *= -1;
  }
  for (int h = 1; h < block; h *= 2)
    for (int c = 0; c < dim; ++c) {
      if (c / h % 2) continue;
      float &first = x[static_cast<std::size_t>(c)], &second = x[static_cast<std::size_t>(c + h)];
      const float a = first, b = second;
      first = a + b;
      second = a - b;
    }
  const auto factor = static_cast<float>(1 / std::sqrt(static_cast<double>(block)));
  for (float& v : x) v *= factor;
}

// The tokens of each tile by their largest magnitudes, of which 16 bits of fraction are looked at; the larger first, else the earlier.
void rank(Head& head, const std::vector<Row>& rows) {
  head.ranks.resize(rows.size());
  for (std::int64_t first = 0; first < head.tokens; first += 128) {
    std::vector<std::size_t> order;
    for (std::int64_t t = first; t < std::min(first + 128, head.tokens); ++t) order.push_back(static_cast<std::size_t>(t));
    const auto size = [&](std::size_t t) { return std::bit_cast<std::uint32_t>(largest_of(rows[t])) / 128; };
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return size(a) > size(b); });
    for (std::size_t i = 0; i < order.size(); ++i) head.ranks[order[i]] = static_cast<int>(i);
  }
}

void by_tokens(Head& head, const std::vector<Row>& rows, const Quant& quant, float unit) {
  const Groups& groups = quant.groups;
  if (quant.sorted) rank(head, rows);
  const std::int64_t blocks = (head.tokens + groups.block - 1) / groups.block;
  Row maximum(static_cast<std::size_t>(blocks * groups.lanes), tiny * unit);
  for (std::int64_t t = 0; t < head.tokens; ++t) {
    // 8 / lanes neighbours among 8 consecutive rows share a lane.
    const std::int64_t lane = quant.sorted        ? head.ranks[static_cast<std::size_t>(t)] / (128 / groups.lanes)
                              : groups.lanes == 1 ? 0
                                                  : t % 8 / (8 / groups.lanes);
    head.group.push_back(t / groups.block * groups.lanes + lane);
    float& m = maximum[static_cast<std::size_t>(head.group.back())];
    m = std::max(m, largest_of(rows[static_cast<std::size_t>(t)]));
  }
  for (const float m : maximum) head.scales.push_back(m / 127 / unit);
  for (std::size_t t = 0; t < rows.size(); ++t)
    for (const float x : rows[t]) head.numbers.push_back(integer(x * (127 / maximum[static_cast<std::size_t>(head.group[t])])));
}

void by_tile(Head& head, const std::vector<Row>& rows, const std::vector<std::int64_t>& sample) {
  const auto dim = static_cast<std::size_t>(head.dim);
  const Row sizes = mean(rows, sample, dim, [](float x) { return std::fabs(x); }), maxima = largest_by_channel(rows, sample, dim);
  double total = 0;
  for (std::size_t c = 0; c < dim; ++c) {
    head.channels.push_back(std::min(maxima[c], 8 * sizes[c]));
    total += head.channels.back();
  }
  const auto average = static_cast<float>(total / static_cast<double>(dim));
  for (float& lambda : head.channels) lambda = average <= tiny ? 1 : std::max(lambda, average / 16);

  for (std::int64_t first = 0; first < head.tokens; first += 128) {
    float m = 0;
    double smallest = std::numeric_limits<double>::infinity();
    std::vector<Row> tile;
    for (std::int64_t t = first; t < std::min(first + 128, head.tokens); ++t) {
      Row y = rows[static_cast<std::size_t>(t)];
      double size = 0;
      for (std::size_t c = 0; c < dim; ++c) {
        y[c] = y[c] * (1 / head.channels[c]);
        size += std::fabs(y[c]);
      }
      m = std::max(m, largest_of(y));
      if (size > 0) smallest = std::min(smallest, size / static_cast<double>(dim));
      tile.push_back(y);
    }
    const double ratio = m / smallest;
    head.flagged.push_back(std::fabs(ratio - 16) < 16e-5 ? -1 : ratio > 16);
    m = std::max(m, tiny);
    const float scale = m / 127;
    head.scales.push_back(scale);
    for (const Row& y : tile)
      for (const float x : y) {
        const float number = integer(x * (127 / m)), product = number * scale;
        head.numbers.push_back(number);
        head.residuals.push_back(integer((x - product) * (254 * (127 / m))));
      }
  }
}

void by_factor(Head& head, const std::vector<Row>& rows, DType type, const Quant& quant) {
  const auto dim = static_cast<std::size_t>(head.dim);
  const float top = quant.type == DType::i8 ? 127.f : quant.type == DType::f16 ? 65504.f : 448.f;
  Row maxima = largest_by_channel(rows, all_tokens(head.tokens), dim);
  if (quant.scaling == Scaling::head) maxima.assign(dim, largest_of(maxima));
  for (float& m : maxima) m = std::max(m, tiny);
  const bool as_it_is = quant.type == DType::f16 && (type == DType::f16 || (maxima[0] >= 1. / 1024 && maxima[0] <= top));
  for (std::size_t c = 0; c < (quant.scaling == Scaling::head ? 1 : dim); ++c) head.scales.push_back(as_it_is ? 1 : maxima[c] / top);
  for (const Row& row : rows)
    for (std::size_t c = 0; c < dim; ++c) {
      const float x = row[c] * (as_it_is ? 1 : top / maxima[c]);
      head.numbers.push_back(quant.type == DType::i8 ? integer(x) : static_cast<float>(round_to(quant.type == DType::f16 ? f16 : e4m3, x)));
    }
}

}  // namespace

Head quantize(const std::vector<float>& numbers, std::int64_t dim, DType type, const Quant& quant, Role role) {
  Head head{};
  head.tokens = static_cast<std::int64_t>(numbers.size()) / dim;
  head.dim = dim;
  std::vector<Row> rows;
  for (std::int64_t t = 0; t < head.tokens; ++t) rows.emplace_back(numbers.begin() + t * dim, numbers.begin() + (t + 1) * dim);
  for (const Row& row : rows) head.nonfinite.push_back(!finite(row));
  if (role == Role::value)  // only the numbers themselves are left out
    for (Row& row : rows)
      for (float& x : row) x = std::isfinite(x) ? x : 0;
  const auto sample = finite_of(sampled_tokens(head.tokens), rows);
  if (quant.centre != Centre::none) {
    const auto tokens = quant.centre == Centre::mean ? finite_of(all_tokens(head.tokens), rows) : sample;
    head.centre = mean(rows, tokens, static_cast<std::size_t>(dim), [](float x) { return x; });
    for (float& x : head.centre) x = round_to(type, x);
  }
  if (quant.scaling == Scaling::none) {
    head.numbers = numbers;
    return head;
  }
  const float unit = quant.rotated || quant.centre != Centre::none ? small : 1;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t c = 0; c < rows[t].size(); ++c) {
      float& x = rows[t][c];
      x = head.nonfinite[t] && role != Role::value ? 0 : x * unit;
      if (!head.nonfinite[t] && !head.centre.empty()) x -= head.centre[c] * unit;
    }
    if (quant.rotated) rotate(rows[t]);
  }
  if (quant.scaling == Scaling::tokens) by_tokens(head, rows, quant, unit);
  if (quant.scaling == Scaling::tile) by_tile(head, rows, sample);
  if (quant.scaling == Scaling::head || quant.scaling == Scaling::channel) by_factor(head, rows, type, quant);
  return head;
}

double Head::number(std::int64_t token, std::int64_t channel, bool residual) const {
  const auto at = static_cast<std::size_t>(token * dim + channel), c = static_cast<std::size_t>(channel);
  double x = numbers[at];
  if (residual) x += residuals[at] / 254.;
  if (!group.empty()) return x * scales[static_cast<std::size_t>(group[static_cast<std::size_t>(token)])];
  if (!channels.empty()) return x * scales[static_cast<std::size_t>(token / 128)] * channels[c];
  if (scales.size() == 1) return x * scales[0];
  return scales.empty() ? x : x * scales[c];
}

namespace {

struct Rounding {
  double top;
  bool by_tile, rounded_output, rounded_lse;
  double (*round)(double);
};

// Written down again, not read from the recipes, so that a change of a recipe needs a change here.
Rounding rounding_of(std::string_view method) {
  const auto to_integer = [](double x) { return std::nearbyint(x); };
  const auto to_f16 = [](double x) { return round_to(f16, x); };
  const auto to_e4m3 = [](double x) { return round_to(e4m3, x); };
  if (method == "sage" || method == "int8-half") return {1, false, false, false, to_f16};
  if (method == "sage2") return {448, false, false, false, to_e4m3};
  if (method == "fp8") return {256, false, false, false, to_e4m3};
  if (method == "int8") return {127, false, true, false, to_integer};
  if (method == "chitu") return {255, true, true, true, to_integer};
  return {1, false, false, false, [](double x) { return x; }};
}

}  // namespace

HeadResult attention(std::string_view method, const std::vector<float>& query, const std::vector<float>& key,
                     const std::vector<float>& value, std::int64_t dim, DType type, double scale, bool causal) {
  const Recipe& recipe = find_method(method).recipe;
  const Head q = quantize(query, dim, type, recipe.query, Role::query), k = quantize(key, dim, type, recipe.key, Role::key),
             v = quantize(value, dim, type, recipe.value, Role::value);
  const Rounding how = rounding_of(method);
  HeadResult result;
  for (std::int64_t i = 0; i < q.tokens; ++i) {
    const std::int64_t keys = causal ? std::clamp<std::int64_t>(i + 1 + k.tokens - q.tokens, 0, k.tokens) : k.tokens;
    // First pass: scores, and what each key's weight is relative to.
    std::vector<double> scores, relative_to;
    double running = -std::numeric_limits<double>::infinity();
    for (std::int64_t first = 0; first < keys; first += 128) {
      double tile_top = -std::numeric_limits<double>::infinity();
      for (std::int64_t j = first; j < std::min(first + 128, keys); ++j) {
        double s = 0;
        for (std::int64_t c = 0; c < dim; ++c) s += q.number(i, c, false) * k.number(j, c, false);
        scores.push_back(changed_score(s * scale, 1., {0, i + k.tokens - q.tokens, j, 1}));
        tile_top = std::max(tile_top, scores.back());
      }
      running = std::max(running, tile_top);
      relative_to.resize(scores.size(), how.by_tile ? tile_top : running);
    }
    // Second pass: weights relative to the row's maximum, but rounded as they were relative to another score.
    double output_sum = 0, lse_sum = 0;
    std::vector<double> out(static_cast<std::size_t>(dim));
    for (std::int64_t j = 0; j < keys; ++j) {
      const auto at = static_cast<std::size_t>(j);
      const double p = how.top * std::exp(scores[at] - relative_to[at]), u = how.round(p);
      const double rescale = std::exp(relative_to[at] - running) / how.top;
      output_sum += rescale * (how.rounded_output ? u : p);
      lse_sum += rescale * (how.rounded_lse ? u : p);
      const bool residual = !v.flagged.empty() && v.flagged[static_cast<std::size_t>(j / 128)] == 1;
      for (std::int64_t c = 0; c < dim; ++c) out[static_cast<std::size_t>(c)] += rescale * u * v.number(j, c, residual);
    }
    double correction = 0;
    for (std::size_t c = 0; c < k.centre.size(); ++c) correction += double{query[static_cast<std::size_t>(i * dim) + c]} * k.centre[c];
    for (const double x : out) result.out.push_back(keys ? x / output_sum : 0);
    result.lse.push_back(running + std::log(lse_sum) + scale * correction);
  }
  return result;
}

}  // namespace chitu::test::oracle
