// SPDX-License-Identifier: Apache-2.0
// visible(): the interval of keys that a query sees, against its definition key by key.
#include "common/visible.h"

#include <gtest/gtest.h>

namespace chitu {
namespace {

bool sees(const Window& window, std::int64_t position, const Positions& keys, std::int64_t key) {
  const std::int64_t at = keys.first + key * keys.step;
  return at >= position - window.left && at <= position + window.right;
}

TEST(Visible, IsTheKeysInsideTheWindow) {
  for (const std::int64_t left : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, std::int64_t{5}, std::int64_t{11}, unbounded})
    for (const std::int64_t right : {std::int64_t{0}, std::int64_t{1}, std::int64_t{3}, std::int64_t{8}, unbounded})
      for (std::int64_t first = -7; first <= 7; ++first)
        for (std::int64_t step = 1; step <= 5; ++step)
          for (std::int64_t count = 0; count <= 9; ++count)
            for (std::int64_t position = -20; position <= 40; ++position) {
              const Window window{left, right};
              const Range range = visible(window, position, {first, step}, count);
              ASSERT_GE(range.begin, 0);
              ASSERT_LE(range.end, count);
              for (std::int64_t key = 0; key < count; ++key)
                ASSERT_EQ(sees(window, position, {first, step}, key), key >= range.begin && key < range.end)
                    << "window " << left << ", " << right << ", position " << position << ", key " << key << " of " << count << " from "
                    << first << " by " << step;
            }
}

TEST(Visible, DoesNotOverflowAtTheLimits) {
  const std::int64_t far = unbounded / 4 - 1;
  for (const std::int64_t position : {-far, std::int64_t{0}, far})
    for (const std::int64_t first : {-far, std::int64_t{0}, far}) {
      EXPECT_EQ(visible(everything, position, {first, 1}, 10).begin, 0);
      EXPECT_EQ(visible(everything, position, {first, 1}, 10).end, 10);
      EXPECT_EQ(visible(causal, position, {first, 1}, 10).end, position < first ? 0 : position == first ? 1 : 10);
    }
}

}  // namespace
}  // namespace chitu
