// SPDX-License-Identifier: Apache-2.0
// Inputs with NaN and infinity, and whether outputs are spoilt where exact attention spoils them: for the tests of CPU and GPU.
#pragma once

#include <array>
#include <iosfwd>
#include <vector>

#include "oracle.h"
#include "support.h"

namespace chitu::test {

// A number that is not finite.
struct Spot {
  Role role;
  std::int64_t batch, head, token, channel;
  float x;
};

// For queries [2, 4, 60, dim], keys and values [2, 2, 150, dim], dim >= 12.
struct Scene {
  const char* name;
  std::vector<Spot> spots;
  Window window = everything;
};
void PrintTo(const Scene& scene, std::ostream* out);
const std::vector<Scene>& scenes();

// A call with data of its own. Moves, but is not copied: options view its starts.
struct NonFiniteCall {
  Array query, key, value;
  Options options{};
  std::vector<std::int64_t> query_starts{}, key_starts{};

  NonFiniteCall(Array q, Array k, Array v) : query(std::move(q)), key(std::move(k)), value(std::move(v)) {}
  NonFiniteCall(NonFiniteCall&&) = default;
  void set(const Spot& spot);
  oracle::Exact exact() const { return oracle::attention({query, key, value, options}); }
};

using Types = std::array<DType, 3>;  // of query, key, value
NonFiniteCall call_of(const Scene& scene, std::int64_t dim, const Types& types);
// Random places, lengths and masks, packed sequences and grouped heads among them.
NonFiniteCall random_nonfinite(std::uint64_t seed, const std::vector<std::int64_t>& dims, const Types& types);

// As many of them as there can be: all numbers of an operand, a channel, one in 20 or in 200; keys that weigh nothing among them.
NonFiniteCall crowded_nonfinite(std::uint64_t seed, const std::vector<std::int64_t>& dims, const Types& types);

// Expects that each output and LSE is NaN or an infinity where the exact one is, of the same sign, and a number elsewhere.
// out [rows, dim], lse [rows], dense.
struct Spoilt {
  int count = 0;                    // outputs
  double relative_l1 = 0, lse = 0;  // of those that are numbers; the largest error
};
Spoilt expect_spoilt_alike(const std::vector<float>& out, const std::vector<float>& lse, const oracle::Exact& exact);

}  // namespace chitu::test
