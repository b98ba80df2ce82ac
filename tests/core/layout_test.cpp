// SPDX-License-Identifier: Apache-2.0
// Where a GPU's operands lie: cuda/operands/layout.h. Its functions are plain, so they need no GPU.
#include "cuda/operands/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace chitu::cuda {
namespace {

TEST(Layout, TokensAreWhereTheirStridesSay) {
  const View view{nullptr, 1000003, 10007, 101};
  EXPECT_EQ(token_offset(view, 2, 3, 5), 2 * 1000003 + 3 * 10007 + 5 * 101);
  SequenceLayout sequence{};
  sequence.batch = 2, sequence.query_begin = 70, sequence.key_begin = 900;
  EXPECT_EQ(query_offset(view, sequence, 3, 5), token_offset(view, 2, 3, 75));
  EXPECT_EQ(key_offset(view, sequence, 3, 5), token_offset(view, 2, 3, 905));
}

TEST(Layout, OffsetsHave64Bits) {
  const View view{nullptr, std::int64_t{1} << 40, std::int64_t{1} << 35, std::int64_t{1} << 33};
  EXPECT_EQ(token_offset(view, 3, 5, 7), 3 * view.batch + 5 * view.head + 7 * view.token);
  const Form form = form_of(recipes::exact, 256);
  EXPECT_EQ(key_tile_offset(form, std::int64_t{1} << 30), (std::int64_t{1} << 30) * 128 * 256 * 2);
}

TEST(Layout, EachRowOfABlockIsOneQueryOfOneHead) {
  std::set<std::pair<int, int>> seen;
  for (int row = 0; row < 256; ++row) {
    const BlockRow r = block_row(row);
    EXPECT_GE(r.head, 0);
    EXPECT_LT(r.head, heads_of_block);
    EXPECT_EQ(r.query * heads_of_block + r.head, row);
    EXPECT_TRUE(seen.insert({r.query, r.head}).second);
  }
}

// The planes of tiles cover the memory, and none meets another.
TEST(Layout, TilesFollowEachOther) {
  for (const Method& method : methods)
    for (const int dim : {8, 64, 72, 128, 136, 256}) {
      const Form form = form_of(method.recipe, dim);
      for (std::int64_t tile = 0; tile < 5; ++tile) {
        EXPECT_EQ(key_tile_offset(form, tile), tile * tile_tokens * form.dim * form.score_bytes);
        EXPECT_EQ(value_tile_offset(form, tile), tile * tile_tokens * form.dim * form.value_bytes);
        EXPECT_EQ(residual_offset(form, tile), tile * tile_tokens * form.dim);
      }
      EXPECT_EQ(key_tile_offset(form, 1) + value_tile_offset(form, 1), form.tile_bytes());
      EXPECT_EQ(key_tile_offset(form, 1) % 16 + value_tile_offset(form, 1) % 16, 0);  // copies are of whole chunks
    }
}

TEST(Layout, PassesOfATileAreItsOwn) {
  std::set<std::int64_t> seen;
  for (std::int64_t tile = 0; tile < 10; ++tile)
    for (const int residual : {0, 1}) EXPECT_TRUE(seen.insert(pass_index(tile, residual)).second);
  EXPECT_EQ(*seen.rbegin(), 19);
}

TEST(Layout, PanelsCoverTheirRows) {
  for (const int row_bytes : {64, 128, 256, 512}) {
    std::int64_t end = 0;
    for (int panel = 0; panel * panel_bytes(row_bytes) < row_bytes; ++panel) {
      EXPECT_EQ(panel_offset(row_bytes, panel, 384), end);
      end += 384 * panel_bytes(row_bytes);
    }
    EXPECT_EQ(end, 384 * row_bytes);
  }
}

// A swizzle only trades the chunks of a row. ldmatrix reads the chunks of one column in 8 rows at once. They lie in 8 different places of
// 16 bytes within 128, so in all 32 banks.
template <int row_bytes>
void expect_swizzle() {
  constexpr int chunks = row_bytes / 16;
  for (int row = 0; row < 128; ++row) {
    std::set<int> places;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int place = swizzled<row_bytes>(chunk, row);
      EXPECT_GE(place, 0);
      EXPECT_LT(place, chunks);
      places.insert(place);
      EXPECT_EQ(swizzled<row_bytes>(place, row), chunk);  // its own inverse
    }
    EXPECT_EQ(places.size(), static_cast<std::size_t>(chunks));
  }
  for (int first = 0; first < 128; first += 8)
    for (int chunk = 0; chunk < chunks; ++chunk) {
      std::set<int> banks;
      for (int row = first; row < first + 8; ++row) banks.insert((row * row_bytes / 16 + swizzled<row_bytes>(chunk, row)) % 8);
      EXPECT_EQ(banks.size(), 8u);
    }
}
TEST(Layout, SwizzlesAreWithoutBankConflicts) {
  expect_swizzle<64>();
  expect_swizzle<128>();
}

// Two adjacent accumulators of m16n8 products (columns 2 q, 2 q + 1 of keys 0 ... 7, and the same of keys 8 ... 15) are the four bytes that
// lane q holds of 16 keys as the 8-bit operand of the next product.
TEST(Layout, StoredKeysAreTheAccumulatorsOrder) {
  std::vector<int> keys;
  for (int at = 0; at < 16; ++at) keys.push_back(stored_key(at));
  EXPECT_EQ(keys, (std::vector{0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15}));
  for (int lane = 0; lane < 4; ++lane) {
    const std::vector<int> expected{2 * lane, 2 * lane + 1, 8 + 2 * lane, 8 + 2 * lane + 1};
    EXPECT_EQ(std::vector<int>(keys.begin() + 4 * lane, keys.begin() + 4 * lane + 4), expected);
  }
}

// Each rank has a row of its own, and the row's place among the columns of an accumulator is that of the scale that the rank takes.
TEST(Layout, RowsOfRanksAreTheScalesLanes) {
  std::set<int> rows;
  for (int rank = 0; rank < tile_tokens; ++rank) {
    const int row = row_of_rank(rank);
    EXPECT_TRUE(row >= 0 && row < tile_tokens && rows.insert(row).second) << rank;
    EXPECT_EQ(row % 8 / 2, sorted_group(recipes::chitu.key.groups, rank)) << rank;
  }
}

TEST(Layout, OrdersFollowEachOther) {
  for (std::int64_t tile = 0; tile < 5; ++tile) EXPECT_EQ(order_offset(tile), tile * tile_tokens);
  EXPECT_EQ(order_offset(std::int64_t{1} << 30), std::int64_t{1} << 37);
}

TEST(Layout, OnlySortedKeysHaveAnOrder) {
  for (const Method& method : methods) EXPECT_EQ(form_of(method.recipe, 64).sorted, method.name == "chitu") << method.name;
}

TEST(Layout, TheOffsetOfValuesIsAddedByExclusiveOr) {
  for (int value = -128; value < 128; ++value)
    EXPECT_EQ((static_cast<std::uint32_t>(value) ^ value_offsets) & 0xff, static_cast<std::uint32_t>(value + 128));
  EXPECT_EQ(value_offset, value_offsets & 0xff);
}

}  // namespace
}  // namespace chitu::cuda
