// SPDX-License-Identifier: Apache-2.0
#include "cases.h"

#include <array>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace chitu::test {
namespace {

constexpr std::array<const char*, 5> mask_names{"none", "causal", "window", "positions", "packed"};

void check(const CaseSpace& space) {
  const std::size_t dims = space.dims.size(), lengths = space.lengths.size(), masks = mask_names.size();
  if (std::gcd(dims, lengths) != 1 || std::gcd(dims, masks) != 1 || std::gcd(lengths, masks) != 1)
    throw std::logic_error("dims, lengths and masks do not meet in all pairs: their counts have a common divisor");
}

// Positions of some steps for each sequence, of keys, of queries or of both: chunks that lie anywhere among each other.
void set_positions_of_sequences(Case& c, std::size_t sequences, std::int64_t keys, Random& random) {
  const std::int64_t kind = random.below(3);
  for (std::size_t i = 0; i < sequences; ++i) {
    const Positions key{random.below(200) - 100, 1 + random.below(3)};
    if (kind != 1) c.key_positions.push_back(key);
    if (kind != 0) c.query_positions.push_back({(kind == 1 ? 0 : key.first) - 5 + random.below(keys + 10), 1 + random.below(3)});
  }
  c.options.query_positions_of = c.query_positions;
  c.options.key_positions_of = c.key_positions;
}

void set_mask(Case& c, Mask mask, Random& random) {
  const std::int64_t queries = c.query.shape()[2], keys = c.key.shape()[2];
  Options& o = c.options;
  switch (mask) {
    case Mask::none:
      break;
    case Mask::causal:
      o.window = causal;
      break;
    case Mask::window:
      o.window = {random.below(300), random.below(3) ? random.below(60) : 0};
      break;
    case Mask::positions: {
      const std::int64_t left = random.below(2) ? unbounded : random.below(300), right = random.below(2) ? 0 : random.below(100);
      o.window = {left, right < 80 ? right : unbounded};
      if (random.below(4) == 0) {
        set_positions_of_sequences(c, static_cast<std::size_t>(c.query.shape()[0]), keys, random);
        break;
      }
      o.key_positions = Positions{random.below(200) - 100, 1 + random.below(4)};
      // Some queries before all keys, some among them.
      if (random.below(3)) o.query_positions = Positions{o.key_positions->first - 5 + random.below(keys + 10), 1 + random.below(3)};
      break;
    }
    case Mask::packed:
      o.window = random.below(3) ? causal : random.below(2) ? everything : Window{random.below(200), random.below(30)};
      c.query_starts = random_starts(random, queries);
      c.key_starts = random_starts(random, keys);
      o.query_starts = c.query_starts;
      o.key_starts = c.key_starts;
      if (random.below(2)) set_positions_of_sequences(c, c.query_starts.size() - 1, keys / 3 + 1, random);
      break;
  }
}

}  // namespace

Case normal_case(Random& random, DType type, const Shape& query, const Shape& key) {
  return {.query = normal(random, type, query), .key = normal(random, type, key), .value = normal(random, type, key), .type = type};
}

Case make_case(const CaseSpace& space, std::size_t i) {
  check(space);
  Random random(space.seed + i);
  const std::size_t mask = i % mask_names.size();
  const std::int64_t dim = space.dims[i % space.dims.size()], keys = space.lengths[i % space.lengths.size()];
  const std::int64_t kv_heads = 1 + random.below(2), ratio = random.pick(head_ratios), heads = kv_heads * ratio;
  const std::int64_t batch = static_cast<Mask>(mask) == Mask::packed ? 1 : 1 + random.below(2);
  std::int64_t queries = random.below(2) ? keys : random.pick(space.lengths);
  while (queries > 1 && batch * heads * queries * keys * dim > space.most_work) queries = queries * 2 / 3;

  Case c;
  const DType in = random.pick(space.inputs);
  c.type = random.pick(space.outputs);
  const auto operand = [&](const Shape& shape) {
    const DType type = space.mixed ? random.pick(space.inputs) : in;
    const Layout layout = space.mixed ? random.pick(layouts) : Layout::bhsd;
    return normal(random, type, shape, layout);
  };
  c.query = operand({batch, heads, queries, dim});
  c.key = operand({batch, kv_heads, keys, dim});
  c.value = operand(c.key.shape());
  if (random.below(3) == 0) c.key.fill([&](auto, auto, auto, std::int64_t x) { return random.normal() + (x % 7 == 0 ? 4.f : 0.f); });
  if (random.below(3) == 0)  // values far smaller than others: flagged tiles
    c.value.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t % 301 == 5 ? 0.01f : 1); });
  set_mask(c, static_cast<Mask>(mask), random);
  const float scales[] = {2.4f, -1.6f, 0.f};
  if (random.below(3) == 0) {
    c.options.scale = scales[random.below(3)] / std::sqrt(static_cast<float>(dim));
    c.peaky = true;
  }
  c.in = random.pick(layouts);
  c.out = random.pick(layouts);
  const auto types = [](const Array& x) { return std::string(name(x.tensor().type)); };
  c.text = "case " + std::to_string(i) + ": batch " + std::to_string(batch) + ", heads " + std::to_string(kv_heads) + " x " +
           std::to_string(ratio) + ", queries " + std::to_string(queries) + ", keys " + std::to_string(keys) + ", dim " +
           std::to_string(dim) + ", mask " + mask_names[mask] + ", " + types(c.query) + " " + types(c.key) + " " + types(c.value) + " to " +
           name(c.type) + ", scale " + std::to_string(c.options.scale.value_or(-1));
  return c;
}

}  // namespace chitu::test
