// SPDX-License-Identifier: Apache-2.0
// The host's half of schedule.h.
#include "cuda/schedule.h"

#include <algorithm>
#include <numeric>

#include "cuda/device.h"
#include "dispatch.h"

namespace chitu::cuda {
namespace {

int narrow(std::int64_t x) { return static_cast<int>(x); }

}  // namespace

std::vector<SequenceLayout> layouts_of(const Problem& p, const Form& form) {
  std::vector<SequenceLayout> all;
  SequenceLayout at{};
  for (const Sequence& s : p.sequences) {
    at.batch = narrow(s.batch);
    at.query_begin = narrow(s.query_begin);
    at.queries = narrow(s.queries);
    at.key_begin = narrow(s.key_begin);
    at.keys = narrow(s.keys);
    at.query_positions = s.query_positions;
    at.key_positions = s.key_positions;
    all.push_back(at);
    at.query_tile += tiles_of(at.queries);
    at.key_tile += tiles_of(at.keys);
  }
  // Which sequence's blocks are taken when.
  std::vector<int> order(all.size());
  std::iota(order.begin(), order.end(), 0);
  if (all.size() <= most_ordered)
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return all[static_cast<std::size_t>(a)].keys > all[static_cast<std::size_t>(b)].keys; });
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].taken = order[i];
    all[i].block = at.block;
    at.block += (all[static_cast<std::size_t>(order[i])].queries + form.block_queries - 1) / form.block_queries;
  }
  if (p.lengths_on_device()) {  // the host knows no more than how many there can be
    const std::int64_t sequences = narrow(static_cast<std::int64_t>(p.sequences.size()));
    const auto most = [&](std::int64_t tokens, std::int64_t longest, std::int64_t unit) {
      return narrow(std::min(tokens / unit + sequences, sequences * ((longest + unit - 1) / unit)));
    };
    const std::int64_t queries = p.query.tensor().shape[2], keys = p.key.tensor().shape[2];
    if (p.packed()) at.query_tile = most(queries, at.queries, tile_tokens), at.block = most(queries, at.queries, form.block_queries);
    at.key_tile = p.packed() ? most(keys, at.keys, tile_tokens) : narrow(sequences * tiles_of(at.keys));
  }
  all.push_back(at);  // the end: its tile and block indices are the totals
  return all;
}

Split split_of(const Problem& p, const Form& form, const std::vector<SequenceLayout>& layouts, std::int64_t items) {
  const int processors = multiprocessors(p.query.tensor().device_id);
  if (!form.splittable || p.lengths_on_device() || never_split(p.alike(), items, processors)) return {narrow(items), 1};
  std::int64_t tiles = 0, looked_at = 0;
  int longest = 0;
  for (std::size_t i = 0; i + 1 < layouts.size() && (i == 0 || !p.alike()); ++i) {
    const int blocks = (layouts[i].queries + form.block_queries - 1) / form.block_queries, step = block_step(blocks);
    for (int block = blocks - 1; block >= 0; block -= step) {
      const int seen = tiles_of_block(p.options.window, layouts[i], block, form.block_queries);
      tiles += std::int64_t{seen} * step;
      looked_at += step;
      longest = std::max(longest, seen);
    }
  }
  return split_items(items, looked_at ? static_cast<double>(tiles) / static_cast<double>(looked_at) : 0, longest, processors);
}

int heads_at_once(int kv_heads, int group, std::int64_t bytes_of_kv_head, int device) {
  const std::int64_t parts = std::clamp<std::int64_t>(kv_heads * bytes_of_kv_head / (cache_bytes(device) / 2), 1, kv_heads);
  return narrow((kv_heads + parts - 1) / parts) * group;
}

}  // namespace chitu::cuda
