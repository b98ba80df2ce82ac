// SPDX-License-Identifier: Apache-2.0
// The CPU's attention, once for all instruction sets: blocked like a GPU's, never more than a few rows of scores in memory.
// docs/architecture.md, "The CPU backend", tells the loop order and why.
//
//   for each wave of heads:                     pack INT8 keys and values into panels (once a head)
//     for each block of query rows, in parallel:
//       for each tile of 128 keys:              (floating operands are unpacked to panels here, once a block and tile)
//         for each step of rows:                scores -> softmax -> weights . values, all in L1
//
// A row is a query of one of the heads that share a kv head, so that grouped heads share panels too.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <utility>

#include "common/limits.h"
#include "common/numbers.h"
#include "common/parallel.h"
#include "cpu/buffer.h"
#include "cpu/exp2-inl.h"
#include "cpu/quantize-inl.h"
#include "cpu/rows.h"

namespace chitu::cpu {

// Shapes of the panels that the products read.
template <class S>
struct Layout {
  static constexpr int W = S::width;
  static constexpr int R = S::block_rows;       // rows of a product's register block
  static constexpr int V = S::block_vectors;    // vectors of it
  static constexpr int panel = W * V;           // keys of a panel of keys, channels of a panel of values
  static constexpr int step = round_up(24, R);  // rows between scores and values: scores and weights stay in L1
  static constexpr int padded_step = round_up(step, W);
  static constexpr int block = 8 * step;  // rows of a task: what an unpacked tile serves
  static_assert(tile_tokens % panel == 0);

  // A quad of keys, whose weights share a 32-bit lane, is keys i, i + W, i + 2 W, i + 3 W of 4 W: so weights of four vectors pack by
  // shifts, without a shuffle.
  static constexpr int quad_span = 4 * W;

  int dim, quads, width;  // channels; groups of four of them; channels up to whole vectors
  explicit Layout(int dim) : dim(dim), quads((dim + 3) / 4), width(round_up(dim, W)) {}

  int tile_key_bytes() const { return tile_tokens * quads * 4; }
  int tile_value_bytes() const { return tile_tokens * width; }
  int panel_width(int first_channel) const { return std::min(panel, width - first_channel); }
};

// The panels of one kv head of one sequence.
template <class S>
struct Panels {
  Buffer<std::int8_t> keys;               // [tile][panel of keys][quad of channels][key][4]
  Buffer<std::int32_t> key_start;         // [key]: -128 times its sum, for queries are stored + 128
  Buffer<float> key_scale;                // [key]
  Buffer<std::int8_t> values;             // [tile][panel of channels][quad of keys][channel][4]
  Buffer<std::int8_t> residuals;          // [flagged tile] likewise
  std::vector<std::int32_t> residual_of;  // [tile]; -1, or index of a flagged tile
};

template <class S>
class Packer {
 public:
  using L = Layout<S>;

  static void keys(const L& l, const Quantized& k, const Sequence& s, std::int64_t sequence, std::int64_t head, std::int64_t tile,
                   Panels<S>& to) {
    const Locator where(k, sequence, head);
    std::int8_t* panels = to.keys.data() + tile * l.tile_key_bytes();
    for (int j = 0; j < tile_tokens; ++j) {
      const std::int64_t token = tile * tile_tokens + j;
      std::int8_t numbers[max_dim] = {};
      std::int32_t sum = 0;
      if (token < s.keys) std::memcpy(numbers, row(k.values, s.batch, head, s.key_begin + token), static_cast<std::size_t>(l.dim));
      for (int c = 0; c < 4 * l.quads; ++c) sum += numbers[c];
      std::int8_t* column = panels + (j / L::panel * l.quads * L::panel + j % L::panel) * 4;
      for (int d = 0; d < l.quads; ++d) std::memcpy(column + d * L::panel * 4, numbers + d * 4, 4);
      to.key_start[token] = -128 * sum;
      to.key_scale[token] = token < s.keys ? where.scales[k.quant.groups.of(token)] : 0;
    }
  }

  // rows(j) is where key j of the tile has its bytes, or null.
  template <class Rows>
  static void values(const L& l, std::int8_t* to, const Rows& rows) {
    static constexpr std::int8_t zeros[max_dim] = {};
    for (int quad = 0; quad < tile_tokens / 4; ++quad) {
      const std::int8_t* from[4];
      for (int i = 0; i < 4; ++i) {
        const std::int8_t* p = rows(quad / L::W * 4 * L::W + i * L::W + quad % L::W);
        from[i] = p ? p : zeros;
      }
      for (int first = 0; first < l.width; first += L::panel) {
        const int width = l.panel_width(first), filled = std::min(width, l.dim - first);
        std::int8_t* out = to + first * tile_tokens + quad * width * 4;
        for (int c = 0; c < filled; ++c)
          for (int i = 0; i < 4; ++i) out[c * 4 + i] = from[i][first + c];
        std::memset(out + filled * 4, 0, static_cast<std::size_t>(width - filled) * 4);
      }
    }
  }

  static void values(const L& l, const Quantized& v, const Sequence& s, std::int64_t sequence, std::int64_t head, std::int64_t tile,
                     Panels<S>& to) {
    values(l, to.values.data() + tile * l.tile_value_bytes(), [&](int j) {
      const std::int64_t token = tile * tile_tokens + j;
      return token < s.keys ? reinterpret_cast<const std::int8_t*>(row(v.values, s.batch, head, s.key_begin + token)) : nullptr;
    });
    if (to.residual_of.empty() || to.residual_of[static_cast<std::size_t>(tile)] < 0) return;
    const std::int8_t* residual = Locator(v, sequence, head).residual(tile);
    values(l, to.residuals.data() + to.residual_of[static_cast<std::size_t>(tile)] * l.tile_value_bytes(),
           [&](int j) { return residual + j * l.dim; });
  }
};

// body(0), ..., body(n - 1) with constants, so that arrays indexed by them live in registers: g++ 12 unrolls plain loops too late for
// that and writes every accumulator to memory in each step, at half the speed.
template <int n, class Body>
[[gnu::always_inline]] inline void unroll(const Body& body) {
  const auto all = [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, i>{}), ...);
  };
  all(std::make_integer_sequence<int, n>{});
}

// Products of a register block of NR rows with a panel.
template <class S>
struct Products {
  using F = typename S::F;
  using I = typename S::I;
  using L = Layout<S>;
  static constexpr int W = S::width, R = L::R, V = L::V;

  // scores[r][j] = query r . key j, top[r] = lane by lane the larger of top[r] and they. query: [channel][R], keys: [channel][panel].
  template <int NR>
  static void scores(const float* query, const float* keys, int dim, float* scores, float (*top)[W]) {
    F sum[NR * V], k[V];
    unroll<NR * V>([&](auto i) { sum[i] = S::zero(); });
    for (int c = 0; c < dim; ++c, query += R, keys += L::panel) {
      unroll<V>([&](auto v) { k[v] = S::load(keys + v * W); });
      unroll<NR>([&](auto r) {
        const F q = S::set(query[r]);
        unroll<V>([&](auto v) { sum[r * V + v] = S::fma(q, k[v], sum[r * V + v]); });
      });
    }
    unroll<NR>([&](auto r) { put(sum + r * V, scores + r * tile_tokens, top[r]); });
  }

  static void put(const F* sum, float* scores, float* top) {
    F t = S::load(top);
    unroll<V>([&](auto v) {
      S::store(scores + v * W, sum[v]);
      t = S::max(sum[v], t);
    });
    S::store(top, t);
  }

  // The same in integers, times the keys' scales. query: [quad][R][4] of numbers + 128, keys: [quad][panel][4].
  template <int NR>
  static void scores(const std::uint8_t* query, const std::int8_t* keys, const std::int32_t* start, const float* key_scale, int quads,
                     float* scores, float (*top)[W]) {
    I sum[NR * V], k[V];
    unroll<NR * V>([&](auto i) { sum[i] = S::load_i(start + i % V * W); });
    for (int d = 0; d < quads; ++d, query += R * 4, keys += L::panel * 4) {
      unroll<V>([&](auto v) { k[v] = S::load_i(keys + v * W * 4); });
      unroll<NR>([&](auto r) {
        const I q = S::set_4(query + r * 4);
        unroll<V>([&](auto v) { sum[r * V + v] = S::dot4(sum[r * V + v], q, k[v]); });
      });
    }
    unroll<NR>([&](auto r) {
      F scaled[V];
      unroll<V>([&](auto v) { scaled[v] = S::mul(S::to_float(S::settle(sum[r * V + v])), S::load(key_scale + v * W)); });
      put(scaled, scores + r * tile_tokens, top[r]);
    });
  }

  // out[r] = out[r] * keep[r] + weight[r] * sum over keys [begin, end) of weights[r][j] * values[j]. values: [key][NV * W].
  template <int NR, int NV>
  static void values(const float* weights, const float* values, int begin, int end, const float* keep, const float* weight, float* out,
                     int width) {
    F sum[NR * NV], x[NV];
    unroll<NR * NV>([&](auto i) { sum[i] = S::zero(); });
    for (int j = begin; j < end; ++j) {
      unroll<NV>([&](auto v) { x[v] = S::load(values + (j * NV + v) * W); });
      unroll<NR>([&](auto r) {
        const F p = S::set(weights[r * tile_tokens + j]);
        unroll<NV>([&](auto v) { sum[r * NV + v] = S::fma(p, x[v], sum[r * NV + v]); });
      });
    }
    unroll<NR * NV>([&](auto i) { add(sum[i], keep[i / NV], weight[i / NV], out + i / NV * width + i % NV * W); });
  }

  // The same in integers. weights: [R][quad of keys][4], values: [quad of keys][NV * W][4].
  template <int NR, int NV>
  static void values(const std::uint8_t* weights, const std::int8_t* values, int begin, int end, const float* keep, const float* weight,
                     float* out, int width) {
    I sum[NR * NV], x[NV];
    unroll<NR * NV>([&](auto i) { sum[i] = S::set_i(0); });
    for (int j = begin / L::quad_span * W; j < (end + L::quad_span - 1) / L::quad_span * W; ++j) {
      unroll<NV>([&](auto v) { x[v] = S::load_i(values + (j * NV + v) * W * 4); });
      unroll<NR>([&](auto r) {
        const I p = S::set_4(weights + r * tile_tokens + j * 4);
        unroll<NV>([&](auto v) { sum[r * NV + v] = S::dot4(sum[r * NV + v], p, x[v]); });
      });
    }
    unroll<NR * NV>([&](auto i) { add(S::to_float(S::settle(sum[i])), keep[i / NV], weight[i / NV], out + i / NV * width + i % NV * W); });
  }

  static void add(F sum, float keep, float weight, float* out) {
    S::store(out, S::fma(S::load(out), S::set(keep), S::mul(sum, S::set(weight))));
  }
};

// Attention with scores in Score (float, or int8: std::int8_t) and weights . values in Weight likewise.
template <class S, class Score, class Weight>
class Attention {
 public:
  static void run(const Problem& p) { Attention(p).run_all(); }

 private:
  using F = typename S::F;
  using I = typename S::I;
  using L = Layout<S>;
  using P = Products<S>;
  static constexpr int W = S::width, R = L::R, vectors = tile_tokens / W;
  static constexpr bool int8_scores = std::is_same_v<Score, std::int8_t>, int8_weights = std::is_same_v<Weight, std::int8_t>;
  static constexpr float infinity = std::numeric_limits<float>::infinity();
  using StoredQuery = std::conditional_t<int8_scores, std::uint8_t, float>;
  using StoredWeight = std::conditional_t<int8_weights, std::uint8_t, float>;

  // What a thread works in; sizes in rows are of a block, or of a step.
  struct Scratch {
    Buffer<StoredQuery> query;  // [block of R rows][channel or quad][R]
    Buffer<float> out;          // [row][width]
    std::array<float, L::block> row_scale, maximum;
    std::array<Range, L::block> seen;
    alignas(64) float output_sum[L::block][W], lse_sum[L::block][W];
    alignas(64) float scores[L::step * tile_tokens], top[L::step][W];
    alignas(64) StoredWeight weights[L::step * tile_tokens];
    // Of a step: a row's largest score in the tile; what its output so far, this tile's product, its residual's and its sum of weights
    // are multiplied by; what is added to its scores.
    alignas(64) float tile_maximum[L::padded_step], keep[L::padded_step], weight[L::padded_step], residual_weight[L::padded_step];
    alignas(64) float sum_weight[L::padded_step], offset[L::padded_step];
    Buffer<float> keys, values;           // an unpacked tile
    alignas(64) float bias[tile_tokens];  // 0, or -inf for a key that must weigh nothing
  };

  struct Unit {  // a kv head of a sequence
    std::int64_t sequence, head;
    std::vector<std::int64_t> bad_keys, bad_values;  // tokens with a NaN or an infinity
  };

  explicit Attention(const Problem& p)
      : p_(p), operands_(p), layout_(p.dim()), sign_(p.scale < 0 ? -1.f : 1.f), scratch_(static_cast<std::size_t>(p.threads)) {
    for (std::int64_t s = 0; s < static_cast<std::int64_t>(p.sequences.size()); ++s)
      for (std::int64_t h = 0; h < p.kv_heads(); ++h) units_.push_back({s, h, bad(operands_.key, s, h), bad(operands_.value, s, h)});
    for (Scratch& s : scratch_) {
      s.query.resize(std::int64_t{L::block} * (int8_scores ? layout_.quads * 4 : layout_.dim));
      s.out.resize(std::int64_t{L::block} * layout_.width);
      if (!int8_scores) s.keys.resize(std::int64_t{tile_tokens} * layout_.dim);
      if (!int8_weights) s.values.resize(std::int64_t{tile_tokens} * layout_.width);
    }
  }

  static std::vector<std::int64_t> bad(const Quantized& x, std::int64_t sequence, std::int64_t head) {
    std::vector<std::int64_t> tokens;
    for (const NonFinite& n : x.nonfinite)
      if (n.sequence == sequence && n.head == head) tokens.push_back(n.token);
    return tokens;
  }

  const Sequence& sequence_of(const Unit& u) const { return p_.sequences[static_cast<std::size_t>(u.sequence)]; }
  std::int64_t rows_of(const Unit& u) const { return sequence_of(u).queries * p_.group(); }

  // Heads are packed a wave at a time: enough of them to keep all threads busy, no more, for their panels take memory.
  void run_all() {
    std::size_t first = 0;
    while (first < units_.size()) {
      std::size_t last = first;
      std::int64_t tasks = 0, bytes = 0;
      while (last < units_.size() && (last == first || tasks < 8 * p_.threads || bytes < (std::int64_t{8} << 20))) {
        tasks += (rows_of(units_[last]) + L::block - 1) / L::block;
        bytes += sequence_of(units_[last]).keys * 2 * layout_.width;
        ++last;
      }
      run_wave(first, last);
      first = last;
    }
    spoil_nonfinite(p_, operands_);
  }

  void run_wave(std::size_t first, std::size_t last) {
    if (panels_.size() < last - first) panels_.resize(last - first);
    std::vector<std::pair<std::size_t, std::int64_t>> tiles, tasks;  // (unit, tile), (unit, first row)
    std::int64_t longest = 0;
    for (std::size_t u = first; u < last; ++u) {
      const std::int64_t count = tiles_of(sequence_of(units_[u]).keys), rows = rows_of(units_[u]);
      reserve(units_[u], panels_[u - first], count);
      if (int8_scores || int8_weights)
        for (std::int64_t t = 0; t < count; ++t) tiles.emplace_back(u, t);
      longest = std::max(longest, rows);
    }
    // Last rows first: with a causal mask they see most keys, so the short tasks fill the end.
    for (std::int64_t r = (longest - 1) / L::block * L::block; r >= 0; r -= L::block)
      for (std::size_t u = first; u < last; ++u)
        if (r < rows_of(units_[u])) tasks.emplace_back(u, r);

    parallel_for(static_cast<std::int64_t>(tiles.size()), p_.threads, [&](std::int64_t i) {
      const auto [u, tile] = tiles[static_cast<std::size_t>(i)];
      const Unit& unit = units_[u];
      if constexpr (int8_scores)
        Packer<S>::keys(layout_, operands_.key, sequence_of(unit), unit.sequence, unit.head, tile, panels_[u - first]);
      if constexpr (int8_weights)
        Packer<S>::values(layout_, operands_.value, sequence_of(unit), unit.sequence, unit.head, tile, panels_[u - first]);
    });
    parallel_for(static_cast<std::int64_t>(tasks.size()), p_.threads, [&](std::int64_t i) {
      const auto [u, r] = tasks[static_cast<std::size_t>(i)];
      Block(*this, units_[u], panels_[u - first], r, scratch_[static_cast<std::size_t>(omp_get_thread_num())]).run();
    });
  }

  void reserve(const Unit& u, Panels<S>& panels, std::int64_t tiles) {
    if constexpr (int8_scores) {
      panels.keys.resize(tiles * layout_.tile_key_bytes());
      panels.key_start.resize(tiles * tile_tokens);
      panels.key_scale.resize(tiles * tile_tokens);
    }
    if constexpr (int8_weights) {
      panels.values.resize(tiles * layout_.tile_value_bytes());
      panels.residual_of.clear();
      const Locator where(operands_.value, u.sequence, u.head);
      if (!where.residual_of) return;
      std::int32_t flagged = 0;
      for (std::int64_t t = 0; t < tiles; ++t) panels.residual_of.push_back(where.residual_of[t] >= 0 ? flagged++ : -1);
      panels.residuals.resize(std::int64_t{flagged} * layout_.tile_value_bytes());
    }
  }

  // A block of rows: a task.
  class Block {
   public:
    Block(const Attention& a, const Unit& unit, const Panels<S>& panels, std::int64_t first_row, Scratch& scratch)
        : a_(a),
          p_(a.p_),
          l_(a.layout_),
          unit_(unit),
          sequence_(a.sequence_of(unit)),
          panels_(panels),
          x_(scratch),
          first_row_(first_row),
          rows_(static_cast<int>(std::min<std::int64_t>(L::block, a.rows_of(unit) - first_row))),
          value_(a.operands_.value, unit.sequence, unit.head) {
      const Scaling scaling = a.operands_.value.quant.scaling;
      for (int c = 0; c < l_.dim; ++c)
        channel_scale_[c] = scaling == Scaling::head      ? value_.scales[0]
                            : scaling == Scaling::channel ? value_.scales[c]
                            : scaling == Scaling::tile    ? value_.channels[c]
                                                          : 1;
    }

    void run() {
      Range all{std::numeric_limits<std::int64_t>::max(), 0};
      for (int r = 0; r < round_up(rows_, R); ++r) all = join(all, start_row(r));
      std::fill_n(x_.out.data(), std::int64_t{round_up(rows_, R)} * l_.width, 0.f);
      for (std::int64_t tile = all.empty() ? 0 : all.begin / tile_tokens; tile * tile_tokens < all.end; ++tile) {
        bool unpacked = false;
        for (int r = 0; r < rows_; r += L::step) {
          const int rows = std::min(L::step, rows_ - r);
          Range seen{std::numeric_limits<std::int64_t>::max(), 0};
          for (int i = r; i < r + rows; ++i) seen = join(seen, x_.seen[static_cast<std::size_t>(i)]);
          const Range part{std::max<std::int64_t>(seen.begin - tile * tile_tokens, 0),
                           std::min<std::int64_t>(seen.end - tile * tile_tokens, tile_tokens)};
          if (part.empty()) continue;
          if (!unpacked) unpack(tile);
          unpacked = true;
          score(tile, r, rows, part);
          weigh(tile, r, rows);
          accumulate(tile, r, rows, part);
        }
      }
      for (int r = 0; r < rows_; ++r) finish_row(r);
    }

   private:
    static Range join(const Range& a, const Range& b) { return b.empty() ? a : Range{std::min(a.begin, b.begin), std::max(a.end, b.end)}; }
    std::int64_t head(int r) const { return unit_.head * p_.group() + (first_row_ + r) / sequence_.queries; }
    std::int64_t query(int r) const { return (first_row_ + r) % sequence_.queries; }

    // Puts a row's query into place; returns the keys that it sees. Rows past the last are zeros and see none.
    Range start_row(int r) {
      const auto i = static_cast<std::size_t>(r);
      const int size = int8_scores ? l_.quads * 4 : l_.dim;
      StoredQuery* to = x_.query.data() + r / R * R * size + r % R * (int8_scores ? 4 : 1);
      x_.seen[i] = {};
      x_.maximum[i] = -infinity;
      std::fill_n(x_.output_sum[r], W, 0.f);
      std::fill_n(x_.lse_sum[r], W, 0.f);
      if (r >= rows_) {
        for (int c = 0; c < size; c += int8_scores ? 4 : 1) std::memset(to + c * R, 0, int8_scores ? 4 : sizeof(float));
        return {};
      }
      const Quantized& q = a_.operands_.query;
      const std::byte* from = row(q.values, sequence_.batch, head(r), sequence_.query_begin + query(r));
      const Locator where(q, unit_.sequence, head(r));
      if constexpr (int8_scores) {
        alignas(4) std::int8_t numbers[max_dim + 4] = {};
        for (int c = 0; c < l_.dim; ++c)
          numbers[c] = static_cast<std::int8_t>(static_cast<float>(reinterpret_cast<const std::int8_t*>(from)[c]) * a_.sign_);
        for (int d = 0; d < l_.quads; ++d) {
          std::uint32_t four;
          std::memcpy(&four, numbers + d * 4, 4);
          four ^= 0x80808080u;
          std::memcpy(to + d * R * 4, &four, 4);
        }
        x_.row_scale[i] = where.scales[q.quant.groups.of(query(r))];
      } else {
        float numbers[max_dim];
        if (is_float(q.values.type))
          Quantizer<S>::to_f32(from, q.values.type, numbers, l_.dim);
        else
          for (int c = 0; c < l_.dim; ++c) numbers[c] = load(from, q.values.type, c);
        for (int c = 0; c < l_.dim; ++c) to[c * R] = is_finite(numbers[c]) ? numbers[c] * a_.sign_ : 0;
        x_.row_scale[i] =
            q.quant.scaling == Scaling::head ? where.scales[0] * Locator(a_.operands_.key, unit_.sequence, unit_.head).scales[0] : 1;
      }
      x_.row_scale[i] *= std::fabs(p_.scale) * std::numbers::log2e_v<float>;
      return x_.seen[i] = sequence_.visible(p_.window, query(r));
    }

    // Floating operands of a tile as f32 panels, tokens past the last or with a NaN or an infinity as zeros.
    void unpack(std::int64_t tile) {
      const std::int64_t first = tile * tile_tokens, count = std::min<std::int64_t>(tile_tokens, sequence_.keys - first);
      const auto read = [&](const Quantized& x, const std::vector<std::int64_t>& bad, std::int64_t j, float* to) {
        const std::byte* from = row(x.values, sequence_.batch, unit_.head, sequence_.key_begin + first + j);
        if (j >= count || std::binary_search(bad.begin(), bad.end(), first + j))
          std::fill_n(to, l_.dim, 0.f);
        else if (is_float(x.values.type))
          Quantizer<S>::to_f32(from, x.values.type, to, l_.dim);
        else
          for (int c = 0; c < l_.dim; ++c) to[c] = load(from, x.values.type, c);
      };
      if constexpr (!int8_scores) {
        float rows[W][max_dim];
        for (int j = 0; j < tile_tokens; j += W) {
          for (int i = 0; i < W; ++i) read(a_.operands_.key, unit_.bad_keys, j + i, rows[i]);
          float* to = x_.keys.data() + j / L::panel * L::panel * l_.dim + j % L::panel;
          for (int c = 0; c < l_.dim; ++c)
            for (int i = 0; i < W; ++i) to[c * L::panel + i] = rows[i][c];
        }
      }
      if constexpr (!int8_weights) {
        for (int j = 0; j < tile_tokens; ++j) {
          float numbers[max_dim + W] = {};
          read(a_.operands_.value, unit_.bad_values, j, numbers);
          for (int c = 0; c < l_.width; c += L::panel)
            std::copy_n(numbers + c, l_.panel_width(c), x_.values.data() + c * tile_tokens + j * l_.panel_width(c));
        }
      }
    }

    void score(std::int64_t tile, int r0, int rows, const Range& part) {
      std::fill_n(x_.top[0], L::step * W, -infinity);
      for (int panel = static_cast<int>(part.begin) / L::panel; panel * L::panel < part.end; ++panel)
        for (int r = 0; r < rows; r += R) {
          const int first = r0 + r;
          float* to = x_.scores + r * tile_tokens + panel * L::panel;
          if constexpr (int8_scores) {
            const std::uint8_t* q = x_.query.data() + first * l_.quads * 4;
            const std::int8_t* k = panels_.keys.data() + tile * l_.tile_key_bytes() + panel * L::panel * l_.quads * 4;
            const std::int32_t* start = panels_.key_start.data() + tile * tile_tokens + panel * L::panel;
            const float* scale = panels_.key_scale.data() + tile * tile_tokens + panel * L::panel;
            rows - r == 1 ? P::template scores<1>(q, k, start, scale, l_.quads, to, x_.top + r)
                          : P::template scores<R>(q, k, start, scale, l_.quads, to, x_.top + r);
          } else {
            const float* q = x_.query.data() + first * l_.dim;
            const float* k = x_.keys.data() + panel * L::panel * l_.dim;
            rows - r == 1 ? P::template scores<1>(q, k, l_.dim, to, x_.top + r) : P::template scores<R>(q, k, l_.dim, to, x_.top + r);
          }
        }
    }

    // Softmax of a step: scores -> weights, and what each row's output so far and this tile's product are multiplied by. Three passes,
    // for within one pass rows are independent: in one, each row would wait for its own maximum.
    void weigh(std::int64_t tile, int r0, int rows) {
      const bool biased = set_bias(tile);
      for (int r = 0; r < round_up(rows, R); ++r) {
        const Range& seen = x_.seen[static_cast<std::size_t>(r0 + r)];
        const int begin = static_cast<int>(std::max<std::int64_t>(seen.begin - tile * tile_tokens, 0));
        const int end = static_cast<int>(std::min<std::int64_t>(seen.end - tile * tile_tokens, tile_tokens));
        const bool whole = begin == 0 && end == tile_tokens && !biased;
        x_.tile_maximum[r] = begin >= end ? -infinity : S::reduce_max(whole ? S::load(x_.top[r]) : mask_row(r, begin, end, biased));
      }
      update_maxima(tile, r0, rows);
      for (int r = 0; r < round_up(rows, R); ++r)
        if (x_.tile_maximum[r] == -infinity)
          std::fill_n(x_.weights + r * tile_tokens, tile_tokens, StoredWeight{});
        else
          weigh_row(r0, r);
    }

    // Is there a key in the tile that must weigh nothing? Then the bias is set.
    bool set_bias(std::int64_t tile) {
      const std::int64_t first = tile * tile_tokens;
      auto bad = std::lower_bound(unit_.bad_keys.begin(), unit_.bad_keys.end(), first);
      if (bad == unit_.bad_keys.end() || *bad >= first + tile_tokens) return false;
      std::fill_n(x_.bias, tile_tokens, 0.f);
      for (; bad != unit_.bad_keys.end() && *bad < first + tile_tokens; ++bad) x_.bias[*bad - first] = -infinity;
      return true;
    }

    // Makes the scores of keys that are not seen -inf; returns the others' maximum, lane by lane.
    F mask_row(int r, int begin, int end, bool biased) {
      float* scores = x_.scores + r * tile_tokens;
      F top = S::set(-infinity);
      for (int v = 0; v < vectors; ++v) {
        F score = S::load(scores + v * W);
        if (biased) score = S::add(score, S::load(x_.bias + v * W));
        score = S::keep(score, v * W, begin, end, S::set(-infinity));
        S::store(scores + v * W, score);
        top = S::max(score, top);
      }
      return top;
    }

    void update_maxima(std::int64_t tile, int r0, int rows) {
      const bool by_tile = p_.recipe.weights.by_tile;
      const float unit = value_.scales && a_.operands_.value.quant.scaling == Scaling::tile ? value_.scales[tile] : 1;
      const int padded = round_up(round_up(rows, R), W);
      float old[L::padded_step], maximum[L::padded_step], scale[L::padded_step];
      for (int r = 0; r < padded; ++r) {
        const bool inside = r < rows;
        if (!inside) x_.tile_maximum[r] = -infinity;
        old[r] = inside ? x_.maximum[static_cast<std::size_t>(r0 + r)] : -infinity;
        scale[r] = inside ? x_.row_scale[static_cast<std::size_t>(r0 + r)] : 0;
      }
      for (int r = 0; r < padded; r += W) {
        // max() gives its second operand where the first is NaN: -inf times a scale of 0, or -inf - -inf below.
        const F top = S::mul(S::load(x_.tile_maximum + r), S::load(scale + r)), before = S::load(old + r), now = S::max(top, before);
        const F relative_to = by_tile ? top : now;
        const F weight = exp2<S, 5>(S::sub(relative_to, now));
        S::store(maximum + r, now);
        S::store(x_.keep + r, exp2<S, 5>(S::sub(before, now)));
        S::store(x_.sum_weight + r, weight);
        S::store(x_.weight + r, S::mul(weight, S::set(unit)));
        S::store(x_.residual_weight + r, S::mul(weight, S::set(unit / residual_parts)));
        S::store(x_.offset + r, S::sub(S::set(a_.log2_top_), relative_to));
      }
      for (int r = 0; r < padded; ++r) {
        if (x_.tile_maximum[r] == -infinity) {
          x_.keep[r] = 1;
          x_.weight[r] = x_.residual_weight[r] = 0;
        } else {
          x_.maximum[static_cast<std::size_t>(r0 + r)] = maximum[r];
        }
      }
    }

    void weigh_row(int r0, int r) {
      const Weights& w = p_.recipe.weights;
      if constexpr (int8_weights) {
        if (w.output == Sum_::rounded && w.lse == Sum_::rounded)
          weigh_row_int8<false>(r0, r);
        else
          weigh_row_int8<true>(r0, r);
      } else {
        if (w.type == DType::f16)
          weigh_row_f32<round_f16<S>>(r0, r);
        else if (w.type == DType::e4m3)
          weigh_row_f32<round_e4m3<S>>(r0, r);
        else
          weigh_row_f32<not_rounded<S>>(r0, r);
      }
    }

    template <bool both>
    void weigh_row_int8(int r0, int r) {
      const float* scores = x_.scores + r * tile_tokens;
      std::uint8_t* to = x_.weights + r * tile_tokens;
      const F factor = S::set(x_.row_scale[static_cast<std::size_t>(r0 + r)]), offset = S::set(x_.offset[r]);
      F unrounded = S::zero();
      I sum = S::set_i(0);
      unroll<vectors / 4>([&](auto quad) {
        I u[4];
        unroll<4>([&](auto i) {
          const F p = exp2<S, 3>(S::fma(S::load(scores + (quad * 4 + i) * W), factor, offset));
          u[i] = S::to_int(p);
          if constexpr (both) unrounded = S::add(unrounded, p);
        });
        const I packed = S::pack4(u[0], u[1], u[2], u[3]);
        S::store_i(to + quad * L::quad_span, packed);
        sum = S::dot4(sum, packed, S::set_i(0x01010101));
      });
      add_sums(r0, r, S::to_float(sum), unrounded);
    }

    template <F (*round)(F)>
    void weigh_row_f32(int r0, int r) {
      const float* scores = x_.scores + r * tile_tokens;
      float* to = x_.weights + r * tile_tokens;
      const F factor = S::set(x_.row_scale[static_cast<std::size_t>(r0 + r)]), offset = S::set(x_.offset[r]);
      F unrounded = S::zero(), rounded = S::zero();
      unroll<vectors>([&](auto v) {
        const F p = exp2<S, 5>(S::fma(S::load(scores + v * W), factor, offset)), u = round(p);
        S::store(to + v * W, u);
        unrounded = S::add(unrounded, p);
        rounded = S::add(rounded, u);
      });
      add_sums(r0, r, rounded, unrounded);
    }

    void add_sums(int r0, int r, F rounded, F unrounded) {
      const F keep = S::set(x_.keep[r]), weight = S::set(x_.sum_weight[r]);
      const auto add = [&](float* sum, Sum_ kind) {
        S::store(sum, S::fma(S::load(sum), keep, S::mul(weight, kind == Sum_::rounded ? rounded : unrounded)));
      };
      add(x_.output_sum[r0 + r], p_.recipe.weights.output);
      add(x_.lse_sum[r0 + r], p_.recipe.weights.lse);
    }

    void accumulate(std::int64_t tile, int r0, int rows, const Range& part) {
      if constexpr (int8_weights) {
        product(panels_.values.data() + tile * l_.tile_value_bytes(), r0, rows, part, x_.keep, x_.weight);
        if (panels_.residual_of.empty() || panels_.residual_of[static_cast<std::size_t>(tile)] < 0) return;
        float ones[L::step];
        std::fill_n(ones, L::step, 1.f);
        product(panels_.residuals.data() + panels_.residual_of[static_cast<std::size_t>(tile)] * l_.tile_value_bytes(), r0, rows, part,
                ones, x_.residual_weight);
      } else {
        product(x_.values.data(), r0, rows, part, x_.keep, x_.weight);
      }
    }

    template <class T>
    void product(const T* values, int r0, int rows, const Range& part, const float* keep, const float* weight) {
      for (int c = 0; c < l_.width; c += L::panel)
        for (int r = 0; r < rows; r += R) {
          const auto call = [&]<int NV>(std::integral_constant<int, NV>) {
            const auto* w = x_.weights + r * tile_tokens;
            const T* v = values + c * tile_tokens;
            float* out = x_.out.data() + std::int64_t{r0 + r} * l_.width + c;
            const int begin = static_cast<int>(part.begin), end = static_cast<int>(part.end);
            rows - r == 1 ? P::template values<1, NV>(w, v, begin, end, keep + r, weight + r, out, l_.width)
                          : P::template values<R, NV>(w, v, begin, end, keep + r, weight + r, out, l_.width);
          };
          with_vectors(l_.panel_width(c) / W, call);
        }
    }

    template <class Call, int NV = L::V>
    static void with_vectors(int count, const Call& call) {
      if constexpr (NV > 1) {
        if (count != NV) return with_vectors<Call, NV - 1>(count, call);
      }
      call(std::integral_constant<int, NV>{});
    }

    void finish_row(int r) {
      const auto i = static_cast<std::size_t>(r);
      const Output& output = p_.output;
      const std::int64_t token = sequence_.query_begin + query(r);
      const float sum = S::reduce_add(S::load(x_.output_sum[i]));
      // Scores that overflowed have no softmax; nothing seen is 0.
      const float factor = x_.maximum[i] == infinity ? std::numeric_limits<float>::quiet_NaN() : sum == 0 ? 0 : 1 / sum;
      float* numbers = x_.out.data() + std::int64_t{r} * l_.width;
      for (int c = 0; c < l_.width; c += W)
        S::store(numbers + c, S::mul(S::load(numbers + c), S::mul(S::load(channel_scale_ + c), S::set(factor))));
      Quantizer<S>::from_f32(numbers, output.out.type, row(output.out, sequence_.batch, head(r), token), l_.dim);
      if (!output.lse.data) return;
      float lse = -infinity;
      if (factor != 0) {
        lse = (x_.maximum[i] + std::log2(S::reduce_add(S::load(x_.lse_sum[i])) / p_.recipe.weights.top)) * std::numbers::ln2_v<float>;
        if (const Tensor& correction = a_.operands_.query.correction; correction.data)
          lse += p_.scale * *reinterpret_cast<const float*>(row(correction, sequence_.batch, head(r), token));
      }
      *reinterpret_cast<float*>(row(output.lse, sequence_.batch, head(r), token)) = lse;
    }

    using Sum_ = chitu::Sum;
    const Attention& a_;
    const Problem& p_;
    const L& l_;
    const Unit& unit_;
    const Sequence& sequence_;
    const Panels<S>& panels_;
    Scratch& x_;
    const std::int64_t first_row_;
    const int rows_;
    const Locator value_;
    alignas(64) float channel_scale_[max_dim + W] = {};  // what each channel of the output is multiplied by at the end
  };

  const Problem& p_;
  const Operands operands_;
  const L layout_;
  const float sign_;  // of the scale: put into the queries, so that larger scores are larger weights
  const float log2_top_ = std::log2(p_.recipe.weights.top);
  std::vector<Unit> units_;
  std::vector<Panels<S>> panels_;
  std::vector<Scratch> scratch_;
};

template <class S>
constexpr AttentionRuns attention_runs{Attention<S, float, float>::run, Attention<S, std::int8_t, float>::run,
                                       Attention<S, std::int8_t, std::int8_t>::run};

}  // namespace chitu::cpu
