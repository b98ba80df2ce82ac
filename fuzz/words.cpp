// SPDX-License-Identifier: Apache-2.0
// Any text as a count, a list or a window: refused with an Error, or a value within its range.
#include "cli/words.h"
#include "fuzz/check.h"

namespace {

template <class Parse, class Check>
void try_parse(std::string_view word, Parse parse, Check holds) {
  try {
    chitu::fuzz::check(holds(parse(word)));
  } catch (const chitu::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  namespace cli = chitu::cli;
  const std::string_view word(reinterpret_cast<const char*>(data), size);
  try_parse(word, cli::parse_count, [](std::int64_t count) { return count >= 0; });
  try_parse(word, cli::parse_window, [](const chitu::Window& window) { return window.left >= 0 && window.right >= 0; });
  try_parse(word, cli::split_list, [&](const std::vector<std::string>& parts) {
    std::string joined;
    for (const std::string& part : parts) joined += (joined.empty() ? "" : ",") + part;
    return joined == word;
  });
  return 0;
}
