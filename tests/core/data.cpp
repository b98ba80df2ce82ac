// SPDX-License-Identifier: Apache-2.0
// data.h.
#include "data.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <ostream>
#include <stdexcept>
#include <utility>

namespace chitu::test {
namespace {

constexpr std::int64_t tokens = 4096, dim = 128;

// Key 0 takes most of the weight and its value is 1/50 of the others'.
Data sink(Random& random, std::int64_t queries, DType type) {
  Data d = normal_data(random, queries, tokens, dim, type);
  std::vector<float> u;
  double length = 0;
  for (std::int64_t c = 0; c < dim; ++c) {
    u.push_back(random.normal());
    length += u.back() * u.back();
  }
  for (float& x : u) x /= static_cast<float>(std::sqrt(length));
  d.query.fill([&](auto, auto, auto, std::int64_t c) { return random.normal() + 6 * u[static_cast<std::size_t>(c)]; });
  d.key.fill([&](auto, auto, std::int64_t t, std::int64_t c) { return t == 0 ? 25 * u[static_cast<std::size_t>(c)] : random.normal(); });
  d.value.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t == 0 ? 0.02f : 1); });
  return d;
}

// Keys and queries with large rotating pairs of channels, as RoPE makes of a bias: their mean is about 0, so centring does not help.
Data rope_outliers(Random& random, std::int64_t queries, DType type, float key_size, int pairs, float query_size) {
  Data d = normal_data(random, queries, tokens, dim, type);
  for (int pair = 0; pair < pairs; ++pair) {
    const double speed = std::pow(10000., -pair * 3 / (dim / 2.)), phase = static_cast<double>(random.below(600)) / 100;
    const auto add = [&](Array& x, double size, double lag, std::int64_t first) {
      for (std::int64_t t = 0; t < x.shape()[2]; ++t) {
        const double angle = static_cast<double>(first + t) * speed + phase + lag;
        x.set(0, 0, t, pair, x.get(0, 0, t, pair) + static_cast<float>(size * std::cos(angle)));
        x.set(0, 0, t, pair + dim / 2, x.get(0, 0, t, pair + dim / 2) + static_cast<float>(size * std::sin(angle)));
      }
    };
    add(d.key, key_size, 0, 0);
    add(d.query, query_size, 0.3, tokens - queries);
  }
  return d;
}

Data plain(Random& random, std::int64_t queries, DType type) { return normal_data(random, queries, tokens, dim, type); }

}  // namespace

Data normal_data(Random& random, std::int64_t queries, std::int64_t keys, std::int64_t dim, DType type) {
  return {normal(random, type, {1, 1, queries, dim}), normal(random, type, {1, 1, keys, dim}), normal(random, type, {1, 1, keys, dim})};
}

const Bar& bar_of(std::string_view method) {
  static const std::array<std::pair<std::string_view, Bar>, methods.size()> bars{{{"exact", {1e-5, 1e-5, 1e-5}},
                                                                                  {"sage", {.014}},
                                                                                  {"sage2", {.040}},
                                                                                  {"int8-half", {.011}},
                                                                                  {"int8", {.045}},
                                                                                  {"fp8", {.060, 4e-2, 8e-3}},
                                                                                  {"chitu", {.018}}}};
  const auto found = std::find_if(bars.begin(), bars.end(), [&](const auto& bar) { return bar.first == method; });
  if (found == bars.end()) throw std::out_of_range("no bar for " + std::string(method));
  return found->second;
}

void PrintTo(const Hard& data, std::ostream* out) { *out << data.name; }

const std::vector<Hard>& hard_data() {
  static const std::vector<Hard> all{
      {"sink", .012, sink},
      {"rope_outliers_5x2", .0195, [](Random& r, std::int64_t n, DType type) { return rope_outliers(r, n, type, 5, 2, 1); }},
      {"rope_outliers_10x2", .0215, [](Random& r, std::int64_t n, DType type) { return rope_outliers(r, n, type, 10, 2, 1); }},
      {"rope_outliers_20x1", .0215, [](Random& r, std::int64_t n, DType type) { return rope_outliers(r, n, type, 20, 1, .5f); }},
      {"rope_outliers_10x4", .024, [](Random& r, std::int64_t n, DType type) { return rope_outliers(r, n, type, 10, 4, .5f); }},
      {"value_sizes", .0135,
       [](Random& r, std::int64_t n, DType type) {
         Data d = plain(r, n, type);
         std::vector<float> sizes;
         for (std::int64_t t = 0; t < tokens; ++t) sizes.push_back(std::exp(r.normal()));
         d.value.fill([&](auto, auto, std::int64_t t, auto) { return r.normal() * sizes[static_cast<std::size_t>(t)]; });
         return d;
       }},
      {"value_spikes", .0165,
       [](Random& r, std::int64_t n, DType type) {
         Data d = plain(r, n, type);
         for (int i = 0; i < 16; ++i) d.value.set(0, 0, r.below(tokens), r.below(dim), 200);
         return d;
       }},
      {"value_outlier_channels", .0165,
       [](Random& r, std::int64_t n, DType type) {
         Data d = plain(r, n, type);
         d.value.fill([&](auto, auto, auto, std::int64_t c) { return r.normal() * (c < 4 ? 20 : 1); });
         return d;
       }},
      {"channel_sizes", .0168,
       [](Random& r, std::int64_t n, DType type) {
         Data d = plain(r, n, type);
         std::vector<float> sizes;
         for (std::int64_t c = 0; c < dim; ++c) sizes.push_back(std::exp(2 * r.normal()));
         d.value.fill([&](auto, auto, auto, std::int64_t c) { return r.normal() * sizes[static_cast<std::size_t>(c)]; });
         return d;
       }},
      {"query_offset", .0265,
       [](Random& r, std::int64_t n, DType type) {
         Data d = plain(r, n, type);
         d.query.fill([&](auto...) { return r.normal() + 3; });
         return d;
       }},
      {"key_sizes", 1,
       [](Random& r, std::int64_t n, DType type) {
         Data d = plain(r, n, type);
         std::vector<float> sizes;
         for (std::int64_t t = 0; t < tokens; ++t) sizes.push_back(std::exp(.5f * r.normal()));
         d.key.fill([&](auto, auto, std::int64_t t, auto) { return r.normal() * sizes[static_cast<std::size_t>(t)]; });
         return d;
       }},
  };
  return all;
}

}  // namespace chitu::test
