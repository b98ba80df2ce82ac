// SPDX-License-Identifier: Apache-2.0
// A Problem is a checked call, with nothing left to default.
#pragma once

#include <string>
#include <vector>

#include "checks.h"
#include "chitu/attention.h"
#include "common/tiles.h"
#include "common/visible.h"
#include "needs.h"

namespace chitu {

// One sequence of a batch: a batch entry, or a part of a packed one.
struct Sequence {
  std::int64_t batch = 0;
  std::int64_t query_begin = 0, queries = 0;
  std::int64_t key_begin = 0, keys = 0;
  Positions query_positions{}, key_positions{};

  std::int64_t query_position(std::int64_t query) const { return query_positions.first + query * query_positions.step; }
  std::int64_t key_position(std::int64_t key) const { return key_positions.first + key * key_positions.step; }
  Range visible(const Window& window, std::int64_t query) const {
    return chitu::visible(window, query_position(query), key_positions, keys);
  }
};

// It views what the call views: operands, starts and the kernel's name stay the caller's, and must outlive it.
struct Problem {
  Operand query, key, value;
  Output output;
  Options options;  // as given, but with the scale and the number of threads there, and a window no wider than `unbounded`
  Needs needs;      // what the call asks for beyond the default
  std::vector<Sequence> sequences;

  float scale() const { return *options.scale; }
  // Whether each sequence is a batch entry, and differs from the others in that alone.
  bool alike() const {
    return !packed() && options.query_positions_of.empty() && options.key_positions_of.empty() && options.key_lengths.empty() &&
           !lengths_on_device();
  }
  bool packed() const { return !options.query_starts.empty() || !options.device_query_starts.empty(); }
  // Then `sequences` have the bounds' lengths.
  bool lengths_on_device() const { return !options.device_query_starts.empty() || !options.device_key_lengths.empty(); }
  Device device() const { return query.tensor().device; }
  std::int64_t heads() const { return query.tensor().shape[1]; }
  std::int64_t kv_heads() const { return key.tensor().shape[1]; }
  std::int64_t group() const { return heads() / kv_heads(); }  // query heads that share a kv head
  int dim() const { return static_cast<int>(query.tensor().shape[3]); }
};

// Checks every argument of a call, once.
Problem describe(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options,
                 Data data = Data::needed);

}  // namespace chitu
