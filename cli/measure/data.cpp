// SPDX-License-Identifier: Apache-2.0
// A distribution is a function that turns a row of N(0, 1) into a row of its own; a new one is one more entry of the table.
#include "cli/measure/data.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "chitu/attention.h"
#include "cli/words.h"
#include "common/numbers.h"
#include "common/parallel.h"

namespace chitu::cli {
namespace {

// splitmix64's finaliser.
constexpr std::uint64_t mix(std::uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// A row that is being made. `numbers` hold N(0, 1) at first.
struct Row {
  Role role;
  std::int64_t token, tokens;  // tokens: of this operand
  std::span<double> numbers;
  Stream head;    // what all rows of a kv head, and of the query heads that read it, have in common
  Stream stream;  // this row's own, beside `numbers`

  std::size_t dim() const { return numbers.size(); }
  void scale(double factor) const {
    for (double& x : numbers) x *= factor;
  }
  void add(double offset) const {
    for (double& x : numbers) x += offset;
  }
};

constexpr std::uint64_t channel_bias = 1, phases = 2, direction = 3, places = 4;

void normal(const Row&) {}

void uniform(const Row& r) {
  for (std::size_t c = 0; c < r.dim(); ++c) r.numbers[c] = r.stream.uniform(c) - .5;
}

void outlier(const Row& r) {
  const std::size_t step = std::max<std::size_t>(r.dim() / 4, 1);
  for (std::size_t c = 0; c < r.dim(); ++c) {
    const bool large = c % step == step / 2;
    if (r.role == Role::key) r.numbers[c] += r.head.part(channel_bias).normal(c) * (large ? 15 : 1);
    if (r.role == Role::query && large) r.numbers[c] *= 1.5;
  }
}

void rope(const Row& r) {
  if (r.role == Role::value) return;
  const double size = r.role == Role::key ? 10 : 1, lag = r.role == Role::key ? 0 : .3;
  const std::size_t half = r.dim() / 2;
  for (std::size_t c = 0; c < std::min<std::size_t>(2, half); ++c) {
    const double frequency = std::pow(10000., -3. * static_cast<double>(c) / static_cast<double>(half));
    const double angle = static_cast<double>(r.token) * frequency + 6 * r.head.part(phases).uniform(c) + lag;
    r.numbers[c] += size * std::cos(angle);
    r.numbers[c + half] += size * std::sin(angle);
  }
}

void value_bias(const Row& r) {
  if (r.role != Role::value) return;
  for (std::size_t c = 0; c < r.dim(); ++c) r.numbers[c] += r.head.part(channel_bias).normal(c);
}

void sink(const Row& r) {
  if (r.role == Role::value && r.token == 0) r.scale(.02);
  if (r.role == Role::value || (r.role == Role::key && r.token > 0)) return;
  const Stream u = r.head.part(direction);
  double square = 0;
  for (std::size_t c = 0; c < r.dim(); ++c) square += u.normal(c) * u.normal(c);
  for (std::size_t c = 0; c < r.dim(); ++c) {
    const double unit = u.normal(c) / std::sqrt(square);
    r.numbers[c] = r.role == Role::key ? 25 * unit : r.numbers[c] + 6 * unit;
  }
}

void peaky(const Row& r) {
  if (r.role != Role::value) r.scale(r.role == Role::query ? 2.5 : 1.5);
}

void local(const Row& r) {
  const double position = static_cast<double>(r.token) / static_cast<double>(r.tokens), size = r.role == Role::value ? 1 : 1.5;
  const std::size_t half = std::max<std::size_t>(r.dim() / 2, 1);
  for (std::size_t c = 0; c < r.dim(); ++c) {
    const double frequency = std::exp2(10 * static_cast<double>(c % half) / static_cast<double>(half));
    const double angle = 2 * std::numbers::pi * position * frequency;
    r.numbers[c] = .5 * r.numbers[c] + size * (c < half ? std::sin(angle) : std::cos(angle));
  }
}

void spikes(const Row& r) {
  if (r.role != Role::value) return;
  const Stream place = r.head.part(places);
  for (std::uint64_t i = 0; i < 16; ++i) {
    const auto token = static_cast<std::int64_t>(place.uniform(2 * i) * static_cast<double>(r.tokens));
    if (token == r.token) r.numbers[static_cast<std::size_t>(place.uniform(2 * i + 1) * static_cast<double>(r.dim()))] = 200;
  }
}

void sizes(const Row& r) {
  if (r.role == Role::value) r.scale(std::exp(r.stream.normal(0)));
}

void heavy(const Row& r) {
  for (std::size_t c = 0; c < r.dim(); ++c)
    if (r.stream.uniform(2 * c) < .001) r.numbers[c] += 10 * r.stream.normal(2 * c + 1);
}

void offset(const Row& r) {
  if (r.role == Role::query) r.add(3);
}

void query_spike(const Row& r) {
  r.scale(.3);
  if (r.role == Role::query) r.numbers[0] = 1000;
  if (r.role == Role::key) r.numbers[0] = -50;
}

void key_bias(const Row& r) {
  if (r.role == Role::key) r.add(10);
}

struct Entry {
  Distribution distribution;
  void (*shape)(const Row&);
};

constexpr std::array table{
    Entry{{"normal", "N(0, 1)"}, normal},
    Entry{{"outlier", "keys with a bias N(0, 1) in each channel, 15 times that in 4 of them, where queries are 1.5 times as large"},
          outlier},
    Entry{{"rope", "keys with 2 rotating channel pairs of size 10, as RoPE makes of a bias; queries alike, of size 1"}, rope},
    Entry{{"value-bias", "values with a bias N(0, 1) in each channel"}, value_bias},
    Entry{{"sink", "key 0 takes most of the weight and has a small value"}, sink},
    Entry{{"peaky", "queries 2.5, keys 1.5 times as large: few keys take the weight"}, peaky},
    Entry{{"local", "positional structure: near keys take the weight"}, local},
    Entry{{"spikes", "16 elements of a head's values are 200"}, spikes},
    Entry{{"sizes", "values of log-normal size"}, sizes},
    Entry{{"heavy", "N(0, 1), one element in a thousand plus N(0, 100)"}, heavy},
    Entry{{"offset", "queries + 3"}, offset},
    Entry{{"query-spike", "channel 0 of all queries is 1000, of all keys -50; the rest 0.3 times as large"}, query_spike},
    Entry{{"key-bias", "keys + 10"}, key_bias},
    Entry{{"uniform", "uniform within -0.5 ... 0.5"}, uniform},
};

const Entry& find(std::string_view name) {
  std::string names;
  for (const Entry& entry : table) {
    if (entry.distribution.name == name) return entry;
    names += (names.empty() ? "" : ", ") + std::string(entry.distribution.name);
  }
  throw Error(ErrorCode::bad_argument, "there is no data '" + std::string(name) + "'; there are " + names + ", and all");
}

constexpr std::int64_t chunk = 256;  // tokens of a task

HostTensor generate(const Entry& entry, Role role, const Shape& shape, std::int64_t kv_heads, DType type, std::uint64_t seed) {
  HostTensor result = allocate(type, shape);
  const std::int64_t heads = shape[1], tokens = shape[2], chunks = (tokens + chunk - 1) / chunk;
  const auto dim = static_cast<std::size_t>(shape[3]);
  parallel_for(shape[0] * heads * chunks, thread_count(0), [&](std::int64_t task) {
    const std::int64_t batch = task / (heads * chunks), head = task / chunks % heads, first = task % chunks * chunk;
    const std::int64_t kv_head = head / (heads / kv_heads);
    const auto id = [&](std::int64_t h) { return static_cast<std::uint64_t>(batch) << 32 | static_cast<std::uint64_t>(h); };
    const Stream common = Stream(seed).part(0).part(id(kv_head));
    const Stream own = Stream(seed).part(1 + static_cast<std::uint64_t>(role)).part(id(head));
    std::vector<double> numbers(dim);
    for (std::int64_t t = first; t < std::min(first + chunk, tokens); ++t) {
      const Stream stream = own.part(static_cast<std::uint64_t>(t));
      for (std::size_t c = 0; c < dim; ++c) numbers[c] = stream.normal(c);
      entry.shape({role, t, tokens, numbers, common, stream.part(1)});
      for (std::size_t c = 0; c < dim; ++c)
        store(row(result.tensor, batch, head, t), type, static_cast<std::int64_t>(c), static_cast<float>(numbers[c]));
    }
  });
  return result;
}

}  // namespace

std::uint64_t Stream::bits(std::uint64_t index) const { return mix(key_ + (index + 1) * 0x9e3779b97f4a7c15u); }
Stream Stream::part(std::uint64_t name) const { return Stream(mix(bits(name) ^ 0xd1b54a32d192ed03u)); }
double Stream::uniform(std::uint64_t index) const { return (static_cast<double>(bits(index) >> 11) + .5) * 0x1p-53; }

double Stream::normal(std::uint64_t index) const {
  const std::uint64_t x = bits(index);
  const double radius = (static_cast<double>(x >> 32) + .5) * 0x1p-32, turn = static_cast<double>(x & 0xffffffffu) * 0x1p-32;
  return std::sqrt(-2 * std::log(radius)) * std::cos(2 * std::numbers::pi * turn);
}

std::span<const Distribution> distributions() {
  static const auto all = [] {
    std::array<Distribution, table.size()> result;
    std::transform(table.begin(), table.end(), result.begin(), [](const Entry& entry) { return entry.distribution; });
    return result;
  }();
  return all;
}

std::string describe_distributions() {
  std::string text;
  for (const Distribution& d : distributions()) {
    text += "  " + std::string(d.name) + std::string(12 - d.name.size(), ' ');
    text += std::string(d.summary) + "\n";
  }
  return text;
}

std::vector<std::string> distribution_names(std::string_view list) {
  if (list != "all") {
    std::vector<std::string> names = list_of("--data", list);
    for (const std::string& name : names) find(name);
    return names;
  }
  std::vector<std::string> names;
  for (const Distribution& d : distributions()) names.emplace_back(d.name);
  return names;
}

Operands generate(std::string_view distribution, const Shape& query, const Shape& key, DType type, std::uint64_t seed) {
  const Entry& entry = find(distribution);
  return {generate(entry, Role::query, query, key[1], type, seed), generate(entry, Role::key, key, key[1], type, seed),
          generate(entry, Role::value, key, key[1], type, seed)};
}

}  // namespace chitu::cli
