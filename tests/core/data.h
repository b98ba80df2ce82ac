// SPDX-License-Identifier: Apache-2.0
// Data that methods are held to bounds on, and the bounds: for the tests of CPU and GPU. Promises of docs/numerics.md, "Tolerances".
#pragma once

#include <iosfwd>
#include <string_view>
#include <vector>

#include "support.h"

namespace chitu::test {

struct Data {
  Array query, key, value;
};

// One head, few queries, all keys.
Data normal_data(Random& random, std::int64_t queries, std::int64_t keys, std::int64_t dim, DType type = DType::f32);

// The most that a method may differ from exact attention on normal data.
struct Bar {
  double l1, lse_largest = 1e-2, lse_mean = 1.2e-3;
};
const Bar& bar_of(std::string_view method);

// Data made to be hard, 4096 keys of dim 128.
struct Hard {
  const char* name;
  double chitu;  // its bound, beside being better than sage2
  Data (*make)(Random&, std::int64_t queries, DType type);
};
void PrintTo(const Hard& data, std::ostream* out);
const std::vector<Hard>& hard_data();

}  // namespace chitu::test
