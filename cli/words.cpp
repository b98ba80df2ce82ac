// SPDX-License-Identifier: Apache-2.0
#include "cli/words.h"

#include <charconv>
#include <limits>
#include <optional>

namespace chitu::cli {
namespace {

// The factor that a suffix stands for; 0 if there is no such suffix.
std::int64_t unit(std::string_view suffix) {
  if (suffix.empty()) return 1;
  if (suffix == "K" || suffix == "k") return std::int64_t{1} << 10;
  if (suffix == "M" || suffix == "m") return std::int64_t{1} << 20;
  if (suffix == "G" || suffix == "g") return std::int64_t{1} << 30;
  return 0;
}

std::optional<std::int64_t> count(std::string_view word) {
  std::int64_t number = -1;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (error != std::errc{} || word.front() == '-') return {};
  const std::int64_t times = unit(word.substr(static_cast<std::size_t>(end - word.data())));
  if (times == 0 || number > std::numeric_limits<std::int64_t>::max() / times) return {};
  return number * times;
}

}  // namespace

std::int64_t parse_count(std::string_view word) {
  const std::optional<std::int64_t> number = count(word);
  require(number.has_value(), "'", word, "' is not a count; write it like 4096, 4K or 1M");
  return *number;
}

std::vector<std::string> split_list(std::string_view word) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0;;) {
    const std::size_t comma = word.find(',', begin);
    parts.emplace_back(word.substr(begin, comma - begin));
    require(!parts.back().empty(), "'", word, "' has an empty part; write a list like a,b,c");
    if (comma == word.npos) return parts;
    begin = comma + 1;
  }
}

Window parse_window(std::string_view word) {
  const auto side = [&](std::string_view part) {
    const std::optional<std::int64_t> tokens = part == "-1" ? unbounded : count(part);
    require(tokens.has_value(), "window '", word, "' must be LEFT,RIGHT: two counts of tokens, -1 for no bound");
    return *tokens;
  };
  const std::size_t comma = word.find(',');
  return {side(word.substr(0, comma)), side(comma == word.npos ? "" : word.substr(comma + 1))};
}

Window window_of(bool is_causal, const std::string& window) {
  if (window.empty()) return is_causal ? causal : everything;
  const Window given = parse_window(window);
  require(!is_causal || given.right == 0 || given.right >= unbounded, "--causal sees no later key, but --window ", window, " sees ",
          given.right, "; give --window LEFT,0");
  return {given.left, is_causal ? 0 : given.right};
}

std::int64_t count_of(const std::string& option, std::string_view word, std::int64_t least) {
  const std::int64_t number = naming(option, [&] { return parse_count(word); });
  require(number >= least, option, ": ", word, " is too few; it must be ", least, " or more");
  return number;
}

std::vector<std::string> list_of(const std::string& option, std::string_view word) {
  return naming(option, [&] { return split_list(word); });
}

}  // namespace chitu::cli
