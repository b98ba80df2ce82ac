// SPDX-License-Identifier: Apache-2.0
// Named distributions of queries, keys and values: easy ones, and those that break 8-bit attention. Each number is a function of
// (seed, head, operand, token, channel) alone, so the data is the same on every machine, for any number of threads.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/files/files.h"

namespace chitu::cli {

struct Distribution {
  std::string_view name;
  std::string_view summary;
};
std::span<const Distribution> distributions();
std::string describe_distributions();  // a line each, for the help

// "normal,outlier" or "all". Throws Error that lists the names there are.
std::vector<std::string> distribution_names(std::string_view list);

// Counter-based random numbers: the n-th number of a stream needs no other.
class Stream {
 public:
  explicit Stream(std::uint64_t key) : key_(key) {}
  Stream part(std::uint64_t name) const;      // an independent stream
  double uniform(std::uint64_t index) const;  // within (0, 1)
  double normal(std::uint64_t index) const;   // N(0, 1), by Box and Muller

 private:
  std::uint64_t bits(std::uint64_t index) const;
  std::uint64_t key_;
};

struct Operands {
  HostTensor query, key, value;
};

// query: the shape of the queries; key: of keys and values, whose heads divide the query's.
Operands generate(std::string_view distribution, const Shape& query, const Shape& key, DType type, std::uint64_t seed);

}  // namespace chitu::cli
