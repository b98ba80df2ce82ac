// SPDX-License-Identifier: Apache-2.0
// The CPU's attention, once for all instruction sets: blocked like a GPU's, never more than a few rows of scores in memory.
// docs/architecture.md, "The CPU backend", tells the loop order and why.
//
//   for each wave of heads:                     pack INT8 keys and values into panels (once a head)
//     for each block of query rows, in parallel: block-inl.h
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "common/numbers.h"
#include "common/parallel.h"
#include "cpu/finish-inl.h"

namespace chitu::cpu {

// Attention with scores in Score and weights . values in Weight: F32, Bf16 or Int8.
template <class S, class Score, class Weight>
class Attention {
 public:
  static void run(const Problem& p) { Attention(p).run_all(); }

 private:
  using Common = Shared<S, Score, Weight>;
  using Unit = typename Common::Unit;
  using L = Layout<S>;
  static constexpr bool int8_scores = Common::int8_scores, int8_weights = Common::int8_weights;

  explicit Attention(const Problem& p) : shared_(p) {
    for (std::int64_t s = 0; s < static_cast<std::int64_t>(p.sequences.size()); ++s)
      for (std::int64_t h = 0; h < p.kv_heads(); ++h) units_.push_back({s, h, nonfinite_tokens(shared_.operands.key, s, h)});
    std::int64_t tasks = 0;
    for (const Unit& u : units_) tasks += tasks_of(u);
    threads_ = static_cast<int>(std::clamp<std::int64_t>(tasks, 1, p.options.threads));
    scratch_.resize(static_cast<std::size_t>(threads_));
    for (auto& s : scratch_) {
      s.query.resize(std::int64_t{L::block} * shared_.layout.template lanes<Score>() * 4);
      s.out.resize(std::int64_t{L::block} * shared_.layout.width);
      if (!int8_scores) s.keys.resize(shared_.layout.template tile_key_bytes<Score>());
      if (!int8_weights) s.values.resize(shared_.layout.template tile_value_bytes<Weight>());
    }
  }

  static std::vector<std::int64_t> nonfinite_tokens(const Quantized& x, std::int64_t sequence, std::int64_t head) {
    std::vector<std::int64_t> tokens;
    for (const NonFinite& n : nonfinite_of(x, sequence, head)) tokens.push_back(n.token);
    return tokens;
  }

  std::int64_t tasks_of(const Unit& u) const { return (shared_.rows_of(u) + L::block - 1) / L::block; }

  // Heads are packed a wave at a time: enough of them to keep all threads busy, no more, for their panels take memory.
  void run_all() {
    std::size_t first = 0;
    while (first < units_.size()) {
      std::size_t last = first;
      std::int64_t tasks = 0, bytes = 0;
      while (last < units_.size() && (last == first || tasks < 8 * threads_ || bytes < (std::int64_t{8} << 20))) {
        tasks += tasks_of(units_[last]);
        bytes += tiles_of(shared_.sequence_of(units_[last]).keys) * tile_tokens * 2 * shared_.layout.width;
        ++last;
      }
      run_wave(first, last);
      first = last;
    }
    propagate_nonfinite(shared_.problem, shared_.operands);
  }

  void run_wave(std::size_t first, std::size_t last) {
    if (panels_.size() < last - first) panels_.resize(last - first);
    std::vector<std::pair<std::size_t, std::int64_t>> tiles, tasks;  // (unit, tile), (unit, first row)
    std::int64_t longest = 0, bytes = 0;
    for (std::size_t u = first; u < last; ++u)
      bytes += tiles_of(shared_.sequence_of(units_[u]).keys) * (shared_.tile_key_bytes + shared_.tile_value_bytes);
    memory_.resize(bytes);
    std::byte* memory = memory_.data();
    for (std::size_t u = first; u < last; ++u) {
      const std::int64_t count = tiles_of(shared_.sequence_of(units_[u]).keys), rows = shared_.rows_of(units_[u]);
      reserve(units_[u], panels_[u - first], count, memory);
      if (int8_scores || int8_weights)
        for (std::int64_t t = 0; t < count; ++t) tiles.emplace_back(u, t);
      longest = std::max(longest, rows);
    }
    // Last rows first: with a causal mask they see most keys, so the short tasks fill the end.
    for (std::int64_t r = (longest - 1) / L::block * L::block; r >= 0; r -= L::block)
      for (std::size_t u = first; u < last; ++u)
        if (r < shared_.rows_of(units_[u])) tasks.emplace_back(u, r);

    parallel_for(static_cast<std::int64_t>(tiles.size()), shared_.problem.options.threads, [&](std::int64_t i, int) {
      const auto [u, tile] = tiles[static_cast<std::size_t>(i)];
      pack(units_[u], tile, panels_[u - first]);
    });
    parallel_for(static_cast<std::int64_t>(tasks.size()), threads_, [&](std::int64_t i, int thread) {
      const auto [u, r] = tasks[static_cast<std::size_t>(i)];
      Block<S, Score, Weight>(shared_, units_[u], panels_[u - first], r, scratch_[static_cast<std::size_t>(thread)]).run();
    });
  }

  void reserve(const Unit& u, Panels<S>& panels, std::int64_t tiles, std::byte*& memory) {
    if constexpr (int8_scores) {
      panels.keys = std::exchange(memory, memory + tiles * shared_.tile_key_bytes);
      if (!L::template on_tiles<Score>) panels.key_start.resize(tiles * tile_tokens);
      panels.key_scale.resize(tiles * tile_tokens);
      // A product is multiplied by its key's scale first. Where that could overflow, a power of two of the scales is left to the queries.
      const Indexed& k = shared_.operands.key;
      const float* scales = Locator(k, u.sequence, u.head).scales;
      const std::int64_t count = k.quant.scaling == Scaling::tokens ? k.quant.groups.count(shared_.sequence_of(u).keys) : 0;
      panels.key_unit = count && *std::max_element(scales, scales + count) > 0x1p100f ? 0x1p-30f : 1;
    }
    if constexpr (int8_weights) {
      panels.values = std::exchange(memory, memory + tiles * shared_.tile_value_bytes);
      panels.residual_of.clear();
      const Locator where(shared_.operands.value, u.sequence, u.head);
      if (!where.residual_of) return;
      std::int32_t flagged = 0;
      for (std::int64_t t = 0; t < tiles; ++t) panels.residual_of.push_back(where.residual_of[t] >= 0 ? flagged++ : -1);
      panels.residuals.resize(std::int64_t{flagged} * shared_.layout.template tile_value_bytes<Int8>());
    }
  }

  // An INT8 operand's tile into the panels of its head.
  void pack(const Unit& u, std::int64_t tile, Panels<S>& to) const {
    const Sequence& s = shared_.sequence_of(u);
    const int count = static_cast<int>(std::min<std::int64_t>(tile_tokens, s.keys - tile * tile_tokens));
    const auto copy = [&](const Quantized& x, int j, std::int8_t* numbers) {
      const std::int64_t token = tile * tile_tokens + j;
      if (token < s.keys)
        std::memcpy(numbers, row(x.values, s.batch, u.head, s.key_begin + token), static_cast<std::size_t>(shared_.layout.dim));
      else
        std::memset(numbers, 0, static_cast<std::size_t>(shared_.layout.dim));
    };
    if constexpr (int8_scores) {
      const Indexed& k = shared_.operands.key;
      const Locator where(k, u.sequence, u.head);
      Packer<S, Int8>::keys(shared_.layout, count, to.keys + tile * shared_.tile_key_bytes, [&](int j, std::int8_t* numbers) {
        copy(k, j, numbers);
        const std::int64_t token = tile * tile_tokens + j;
        if constexpr (!L::template on_tiles<Score>) {
          std::int32_t sum = 0;
          for (int c = 0; c < shared_.layout.dim; ++c) sum += numbers[c];
          to.key_start[token] = -128 * sum;
        }
        // Behind the last key there may be no scale. If there is one, one vector of scales may serve all keys of the tile.
        const bool scaled = k.quant.sorted ? token < s.keys : k.quant.groups.of(token) < k.quant.groups.count(s.keys);
        to.key_scale[token] = scaled ? where.scales[where.group(token)] * to.key_unit : 0;
      });
    }
    if constexpr (int8_weights) {
      const Indexed& v = shared_.operands.value;
      Packer<S, Int8>::values(shared_.layout, count, to.values + tile * shared_.tile_value_bytes,
                              [&](int j, std::int8_t* numbers) { copy(v, j, numbers); });
      const std::int32_t flagged = to.residual_of.empty() ? -1 : to.residual_of[static_cast<std::size_t>(tile)];
      if (flagged < 0) return;
      const std::int8_t* residual = Locator(v, u.sequence, u.head).residual(tile);
      Packer<S, Int8>::values(shared_.layout, count, to.residuals.data() + flagged * shared_.tile_value_bytes,
                              [&](int j, std::int8_t* numbers) {
                                std::memcpy(numbers, residual + j * shared_.layout.dim, static_cast<std::size_t>(shared_.layout.dim));
                              });
    }
  }

  const Common shared_;
  std::vector<Unit> units_;
  std::vector<Panels<S>> panels_;
  Buffer<std::byte> memory_;  // of the panels of a wave
  int threads_ = 1;           // no more than there are tasks
  std::vector<Scratch<S, Weight>> scratch_;
};

template <class S>
constexpr AttentionRuns attention_runs() {
  AttentionRuns runs{
      .f32_f32 = nullptr, .int8_f32 = Attention<S, Int8, F32>::run, .int8_int8 = Attention<S, Int8, Int8>::run, .bf16_bf16 = nullptr};
  if constexpr (!S::has_tiles) runs.f32_f32 = Attention<S, F32, F32>::run;
  if constexpr (S::has_bf16) runs.bf16_bf16 = Attention<S, Bf16, Bf16>::run;
  return runs;
}

}  // namespace chitu::cpu
