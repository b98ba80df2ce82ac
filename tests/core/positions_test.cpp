// SPDX-License-Identifier: Apache-2.0
// Positions of each sequence: shards that lie in several pieces, prompts that go on from a cache.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "oracle.h"
#include "support.h"

namespace chitu::test {
namespace {

class PositionsOfSequences : public testing::TestWithParam<std::string> {};

// Tokens [begin, begin + chunk) for each begin, behind each other.
Array chunks_of(const Array& x, const std::vector<std::int64_t>& begins, std::int64_t chunk) {
  const auto [batch, heads, tokens, dim] = x.shape();
  Array all(x.tensor().type, {batch, heads, chunk * static_cast<std::int64_t>(begins.size()), dim});
  return all.fill([&, chunk](std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) {
    return x.get(b, h, begins[static_cast<std::size_t>(t / chunk)] + t % chunk, c);
  });
}

// A causal sequence in 2 n chunks on n ranks, of which rank r has chunks r and 2 n - 1 - r, so that all have the same work. A rank attends
// to another's keys in two packed calls of two sequences: each of its chunks meets each chunk of the other. Merged, that is the whole.
TEST_P(PositionsOfSequences, ZigzagShardsAreTheWhole) {
  constexpr std::int64_t ranks = 3, chunk = 37, tokens = 2 * ranks * chunk;
  Random random(31);
  const Array q = normal(random, DType::f32, {1, 4, tokens, 32}), k = normal(random, DType::f32, {1, 2, tokens, 32}),
              v = normal(random, DType::f32, {1, 2, tokens, 32});
  const Result whole = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipes::exact, .window = causal, .kernel = GetParam()});
  const std::vector<std::int64_t> starts{0, chunk, 2 * chunk};
  const auto chunks = [&](std::int64_t rank) { return std::vector{rank * chunk, (2 * ranks - 1 - rank) * chunk}; };
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const std::vector<std::int64_t> mine = chunks(rank);
    const Array query = chunks_of(q, mine, chunk);
    const std::vector<Positions> query_positions{{mine[0]}, {mine[1]}};
    std::vector<Result> parts;
    for (std::int64_t other = 0; other < ranks; ++other)
      for (const bool crossed : {false, true}) {
        std::vector<std::int64_t> theirs = chunks(other);
        if (crossed) std::swap(theirs[0], theirs[1]);
        const std::vector<Positions> key_positions{{theirs[0]}, {theirs[1]}};
        parts.push_back(attend(query.tensor(), chunks_of(k, theirs, chunk).tensor(), chunks_of(v, theirs, chunk).tensor(),
                               {.recipe = recipes::exact,
                                .window = causal,
                                .query_positions_of = query_positions,
                                .key_positions_of = key_positions,
                                .query_starts = starts,
                                .key_starts = starts,
                                .kernel = GetParam()}));
      }
    std::vector<Output> outputs;
    for (const Result& part : parts) outputs.push_back({part.out, part.lse});
    Result merged{Array(DType::f32, query.shape()), Array(DType::f32, {1, 4, 2 * chunk, 1})};
    merge(outputs, {merged.out, merged.lse});
    EXPECT_LE(relative_l1(merged.out.numbers(), chunks_of(whole.out, mine, chunk).numbers()), 1e-6);
    const std::vector<float> lse = chunks_of(whole.lse, mine, chunk).numbers();
    EXPECT_LE(difference(merged.lse.numbers(), {lse.begin(), lse.end()}).largest, 1e-5);
  }
}

// Each batch entry is the call of its own that its positions describe, to the bit.
TEST_P(PositionsOfSequences, BatchEntriesAreCallsOfTheirOwn) {
  Random random(32);
  const Array q = normal(random, DType::f32, {3, 2, 50, 64}), k = normal(random, DType::f32, {3, 2, 200, 64}),
              v = normal(random, DType::f32, {3, 2, 200, 64});
  const std::vector<Positions> query_positions{{150}, {0, 3}, {-10}}, key_positions{{0}, {20}, {5, 2}};
  for (const bool has_queries : {true, false})
    for (const bool has_keys : {true, false}) {
      if (!has_queries && !has_keys) continue;
      Options o{.window = {90, 10}, .kernel = GetParam()};
      if (has_queries) o.query_positions_of = query_positions;
      if (has_keys)
        o.key_positions_of = key_positions;
      else
        o.key_positions = Positions{7, 2};  // of all
      const Result whole = attend(q.tensor(), k.tensor(), v.tensor(), o);
      for (std::size_t b = 0; b < 3; ++b) {
        const auto entry = [&](Tensor t) {
          t.data = static_cast<float*>(t.data) + static_cast<std::int64_t>(b) * t.stride[0];
          t.shape[0] = 1;
          return t;
        };
        Options one{.window = o.window, .key_positions = o.key_positions, .kernel = GetParam()};
        if (has_queries) one.query_positions = query_positions[b];
        if (has_keys) one.key_positions = key_positions[b];
        const Result alone = attend(entry(q), entry(k), entry(v), one);
        for (std::int64_t h = 0; h < 2; ++h)
          for (std::int64_t t = 0; t < 50; ++t) {
            ASSERT_EQ(whole.lse.get(static_cast<std::int64_t>(b), h, t, 0), alone.lse.get(0, h, t, 0));
            for (std::int64_t c = 0; c < 64; ++c)
              ASSERT_EQ(whole.out.get(static_cast<std::int64_t>(b), h, t, c), alone.out.get(0, h, t, c));
          }
      }
    }
}

INSTANTIATE_TEST_SUITE_P(All, PositionsOfSequences, testing::ValuesIn(available_kernels()),
                         [](const auto& info) { return test_name(info.param); });

}  // namespace
}  // namespace chitu::test
