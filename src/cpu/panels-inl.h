// SPDX-License-Identifier: Apache-2.0
// How the CPU's products want their operands: numbers of 8, 16 or 32 bits in lanes of 32, keys and values in panels as wide as a
// register block.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/quantize-inl.h"
#include "cpu/rows.h"

namespace chitu::cpu {

// What a product is computed in; `group` numbers share a lane.
struct F32 {
  using Stored = float;
  static constexpr int group = 1;
};
struct Bf16 {
  using Stored = std::uint16_t;
  static constexpr int group = 2;
};
struct Int8 {
  using Stored = std::int8_t;
  static constexpr int group = 4;
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

template <class S>
struct Layout {
  static constexpr int W = S::width;
  static constexpr int R = S::block_rows;       // rows of a product's register block
  static constexpr int V = S::block_vectors;    // vectors of it
  static constexpr int panel = W * V;           // keys of a panel of keys, channels of a panel of values
  static constexpr int step = round_up(24, R);  // rows between scores and values: scores and weights stay in L1
  static constexpr int padded_step = round_up(step, W);
  static constexpr int block = 8 * step;  // rows of a task: what an unpacked tile serves
  static_assert(tile_tokens % panel == 0 && tile_tokens % (4 * W) == 0);

  int dim, width;  // channels; and up to whole vectors
  explicit Layout(int dim) : dim(dim), width(round_up(dim, W)) {}

  // Is a product in N computed on tiles? They sum over whole tiles of lanes.
  template <class N>
  static constexpr bool on_tiles = S::has_tiles&& N::group > 1;
  template <class N>
  static constexpr int lane_unit = on_tiles<N> ? 16 : 1;

  template <class N>
  int lanes() const {  // of a query or a key
    return round_up((dim + N::group - 1) / N::group, lane_unit<N>);
  }
  template <class N>
  int tile_key_bytes() const {
    return tile_tokens * lanes<N>() * 4;
  }
  template <class N>
  int tile_value_bytes() const {
    return tile_tokens / N::group * width * 4;
  }
  int panel_width(int first_channel) const { return std::min(panel, width - first_channel); }
};

// The first `count` keys of a tile of one kv head into panels, the last of which is filled up; what is behind it stays as it is. Rows come
// from read(j, numbers): the numbers of key j of the tile, zeros past the last.
template <class S, class N>
struct Packer {
  using F = typename S::F;
  using L = Layout<S>;
  using Stored = typename N::Stored;
  static constexpr int W = S::width;
  static constexpr int row_numbers = max_dim + 64 / static_cast<int>(sizeof(Stored));  // of a buffer that whole vectors are read from

  // W rows of W lanes, in place.
  static void transpose(F (&x)[W]) {
    const auto stage = [&]<int n>(std::integral_constant<int, n>) {
      if constexpr (n < W)
        for (int i = 0; i < W; ++i)
          if (!(i & n)) {
            const F a = x[i], b = x[i | n];
            x[i] = S::template choose<n>(a, S::template exchange<n>(b));
            x[i | n] = S::template choose<n>(S::template exchange<n>(a), b);
          }
    };
    stage(std::integral_constant<int, 1>{});
    stage(std::integral_constant<int, 2>{});
    stage(std::integral_constant<int, 4>{});
    stage(std::integral_constant<int, 8>{});
  }

  // [panel of keys][lane][key][4 bytes]
  template <class Read>
  static void keys(const L& l, int count, std::byte* to, const Read& read) {
    alignas(64) Stored rows[W][row_numbers];
    const int lanes = l.template lanes<N>();
    for (int j = 0; j < round_up(count, L::panel); j += W) {
      for (int i = 0; i < W; ++i) {
        std::fill(rows[i] + l.dim, rows[i] + row_numbers, Stored{});
        read(j + i, rows[i]);
      }
      std::byte* column = to + (j / L::panel * lanes * L::panel + j % L::panel) * 4;
      for (int lane = 0; lane < lanes; lane += W) {
        F x[W];
        for (int i = 0; i < W; ++i) x[i] = S::load(reinterpret_cast<const float*>(rows[i]) + lane);
        transpose(x);
        for (int i = 0; i < std::min(W, lanes - lane); ++i) S::store(reinterpret_cast<float*>(column + (lane + i) * L::panel * 4), x[i]);
      }
    }
  }

  // [panel of channels][lane of keys][channel][4 bytes]
  template <class Read>
  static void values(const L& l, int count, std::byte* to, const Read& read) {
    Stored rows[N::group][row_numbers];
    for (int i = 0; i < N::group; ++i) std::fill(rows[i] + l.dim, rows[i] + row_numbers, Stored{});
    for (int lane = 0; lane < round_up(count, N::group * L::template lane_unit<N>) / N::group; ++lane) {
      for (int i = 0; i < N::group; ++i) read(lane * N::group + i, rows[i]);
      for (int first = 0; first < l.width; first += L::panel) {
        const int width = l.panel_width(first);
        std::byte* out = to + (first * tile_tokens / N::group + place(lane) * width) * 4;
        for (int c = 0; c < width; c += W) S::store_i(out + c * 4, interleave(rows, first + c));
      }
    }
  }

 private:
  // Of four vectors' lanes of weights on tiles, which are packed by turns.
  static int place(int lane) { return L::template on_tiles<N> && N::group == 4 ? lane / 16 * 16 + lane % 4 * 4 + lane / 4 % 4 : lane; }

  // Lane i: the numbers of channel c + i of all rows.
  static typename S::I interleave(const Stored (&rows)[N::group][row_numbers], int c) {
    if constexpr (N::group == 1) return S::load_i(rows[0] + c);
    if constexpr (N::group == 2) return S::add_i(S::load_u16(rows[0] + c), S::template shift_left<16>(S::load_u16(rows[1] + c)));
    if constexpr (N::group == 4)
      return S::add_i(S::add_i(S::load_u8(rows[0] + c), S::template shift_left<8>(S::load_u8(rows[1] + c))),
                      S::add_i(S::template shift_left<16>(S::load_u8(rows[2] + c)), S::template shift_left<24>(S::load_u8(rows[3] + c))));
  }
};

// The INT8 panels of one kv head of one sequence. Floating operands are unpacked tile by tile instead: theirs would take memory.
template <class S>
struct Panels {
  std::byte* keys = nullptr;              // [tile] as Packer::keys
  Buffer<std::int32_t> key_start;         // [key]: -128 times its sum, for queries are stored + 128
  Buffer<float> key_scale;                // [key], times key_unit
  float key_unit = 1;                     // a power of two
  std::byte* values = nullptr;            // [tile] as Packer::values
  Buffer<std::byte> residuals;            // [flagged tile] likewise
  std::vector<std::int32_t> residual_of;  // [tile]; -1, or index of a flagged tile
};

}  // namespace chitu::cpu
