// SPDX-License-Identifier: Apache-2.0
// nonfinite.h.
#include "nonfinite.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>

namespace chitu::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

// 0: a number, 1 and -1: an infinity, 2: NaN.
int kind(double x) { return std::isnan(x) ? 2 : std::isinf(x) ? (x > 0 ? 1 : -1) : 0; }

}  // namespace

void PrintTo(const Scene& scene, std::ostream* out) { *out << scene.name; }

const std::vector<Scene>& scenes() {
  static const std::vector<Scene> all{
      {"nan_in_a_query", {{Role::query, 0, 1, 20, 3, nan}}},
      {"infinities_in_queries", {{Role::query, 0, 0, 7, 0, infinity}, {Role::query, 1, 3, 8, 5, -infinity}}},
      {"nan_in_a_key", {{Role::key, 1, 1, 100, 3, nan}}},
      {"nan_in_a_key_under_a_causal_mask", {{Role::key, 0, 0, 140, 3, nan}}, causal},
      {"infinite_key", {{Role::key, 0, 1, 130, 2, infinity}}},
      {"infinite_keys_in_a_window", {{Role::key, 0, 1, 130, 2, -infinity}, {Role::key, 0, 1, 131, 7, infinity}}, {4, 0}},
      {"nan_in_a_value", {{Role::value, 1, 0, 0, 4, nan}}},
      {"infinite_values",
       {{Role::value, 0, 0, 149, 4, infinity}, {Role::value, 0, 0, 5, 4, -infinity}, {Role::value, 0, 0, 6, 9, infinity}},
       causal},
      {"everywhere",
       {{Role::query, 0, 2, 59, 1, nan},
        {Role::key, 0, 0, 129, 0, infinity},
        {Role::key, 1, 1, 148, 0, nan},
        {Role::value, 0, 1, 3, 2, nan}},
       {30, 2}},
      {"first_and_last_tokens",
       {{Role::query, 0, 0, 0, 0, nan},
        {Role::query, 1, 3, 59, 11, nan},
        {Role::key, 0, 0, 149, 11, nan},
        {Role::key, 1, 1, 0, 0, -infinity}},
       causal},
      // Queries that see a single key, and it weighs nothing.
      {"infinite_keys_alone",
       {{Role::key, 0, 0, 100, 0, infinity}, {Role::key, 0, 0, 101, 0, -infinity}, {Role::key, 1, 1, 127, 0, -infinity}},
       {0, 0}},
      // The same with keys that are finite: the query alone gives 0 without weight, or NaN.
      {"infinite_queries_alone",
       {{Role::query, 0, 0, 0, 0, infinity},
        {Role::query, 0, 1, 1, 1, -infinity},
        {Role::query, 0, 2, 2, 2, infinity},
        {Role::query, 0, 3, 3, 3, infinity},
        {Role::query, 1, 0, 56, 4, -infinity},
        {Role::query, 1, 1, 57, 5, infinity},
        {Role::query, 1, 2, 58, 6, -infinity},
        {Role::query, 1, 3, 59, 7, infinity}},
       {0, 0}},
  };
  return all;
}

void NonFiniteCall::set(const Spot& s) {
  (s.role == Role::query ? query : s.role == Role::key ? key : value).set(s.batch, s.head, s.token, s.channel, s.x);
}

NonFiniteCall call_of(const Scene& scene, std::int64_t dim, const Types& types) {
  Random random(30);
  Array query = normal(random, types[0], {2, 4, 60, dim}), key = normal(random, types[1], {2, 2, 150, dim}, Layout::bshd),
        value = normal(random, types[2], key.shape(), Layout::padded);
  NonFiniteCall call(std::move(query), std::move(key), std::move(value));
  for (const Spot& spot : scene.spots) call.set(spot);
  call.options.window = scene.window;
  return call;
}

NonFiniteCall random_nonfinite(std::uint64_t seed, const std::vector<std::int64_t>& dims, const Types& types) {
  Random random(100 + seed);
  const std::int64_t dim = random.pick(dims), queries = 1 + random.below(70), keys = 1 + random.below(300);
  Array query = normal(random, types[0], {1, 4, queries, dim}), key = normal(random, types[1], {1, 2, keys, dim}),
        value = normal(random, types[2], {1, 2, keys, dim});
  NonFiniteCall call(std::move(query), std::move(key), std::move(value));
  const float bad[] = {nan, infinity, -infinity};
  for (const auto& [role, x] : {std::pair{Role::query, &call.query}, {Role::key, &call.key}, {Role::value, &call.value}})
    if (random.below(2)) {
      const std::int64_t head = random.below(x->shape()[1]), token = random.below(x->shape()[2]), channel = random.below(dim);
      call.set({role, 0, head, token, channel, bad[random.below(3)]});
    }
  call.query_starts = {0, random.below(queries + 1), queries};
  call.key_starts = {0, random.below(keys + 1), keys};
  call.options.window = random.below(2) ? causal : Window{random.below(50), random.below(50)};
  if (random.below(2)) {
    call.options.query_starts = call.query_starts;
    call.options.key_starts = call.key_starts;
  }
  return call;
}

NonFiniteCall crowded_nonfinite(std::uint64_t seed, const std::vector<std::int64_t>& dims, const Types& types) {
  NonFiniteCall call = random_nonfinite(seed, dims, types);
  Random random(300 + seed);
  const std::int64_t dim = call.query.shape()[3], sign = random.below(2) ? 1 : -1;
  const auto spoil = [&](Array& x, std::int64_t one_in, std::int64_t channels, const std::vector<float>& with) {
    for (std::int64_t h = 0; h < x.shape()[1]; ++h)
      for (std::int64_t t = 0; t < x.shape()[2]; ++t)
        for (std::int64_t c = 0; c < channels; ++c)
          if (random.below(one_in) == 0) x.set(0, h, t, c, random.pick(with));
  };
  const std::vector<std::vector<float>> kinds{{nan}, {infinity}, {-infinity}, {infinity, -infinity}, {nan, infinity, -infinity}};
  const std::vector<std::int64_t> rarities{1, 20, 200};
  // Scores are -inf where a channel of keys is infinite and that of the queries has the opposite sign.
  const auto oppose = [&](Array& infinite, Array& finite) {
    for (std::int64_t h = 0; h < finite.shape()[1]; ++h)
      for (std::int64_t t = 0; t < finite.shape()[2]; ++t)
        if (const float x = finite.get(0, h, t, 0); random.below(8)) finite.set(0, h, t, 0, static_cast<float>(sign) * std::fabs(x) + 0.f);
    spoil(infinite, random.pick(rarities), 1, {static_cast<float>(-sign) * infinity});
  };
  if (random.below(3) == 0) oppose(call.key, call.query);
  if (random.below(3) == 0) oppose(call.query, call.key);
  if (random.below(4) == 0) spoil(call.query, random.pick(rarities), 1 + random.below(dim), random.pick(kinds));
  if (random.below(4) == 0) spoil(call.key, random.pick(rarities), 1 + random.below(dim), random.pick(kinds));
  if (random.below(2) == 0) spoil(call.value, random.pick(rarities), 1 + random.below(dim), random.pick(kinds));
  if (random.below(4) == 0) call.options.scale = random.pick<float>({-.3f, 0.f, 1.f});
  if (random.below(4) == 0) call.options.query_positions = Positions{random.below(200) - 50, 1 + random.below(3)};
  if (random.below(4) == 0) call.options.key_positions = Positions{random.below(100) - 50, 1 + random.below(3)};
  return call;
}

Spoilt expect_spoilt_alike(const std::vector<float>& out, const std::vector<float>& lse, const oracle::Exact& exact) {
  Spoilt result;
  EXPECT_EQ(out.size(), exact.out.size());
  EXPECT_EQ(lse.size(), exact.lse.size());
  const std::size_t dim = exact.out.size() / std::max<std::size_t>(exact.lse.size(), 1);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (kind(out[i]) != kind(exact.out[i])) {
      ADD_FAILURE() << "out, row " << i / dim << ", channel " << i % dim << ": " << out[i] << ", not " << exact.out[i];
      return result;
    }
    result.count += kind(out[i]) != 0;
    if (kind(out[i]) != 0) continue;
    error += std::fabs(out[i] - exact.out[i]);
    size += std::fabs(exact.out[i]);
  }
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (kind(lse[i]) != kind(exact.lse[i])) {
      ADD_FAILURE() << "lse " << i << ": " << lse[i] << ", not " << exact.lse[i];
      return result;
    }
    if (kind(lse[i]) == 0) result.lse = std::max(result.lse, std::fabs(lse[i] - exact.lse[i]));
  }
  result.relative_l1 = error == 0 ? 0 : error / size;
  return result;
}

}  // namespace chitu::test
