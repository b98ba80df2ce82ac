// SPDX-License-Identifier: Apache-2.0
// How the GPU's attention divides its items: cuda/schedule.h.
#include "cuda/schedule.h"

#include <gtest/gtest.h>

#include <ostream>

namespace chitu::cuda {

static std::ostream& operator<<(std::ostream& out, const Split& s) { return out << s.whole << " whole, others in " << s.pieces; }

namespace {

constexpr int processors = 132;

TEST(SplitItems, FewAreSplitUntilAllProcessorsHaveWork) {
  EXPECT_EQ(split_items(22, 32, 32, processors), (Split{0, 6}));
  EXPECT_EQ(split_items(16, 800, 800, processors), (Split{0, 8}));
  EXPECT_EQ(split_items(1, 800, 800, processors), (Split{0, 32}));
}

TEST(SplitItems, WholeRoundsAreNot) {
  for (const int rounds : {1, 2, 3, 20})
    for (const double tiles : {1., 8., 128.})
      EXPECT_EQ(split_items(rounds * processors, tiles, tiles, processors), (Split{rounds * processors, 1})) << rounds << ", " << tiles;
}

TEST(SplitItems, OfManyTheRestIsWhereItPays) {
  EXPECT_EQ(split_items(31 * processors + 4, 128, 128, processors).whole, 31 * processors);
  EXPECT_GT(split_items(31 * processors + 4, 128, 128, processors).pieces, 4);
  EXPECT_EQ(split_items(23 * processors + 36, 8, 8, processors).pieces, 1) << "pieces cost more than the tiles that others do";
  EXPECT_EQ(split_items(processors - 1, 1000, 1000, processors).pieces, 1) << "nearly all have work";
}

TEST(SplitItems, UnevenOnesComeOutEvenByThemselves) {
  EXPECT_EQ(split_items(352, 17.5, 32, processors), (Split{352, 1}));
  EXPECT_GT(split_items(86, 66, 128, processors).pieces, 1) << "the longest would be alone at the end";
}

TEST(SplitItems, WithoutTilesOrItemsNothingIsSplit) {
  EXPECT_EQ(split_items(0, 0, 0, processors), (Split{0, 1}));
  EXPECT_EQ(split_items(5, 0, 0, processors), (Split{5, 1}));
}

TEST(SplitItems, StaysWithinItsLimits) {
  for (const int multiprocessors : {1, 2, 114, 132})
    for (std::int64_t items = 0; items < 1000; items += 1 + items / 7)
      for (const double tiles : {0., 1., 3., 40., 900., 1e6})
        for (const double longest : {tiles, 1.3 * tiles, 2 * tiles}) {
          const Split s = split_items(items, tiles, longest, multiprocessors);
          SCOPED_TRACE(testing::Message() << items << " items, " << tiles << " to " << longest << " tiles, " << multiprocessors << ": "
                                          << s);
          ASSERT_GE(s.whole, 0);
          ASSERT_LE(s.whole, items);
          ASSERT_GE(s.pieces, 1);
          ASSERT_LE(s.pieces, most_pieces);
          ASSERT_EQ(s.whole == items, s.pieces == 1);
          ASSERT_LE((items - s.whole) * s.pieces, most_pieces_a_processor * multiprocessors);
        }
}

}  // namespace
}  // namespace chitu::cuda
