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

// Adds the name of what is read, an option or a file, to an Error's text.
template <class Function>
auto naming(const std::string& name, const Function& function) {
  try {
    return function();
  } catch (const Error& error) {
    throw Error(error.code(), name + ": " + error.what());
  }
}

// The same for an option, whose name is in the error. least: the smallest count that it takes.
std::int64_t count_of(const std::string& option, std::string_view word, std::int64_t least = 1);
std::vector<std::string> list_of(const std::string& option, std::string_view word);

}  // namespace chitu::cli
