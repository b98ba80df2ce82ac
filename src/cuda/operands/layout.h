// SPDX-License-Identifier: Apache-2.0
// Where everything lies: tokens in the caller's tensors, tiles of quantised operands, numbers within a tile. Every address in src/cuda is
// made here, so that another layout (pages of a cache) changes this file alone. Plain constexpr: for host and device, tested without a GPU.
#pragma once

#include <cstdint>

#include "chitu/attention.h"
#include "common/tiles.h"

namespace chitu::cuda {

// ---- the caller's tensors

// A tensor: its memory and the strides of batch, head and token, in elements.
struct View {
  void* data;
  std::int64_t batch, head, token;
};

// Where a sequence lies: in the tensors, and among the tiles of the operands.
struct SequenceLayout {
  int batch;                 // entry of the tensors
  int query_begin, queries;  // its tokens there
  int key_begin, keys;       //
  int query_tile, key_tile;  // tiles that a head has in the sequences before it
  int block;                 // the same of the blocks of Form::block_queries queries; in a packed call
  Positions query_positions, key_positions;
};

// Elements from the start of a tensor to a token of it.
constexpr std::int64_t token_offset(const View& x, int batch, int head, std::int64_t token) {
  return batch * x.batch + head * x.head + token * x.token;
}

// The same of a sequence's tokens: of `query` in the queries or the output, of `key` in the keys or the values.
constexpr std::int64_t query_offset(const View& x, const SequenceLayout& s, int head, std::int64_t query) {
  return token_offset(x, s.batch, head, s.query_begin + query);
}
constexpr std::int64_t key_offset(const View& x, const SequenceLayout& s, int head, std::int64_t key) {
  return token_offset(x, s.batch, head, s.key_begin + key);
}

// ---- rows of a block

// A block of the attention kernel has rows of queries. Which query of the block a row is, and of which of the query heads that share a kv
// head: today a block has one head, so that a row is a query. More heads a block would let few queries share the keys that they read.
constexpr int heads_of_block = 1;
struct BlockRow {
  int query, head;
};
constexpr BlockRow block_row(int row) { return {row / heads_of_block, row % heads_of_block}; }

// Elements from a block's first row to another. A warp has 16 rows, so its first row and a row of it may be added up.
constexpr std::int64_t row_offset(const View& x, int row) { return block_row(row).head * x.head + block_row(row).query * x.token; }
static_assert(16 % heads_of_block == 0);

// ---- operands

// How the operands of a recipe are stored for the attention kernels. "Bytes" are of a number.
struct Form {
  int dim;                // channels, padded with zeros: 64, 128 or 256
  int score_bytes;        // of queries and keys
  int value_bytes;        // 1: values are transposed, keys in the order of stored_key(); 2: as they came
  int query_scale_rows;   // 2: rows r and r + 8 of 16 share a scale, else 1
  bool scale_each_key;    // a scale for each key of a tile instead of PassScales::key
  bool residuals;         // flagged tiles have a second plane of values
  bool splittable;        // items may be split along the keys: a weight's precision does not depend on the keys before it
  int block_queries = 0;  // of a CTA of the attention kernel; the architecture says it

  friend constexpr bool operator==(const Form&, const Form&) = default;
  constexpr int row_bytes() const { return dim * score_bytes; }          // of a query or key
  constexpr int key_bytes() const { return tile_tokens * row_bytes(); }  // of a tile
  constexpr int value_plane_bytes() const { return tile_tokens * dim * value_bytes; }
  constexpr int tile_bytes() const { return key_bytes() + value_plane_bytes(); }
};

constexpr int padded_dim(int dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }

constexpr Form form_of(const Recipe& r, int dim) {
  const auto bytes_of = [](const Quant& q) { return q.scaling == Scaling::none ? 2 : bytes(q.type); };
  return {.dim = padded_dim(dim),
          .score_bytes = bytes_of(r.key),
          .value_bytes = bytes_of(r.value),
          .query_scale_rows = r.query.scaling == Scaling::tokens && r.query.groups == Groups{16, 8} ? 2 : 1,
          .scale_each_key = r.key.scaling == Scaling::tokens && !(r.key.groups == Groups{128, 4}),
          .residuals = r.value.scaling == Scaling::tile,
          .splittable = r.weights.by_tile || bytes_of(r.value) == 2};
}

// What the main loop needs of a pass over a tile of keys beside the numbers. A flagged tile has two passes: the first has the residual
// plane for values and does not count in the row sums.
struct alignas(32) PassScales {
  float key[4];  // of the keys with key % 8 / 2 = 0 ... 3; unused where each key has its own (Form::scale_each_key)
  float value;   // of the tile's values, 1 where they have none of their own
  int last;      // 1, or 0: of the residual plane
  int flagged;   // the tile
  int unused;
};
// Among all: tile `tile`'s last pass (residual 0) or that of its residual plane (1).
constexpr std::int64_t pass_index(std::int64_t tile, int residual) { return 2 * tile + residual; }

// Bytes from the start of the tiles to a tile's keys and to its values; from the start of the residuals to a tile's. Tiles of a head follow
// each other, then the heads of a sequence, then the sequences.
constexpr std::int64_t key_tile_offset(Form form, std::int64_t tile) { return tile * form.tile_bytes(); }
constexpr std::int64_t value_tile_offset(Form form, std::int64_t tile) { return tile * form.tile_bytes() + form.key_bytes(); }
constexpr std::int64_t residual_offset(Form form, std::int64_t tile) { return tile * (std::int64_t{tile_tokens} * form.dim); }

// ---- numbers within a tile: as wgmma and ldmatrix look for them in shared memory, so that plain copies of bytes do
//
// Tokens are padded with zeros to whole tiles, channels to Form::dim. A row of queries or keys, and a 16-bit row of values, is cut into
// *panels* of 128 bytes (one of 64 where it has no more); a panel's rows follow each other, and their 16-byte chunks are swizzled. 8-bit
// values are transposed: a row of 128 keys for each channel, swizzled likewise, its keys in the order of stored_key(). Integers of values,
// and of their residual plane, are stored + 128.
constexpr int panel_bytes(int row_bytes) { return row_bytes < 128 ? row_bytes : 128; }

// Bytes from the start of `rows` rows, all panels of them, to a panel.
constexpr std::int64_t panel_offset(int row_bytes, int panel, std::int64_t rows) { return panel * rows * panel_bytes(row_bytes); }

// Where the 16-byte chunk of a panel's row stands: rows of 128 bytes trade their chunks by row % 8, rows of 64 bytes by row / 2 % 4. Eight
// rows' chunks of one column then lie in different banks.
template <int row_bytes>
constexpr int swizzled(int chunk, int row) {
  static_assert(row_bytes == 64 || row_bytes == 128);
  return chunk ^ (row_bytes == 128 ? row & 7 : row >> 1 & 3);
}

// The key of 16 whose 8-bit value stands at byte `at`: 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15. In this order the accumulators of the scores
// (m16n8: a lane has columns 2 q, 2 q + 1 of every 8) are the operand of the product with values, without a shuffle.
constexpr int stored_key(int at) { return (at >> 2) * 2 + (at >> 1 & 1) * 8 + (at & 1); }

constexpr std::uint32_t value_offset = 128;
constexpr std::uint32_t value_offsets = 0x80808080u;  // adds it to four bytes by exclusive or

}  // namespace chitu::cuda
