// SPDX-License-Identifier: Apache-2.0
// Words of the command line that are more than a number or a name. Each throws Error(bad_argument) for anything else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "chitu/attention.h"

namespace chitu::cli {

std::int64_t parse_count(std::string_view word);              // "4096", "4K" = 4096, "1M" = 1048576
std::vector<std::string> split_list(std::string_view word);   // "a,b,c"; no part may be empty
Window parse_window(std::string_view word);                   // "LEFT,RIGHT", each a count or -1: unbounded
Window window_of(bool is_causal, const std::string& window);  // of --causal and --window together; window may be empty

}  // namespace chitu::cli
