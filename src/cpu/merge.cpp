// SPDX-License-Identifier: Apache-2.0
// Joins attention over disjoint sets of keys. Weights are exp(lse - largest lse), so -inf needs no special case but one: where all are
// -inf there is nothing to weigh.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "common/numbers.h"
#include "common/parallel.h"
#include "cpu/backend.h"

namespace chitu::cpu {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Place {
  std::int64_t batch, head, token;
};
float& lse_of(const Output& part, const Place& at) { return *reinterpret_cast<float*>(row(part.lse, at.batch, at.head, at.token)); }
std::byte* out_of(const Output& part, const Place& at) { return row(part.out, at.batch, at.head, at.token); }

// Fills the weights of the parts in one row, and returns the row's lse. Weights are negative where the part has seen no key.
float weigh(std::span<const Output> parts, const Place& at, std::vector<double>& weights) {
  double top = -infinity, sum = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) top = std::fmax(top, weights[i] = lse_of(parts[i], at));  // fmax() drops a NaN
  for (double& weight : weights)
    if (weight == -infinity)
      weight = -1;
    else
      sum += weight = std::exp(weight - top);
  for (double& weight : weights) weight = weight < 0 ? weight : weight / sum;
  return static_cast<float>(sum == 0 ? -infinity : top + std::log(sum));
}

// A number of the mean. What is not finite counts whatever its weight, even one that is too small for a double.
double weighed(double weight, float x) { return weight == 0 ? (is_finite(x) ? 0 : x) : weight * static_cast<double>(x); }

void merge_row(std::span<const Output> parts, const Output& result, const Place& at, std::vector<double>& weights) {
  const float lse = weigh(parts, at, weights);
  for (std::int64_t c = 0; c < result.out.shape[3]; ++c) {
    double mean = 0;
    for (std::size_t i = 0; i < parts.size(); ++i)
      if (!(weights[i] < 0)) mean += weighed(weights[i], load(out_of(parts[i], at), parts[i].out.type, c));
    store(out_of(result, at), result.out.type, c, static_cast<float>(std::isinf(mean) ? mean : within(result.out.type, mean)));
  }
  lse_of(result, at) = lse;
}

// The same where all is f32, without a choice of types for each number.
void merge_f32_row(std::span<const Output> parts, const Output& result, const Place& at, std::vector<double>& weights) {
  const float lse = weigh(parts, at, weights);
  const std::int64_t dim = result.out.shape[3];
  std::array<double, max_dim> mean{};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto* const x = reinterpret_cast<const float*>(out_of(parts[i], at));
    if (weights[i] == 0)
      for (std::int64_t c = 0; c < dim; ++c) mean[static_cast<std::size_t>(c)] += weighed(0, x[c]);
    else if (!(weights[i] < 0))
      for (std::int64_t c = 0; c < dim; ++c) mean[static_cast<std::size_t>(c)] += weights[i] * static_cast<double>(x[c]);
  }
  auto* const out = reinterpret_cast<float*>(out_of(result, at));
  for (std::int64_t c = 0; c < dim; ++c) out[c] = static_cast<float>(mean[static_cast<std::size_t>(c)]);  // finite if all parts are
  lse_of(result, at) = lse;
}

}  // namespace

void merge(std::span<const Output> parts, const Output& result, int threads) {
  const Shape& shape = result.out.shape;
  const std::int64_t heads = shape[1], tokens = shape[2];
  const auto is_f32 = [](const Output& part) { return part.out.type == DType::f32; };
  const bool all_f32 = is_f32(result) && shape[3] <= max_dim && std::all_of(parts.begin(), parts.end(), is_f32);
  const double numbers = static_cast<double>(parts.size() + 1) * static_cast<double>(shape[0] * heads * tokens * shape[3]);
  parallel_for(shape[0] * heads, thread_count(threads, numbers * work_of_a_number), [&](std::int64_t i) {
    std::vector<double> weights(parts.size());
    for (std::int64_t t = 0; t < tokens; ++t) (all_f32 ? merge_f32_row : merge_row)(parts, result, {i / heads, i % heads, t}, weights);
  });
}

}  // namespace chitu::cpu
