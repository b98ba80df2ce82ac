// SPDX-License-Identifier: Apache-2.0
// Options::key_lengths: each entry of a padded batch is as a call of its own with the keys that count, to the bit.
#include <gtest/gtest.h>

#include <cmath>

#include "support.h"

namespace chitu::test {
namespace {

// Batch entry b of t, and its first tokens.
Tensor entry_of(const Tensor& t, std::int64_t b, std::int64_t tokens) {
  Tensor e = tokens_of(t, 0, tokens);
  e.data = static_cast<std::byte*>(e.data) + b * e.stride[0] * bytes(e.type);
  e.shape[0] = 1;
  return e;
}

void expect_entries(const Method& method, const std::string& kernel, bool causal_mask, bool positions) {
  const std::vector<std::int64_t> lengths{0, 1, 130, 300};
  const std::vector<Positions> query_positions{{0}, {7, 2}, {100}, {40}}, key_positions{{0}, {1, 3}, {20}, {0}};
  Random random(7);
  const auto batch = static_cast<std::int64_t>(lengths.size());
  const Array query = normal(random, DType::bf16, {batch, 4, 140, 64});
  Array key = normal(random, DType::bf16, {batch, 2, 300, 64}), value = normal(random, DType::bf16, {batch, 2, 300, 64});
  for (Array* x : {&key, &value})
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t t = lengths[static_cast<std::size_t>(b)]; t < 300; ++t)
        for (std::int64_t h = 0; h < 2; ++h) x->set(b, h, t, t % 64, std::nanf(""));
  Options o{.recipe = method.recipe, .kernel = kernel};
  if (causal_mask) o.window = causal;
  if (positions) o.query_positions_of = query_positions, o.key_positions_of = key_positions;
  Options with_lengths = o;
  with_lengths.key_lengths = lengths;
  const Result got = attend(query.tensor(), key.tensor(), value.tensor(), with_lengths);
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto i = static_cast<std::size_t>(b);
    Options own = o;
    if (positions) {
      own.query_positions_of = own.key_positions_of = {};
      own.query_positions = query_positions[i], own.key_positions = key_positions[i];
    }
    const Result want = attend(entry_of(query, b, 140), entry_of(key, b, lengths[i]), entry_of(value, b, lengths[i]), own);
    const auto same = [&](const Array& x, const Array& y, std::int64_t channels) {
      for (std::int64_t h = 0; h < 4; ++h)
        for (std::int64_t t = 0; t < 140; ++t)
          for (std::int64_t c = 0; c < channels; ++c)
            ASSERT_EQ(x.get(b, h, t, c), y.get(0, h, t, c)) << "entry " << b << " head " << h << " query " << t << " channel " << c;
    };
    same(got.out, want.out, 64);
    same(got.lse, want.lse, 1);
  }
}

TEST(KeyLengths, AreCallsOfTheirOwn) {
  for (const std::string& kernel : available_kernels()) {
    if (!kernel.starts_with("cpu")) continue;
    for (const Method& method : methods)
      for (const bool causal_mask : {false, true}) {
        SCOPED_TRACE(kernel + " " + std::string(method.name));
        try {
          expect_entries(method, kernel, causal_mask, causal_mask);
        } catch (const Error& e) {  // not all rows compute all recipes
          ASSERT_EQ(e.code(), ErrorCode::unsupported) << e.what();
        }
      }
  }
}

}  // namespace
}  // namespace chitu::test
