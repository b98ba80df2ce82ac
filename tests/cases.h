// SPDX-License-Identifier: Apache-2.0
// Random calls, for the conformance tests of any kernel: a suite says what it wants drawn (CaseSpace), and one generator draws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/support.h"

namespace chitu::test {

inline const std::vector<std::int64_t> head_ratios{1, 4, 8};
inline const std::vector<Layout> layouts{Layout::bhsd, Layout::bshd, Layout::padded};

enum class Mask { none, causal, window, positions, packed };

// A call with data of its own. It is moved, not copied: options view its starts.
struct Case {
  Array query, key, value;
  Options options{};  // without recipe and kernel, which are the test's
  std::vector<std::int64_t> query_starts{}, key_starts{};
  std::vector<Positions> query_positions{}, key_positions{};  // of each sequence
  DType type = DType::f16;                                    // of the output
  Layout in = Layout::bhsd, out = Layout::bhsd;               // of copies of the operands on a GPU, and of the output
  bool peaky = false;                                         // rows of many keys give most of their weight to few
  std::string text{};                                         // for a failure's message
};

// Normal numbers, everything visible.
Case normal_case(Random& random, DType type, const Shape& query, const Shape& key);

// What the cases of a suite are drawn from. A case steps through dims, lengths and masks at once: if their counts have no common divisor,
// all pairs occur.
struct CaseSpace {
  std::uint64_t seed = 0;
  std::vector<std::int64_t> dims, lengths;
  std::vector<DType> inputs, outputs;
  bool mixed = false;          // each operand has a type and a layout of its own; else they have one type
  std::int64_t most_work = 0;  // products of a channel of a query and of a key, all heads: the reference is slow
};

Case make_case(const CaseSpace& space, std::size_t i);

}  // namespace chitu::test
