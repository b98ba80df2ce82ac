// SPDX-License-Identifier: Apache-2.0
// The two products of attention on tiles (AMX), for a step of rows: blocks of 2 x 2 tiles of sums. The tiles' unit works beside the
// vectors', so each block's sums are finished, and other work is done, while the next block is multiplied.
#pragma once

#include <algorithm>

#include "cpu/panels-inl.h"

namespace chitu::cpu {

template <class S, class N>
struct TileProducts {
  using F = typename S::F;
  using L = Layout<S>;
  static constexpr int W = S::width, pair = 2 * W;  // keys or channels of a block
  static constexpr int tile_lanes = 16;             // of 4 bytes: what a product of two tiles sums over

  // sums[r][j] = query r . key j, of the two tiles of keys from `first` on; as they come, int32 or fp32. query: [row][lane]; keys: [panel]
  // [lane][key], a tile of tokens. lanes: whole tiles.
  template <class Aside>
  static void scores(int rows, const std::byte* query, const std::byte* keys, int lanes, int first, void* sums, const Aside& aside) {
    const std::byte* k = keys + (first / L::panel * L::panel * lanes + first % L::panel) * 4;
    const auto multiply = [&]<bool two>(std::bool_constant<two>) __attribute__((always_inline)) {
      zero<two, true>();
      for (int lane = 0; lane < lanes; lane += tile_lanes)
        step<false, two, true>(query + lane * 4, lanes * 4, k + lane * L::panel * 4, L::panel * 4, [] {});
      aside();
      store<two, true>(sums, tile_tokens);
    };
    rows > S::tile_rows ? multiply(std::true_type{}) : multiply(std::false_type{});
  }

  // out[r] = out[r] * keep[r] + weight[r] * sum over the keys [begin, end) of weights[r] * values; keep may be null, for all 1. Weights of
  // other keys that share a tile's lanes with these are 0. weights: [row][tile_tokens]; values: [panel][lane of keys][channel]. aside() is
  // called while it has work left, which hides behind the tiles.
  template <class Aside>
  [[gnu::noinline]] static void values(const L& l, int rows, const std::byte* weights, const std::byte* values, int begin, int end,
                                       const float* keep, const float* weight, float* out, Aside& aside) {
    alignas(64) float sums[2][S::block_rows * pair];
    const int width = l.width, blocks = (width + pair - 1) / pair;
    const int from = begin / (tile_lanes * N::group), to = (end + tile_lanes * N::group - 1) / (tile_lanes * N::group);
    int steps = blocks * (to - from);
    Aside hidden = aside;  // in registers
    const auto finish = [&](int block) {
      const float* sum = sums[block % 2];
      float* to = out + block * pair;
      const bool wide = block * pair + W < width;
      keep ? (wide ? add<true, 2> : add<true, 1>)(rows, sum, keep, weight, to, width)
           : (wide ? add<false, 2> : add<false, 1>)(rows, sum, keep, weight, to, width);
    };
    for (int block = 0; block < blocks; ++block) {
      const int c = block * pair, panel = c / L::panel * L::panel, lane_bytes = l.panel_width(panel) * 4;
      const std::byte* v = values + (panel * tile_tokens / N::group + c - panel) * 4;
      const auto multiply = [&]<bool two, bool wide>(std::bool_constant<two>, std::bool_constant<wide>) __attribute__((always_inline)) {
        zero<two, wide>();
        for (int k = from; k < to; ++k, --steps) {
          const int share = (hidden.left() + steps * 4 - 1) / (steps * 4);
          step<true, two, wide>(
              weights + k * S::tile_bytes, tile_tokens * 4 / N::group, v + k * tile_lanes * lane_bytes,
              lane_bytes, [&]() __attribute__((always_inline)) {
                for (int i = std::min(share, hidden.left()); i > 0; --i) hidden();
              });
        }
        if (block) finish(block - 1);
        store<two, wide>(sums[block % 2], pair);
      };
      const auto rows_known = [&](auto two) { c + W < width ? multiply(two, std::true_type{}) : multiply(two, std::false_type{}); };
      rows > S::tile_rows ? rows_known(std::true_type{}) : rows_known(std::false_type{});
    }
    finish(blocks - 1);
    aside = hidden;
  }

  // out[r] = out[r] * keep[r] + weight[r] * sum[r], NV vectors of each row.
  template <bool kept, int NV>
  [[gnu::noinline]] static void add(int rows, const float* sum, const float* keep, const float* weight, float* __restrict out, int width) {
    for (int r = 0; r < rows; ++r, sum += pair, out += width) {
      const F by = S::set(weight[r]);
      unroll<NV>([&](auto v) {
        F before = S::load(out + v * W);
        if constexpr (kept) before = S::mul(before, S::set(keep[r]));
        S::store(out + v * W, S::fma(load_sum(sum + v * W), by, before));
      });
    }
  }

  // Sums of products become scores, in place, of two tiles of keys from `first` on: times the key's scale if any, as change(where it is,
  // score) gives it back; top[r]: lane by lane the larger of top[r] and they.
  template <bool scaled, class Change>
  [[gnu::noinline]] static void finish(int rows, int first, const float* key_scale, float* scores, float (*top)[W], const Change& change) {
    F scale[2];
    if constexpr (scaled) unroll<2>([&](auto v) { scale[v] = S::load(key_scale + first + v * W); });
    for (int r = 0; r < rows; ++r) {
      float* const to = scores + r * tile_tokens + first;
      F score[2];
      unroll<2>([&](auto v) {
        score[v] = load_sum(to + v * W);
        if constexpr (scaled) score[v] = S::mul(score[v], scale[v]);
        score[v] = change(to + v * W, score[v]);
        S::store(to + v * W, score[v]);
      });
      S::store(top[r], S::max(S::max(score[0], score[1]), S::load(top[r])));
    }
  }

  static F load_sum(const float* p) {
    if constexpr (std::is_same_v<N, Int8>)
      return S::to_float(S::load_i(p));
    else
      return S::load(p);
  }

 private:
  // Tiles 0 ... 3 are sums, [row tile][column tile]; 4, 5 of rows; 6, 7 of columns.
  template <bool two, bool wide>
  static void zero() {
    S::template tile_zero<0>();
    if constexpr (wide) S::template tile_zero<1>();
    if constexpr (two) S::template tile_zero<2>();
    if constexpr (two && wide) S::template tile_zero<3>();
  }

  template <bool weights, bool two, bool wide, class Aside>
  [[gnu::always_inline]] static void step(const std::byte* rows, int row_bytes, const std::byte* columns, int lane_bytes,
                                          const Aside& aside) {
    S::template tile_load<4>(rows, row_bytes);
    S::template tile_load<6>(columns, lane_bytes);
    if constexpr (two) S::template tile_load<5>(rows + S::tile_rows * row_bytes, row_bytes);
    if constexpr (wide) S::template tile_load<7>(columns + W * 4, lane_bytes);
    dot<weights, 0, 4, 6>();
    aside();
    if constexpr (two) dot<weights, 2, 5, 6>();
    aside();
    if constexpr (wide) dot<weights, 1, 4, 7>();
    aside();
    if constexpr (two && wide) dot<weights, 3, 5, 7>();
    aside();
  }

  template <bool weights, int sum, int a, int b>
  static void dot() {
    if constexpr (std::is_same_v<N, Bf16>)
      S::template tile_dot_bf16<sum, a, b>();
    else if constexpr (weights)
      S::template tile_dot_u8_s8<sum, a, b>();
    else
      S::template tile_dot_s8_s8<sum, a, b>();
  }

  template <bool two, bool wide>
  static void store(void* sums, int width) {
    auto* const to = static_cast<float*>(sums);
    S::template tile_store<0>(to, width * 4);
    if constexpr (wide) S::template tile_store<1>(to + W, width * 4);
    if constexpr (two) S::template tile_store<2>(to + S::tile_rows * width, width * 4);
    if constexpr (two && wide) S::template tile_store<3>(to + S::tile_rows * width + W, width * 4);
  }
};

}  // namespace chitu::cpu
