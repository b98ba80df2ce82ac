// SPDX-License-Identifier: Apache-2.0
// What a call can ask for beyond the simplest one, with recipes::exact. A kernel must not take a call that asks for something it has never
// heard of, so nothing is taken unless it is listed: describe() collects what a call asks for, a row of the kernel table lists what it
// takes, and refusal() names the difference.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <iterator>

namespace chitu {

enum class Need : std::uint8_t {
  window,
  scale,
  negative_scale,  // turns the order of the scores round
  query_positions,
  key_positions,
  positions_of_sequences,
  packed_sequences,
  key_lengths,
  lengths_on_device,
  threads,
  stream,
  workspace,
  lse,
  grouped_heads,
  mixed_types,
  quantized_query,
  quantized_key,
  quantized_value,
  sorted_keys,
  unlisted,  // what every new option is until a row lists it: for the tests
};
inline constexpr int need_count = static_cast<int>(Need::unlisted) + 1;

// As in "does not take window".
constexpr const char* name(Need need) {
  constexpr const char* names[] = {"window",
                                   "scale",
                                   "a negative scale",
                                   "query_positions",
                                   "key_positions",
                                   "query_positions_of and key_positions_of",
                                   "query_starts and key_starts",
                                   "key_lengths",
                                   "lengths in GPU memory",
                                   "threads",
                                   "stream",
                                   "workspace",
                                   "an lse",
                                   "heads that share keys and values",
                                   "tensors of several types",
                                   "a query that came quantised",
                                   "a key that came quantised",
                                   "a value that came quantised",
                                   "keys sorted by size",
                                   "an option that no kernel lists"};
  static_assert(std::size(names) == need_count);
  return names[static_cast<int>(need)];
}

// A set of them.
class Needs {
 public:
  constexpr Needs() = default;
  constexpr Needs(std::initializer_list<Need> list) {
    for (const Need need : list) add(need);
  }
  constexpr void add(Need need) { bits_ |= bit(need); }
  constexpr bool has(Need need) const { return bits_ & bit(need); }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr Needs without(Needs others) const {
    Needs rest;
    rest.bits_ = bits_ & ~others.bits_;
    return rest;
  }
  friend constexpr bool operator==(const Needs&, const Needs&) = default;

 private:
  static_assert(need_count <= 32);
  static constexpr std::uint32_t bit(Need need) { return std::uint32_t{1} << static_cast<int>(need); }
  std::uint32_t bits_ = 0;
};

}  // namespace chitu
