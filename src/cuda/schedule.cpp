// SPDX-License-Identifier: Apache-2.0
// The host's half of schedule.h.
#include "cuda/schedule.h"

#include "cuda/device.h"
#include "dispatch.h"

namespace chitu::cuda {
namespace {

int narrow(std::int64_t x) { return static_cast<int>(x); }

// Tiles of keys that a block of queries sees, on average and at most. Only some blocks of each sequence are looked at.
struct Tiles {
  double average = 0, most = 0;
};
Tiles tiles_of_blocks(const Problem& p, const Form& form) {
  constexpr std::int64_t looked_at = 32;
  Tiles found;
  double weight = 0;
  for (const Sequence& s : p.sequences) {
    const std::int64_t blocks = (s.queries + form.block_queries - 1) / form.block_queries, step = (blocks + looked_at - 1) / looked_at;
    for (std::int64_t block = blocks - 1; block >= 0; block -= step) {
      const std::int64_t first = block * form.block_queries, last = std::min(first + form.block_queries, s.queries) - 1;
      const Range top = s.visible(p.options.window, first), bottom = s.visible(p.options.window, last);
      const auto tiles = static_cast<double>(std::max<std::int64_t>(tiles_of(narrow(bottom.end)) - top.begin / tile_tokens, 0));
      found.average += tiles * static_cast<double>(step);
      weight += static_cast<double>(step);
      found.most = std::max(found.most, tiles);
    }
    if (p.alike()) break;
  }
  if (weight > 0) found.average /= weight;
  return found;
}

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
    at.block += (at.queries + form.block_queries - 1) / form.block_queries;
  }
  if (p.lengths_on_device()) {  // the host knows no more than how many there can be
    const std::int64_t sequences = narrow(static_cast<std::int64_t>(p.sequences.size()));
    const auto most = [&](std::int64_t tokens, std::int64_t longest, std::int64_t unit) {
      return narrow(std::min(tokens / unit + sequences, sequences * ((longest + unit - 1) / unit)));
    };
    const std::int64_t queries = p.query.tensor().shape[2], keys = p.key.tensor().shape[2];
    at.query_tile = most(queries, at.queries, tile_tokens);
    at.key_tile = most(keys, at.keys, tile_tokens);
    at.block = most(queries, at.queries, form.block_queries);
  }
  all.push_back(at);  // the end: its tile and block indices are the totals
  return all;
}

Split split_of(const Problem& p, const Form& form, std::int64_t items) {
  const int processors = multiprocessors(p.query.tensor().device_id);
  // Many sequences that differ need no splitting: they give many items, and items of different lengths even out.
  // Those whose lengths are on the GPU are not split: the host does not know what they would take.
  if (!form.splittable || p.lengths_on_device() || (!p.alike() && items >= 2 * processors)) return {narrow(items), 1};
  const Tiles tiles = tiles_of_blocks(p, form);
  return split_items(items, tiles.average, tiles.most, processors);
}

int heads_at_once(int kv_heads, int group, std::int64_t bytes_of_kv_head, int device) {
  const std::int64_t parts = std::clamp<std::int64_t>(kv_heads * bytes_of_kv_head / (cache_bytes(device) / 2), 1, kv_heads);
  return narrow((kv_heads + parts - 1) / parts) * group;
}

}  // namespace chitu::cuda
