// SPDX-License-Identifier: Apache-2.0
#include "cli/words.h"

#include "support.h"

namespace chitu::cli::test {
namespace {

TEST(Words, Counts) {
  EXPECT_EQ(parse_count("0"), 0);
  EXPECT_EQ(parse_count("4096"), 4096);
  EXPECT_EQ(parse_count("4K"), 4096);
  EXPECT_EQ(parse_count("10k"), 10240);
  EXPECT_EQ(parse_count("1M"), 1048576);
  EXPECT_EQ(parse_count("2G"), std::int64_t{1} << 31);
  EXPECT_EQ(parse_count("9223372036854775807"), 9223372036854775807);
}

TEST(Words, WhatIsNoCountIsRefused) {
  for (const char* word : {"", "-1", "-0", "+1", " 1", "1 ", "K", "4KK", "4Ki", "1.5K", "0x10", "1e3", "9223372036854775808",
                           "9007199254740992K", "99999999999999999999"})
    expect_error([&] { parse_count(word); }, {std::string("'") + word + "'", "count"});
}

TEST(Words, OfAnOptionAreRefusedByItsName) {
  EXPECT_EQ(count_of("--rows", "4K"), 4096);
  EXPECT_EQ(count_of("--rows", "0", 0), 0);
  expect_error([] { count_of("--rows", "1.5K"); }, {"--rows: '1.5K' is not a count"});
  expect_error([] { count_of("--rows", "0"); }, {"--rows: 0 is too few", "1 or more"});
  EXPECT_EQ(list_of("--data", "a,b"), (std::vector<std::string>{"a", "b"}));
  expect_error([] { list_of("--data", "a,"); }, {"--data: 'a,' has an empty part"});
}

TEST(Words, Lists) {
  EXPECT_EQ(split_list("a"), std::vector<std::string>{"a"});
  EXPECT_EQ(split_list("a,b c,d"), (std::vector<std::string>{"a", "b c", "d"}));
  for (const char* word : {"", ",", "a,", ",a", "a,,b"}) expect_error([&] { split_list(word); }, {"empty part", word});
}

TEST(Words, Windows) {
  EXPECT_EQ(parse_window("128,0"), (Window{128, 0}));
  EXPECT_EQ(parse_window("-1,0"), causal);
  EXPECT_EQ(parse_window("-1,-1"), everything);
  EXPECT_EQ(parse_window("4K,1"), (Window{4096, 1}));
  for (const char* word : {"", "1", ",", "1,", ",1", "1,2,3", "-2,0", "0,-2", "1, 2", "a,b", "1;2"})
    expect_error([&] { parse_window(word); }, {std::string("'") + word + "'", "LEFT,RIGHT"});
}

}  // namespace
}  // namespace chitu::cli::test
