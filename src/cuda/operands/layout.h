// SPDX-License-Identifier: Apache-2.0
// Where everything lies: tokens in the caller's tensors, tiles of quantised operands, numbers within a tile. Every address in src/cuda is
// made here. A quantiser that steps from token to token by a stride asks for a tile's first address only: pages shorter than what it
// crosses would change it too (docs/adding.md). All functions are constexpr: host and device have them, and tests need no GPU.
#pragma once

#include <cstdint>

#include "chitu/attention.h"
#include "common/ranks.h"
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
  int key_begin, keys;       // the same for keys and values
  int query_tile, key_tile;  // tiles that a head has in the sequences before it
  // Only in a table, and not about this sequence: which sequence's blocks are taken i-th, where this is entry i of the table, and how many
  // blocks of Form::block_queries queries a head has in those taken before.
  int taken, block;
  Positions query_positions, key_positions;
};

// Elements from the start of a tensor to a token of it.
constexpr std::int64_t token_offset(const View& x, int batch, int head, std::int64_t token) {
  return batch * x.batch + head * x.head + token * x.token;
}

// The same for a token of a sequence: `query` in the queries or the output, `key` in the keys or the values.
constexpr std::int64_t query_offset(const View& x, const SequenceLayout& s, int head, std::int64_t query) {
  return token_offset(x, s.batch, head, s.query_begin + query);
}
constexpr std::int64_t key_offset(const View& x, const SequenceLayout& s, int head, std::int64_t key) {
  return token_offset(x, s.batch, head, s.key_begin + key);
}

// ---- rows of a block

// block_row() says which query of a block a row is, and of which of the query heads that share a kv head. Today a block has one head, so a
// row is a query. With more heads in a block, a few queries could share the keys that they read.
constexpr int heads_of_block = 1;
struct BlockRow {
  int query, head;
};
constexpr BlockRow block_row(int row) { return {row / heads_of_block, row % heads_of_block}; }

// Elements from a block's first row to another. The offset of a warp's first row and that of a row within the warp may be added up, because
// heads_of_block divides 16, the rows of a warp.
constexpr std::int64_t row_offset(const View& x, int row) { return block_row(row).head * x.head + block_row(row).query * x.token; }
static_assert(16 % heads_of_block == 0);

// ---- operands

// How the operands of a recipe are stored for the attention kernels. "Bytes" are those of one number.
struct Form {
  int dim;                // channels, padded with zeros: 64, 128 or 256
  int score_bytes;        // of queries and keys
  int value_bytes;        // 1: values are transposed, keys in the order of stored_key(); 2: as they came
  int query_scale_rows;   // 2: rows r and r + 8 of 16 share a scale, else 1
  bool scale_each_key;    // a scale for each key of a tile instead of PassScales::key
  bool sorted;            // a tile's keys and values stand in the order of the keys' sizes: row_of_rank()
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
          .sorted = r.key.sorted,
          .residuals = r.value.scaling == Scaling::tile,
          .splittable = r.weights.by_tile || bytes_of(r.value) == 2};
}

// The scales of one pass of a tile through the main loop. A flagged tile has two passes. The first brings the residual plane in place of
// the values, and its weights do not count in the row sums.
struct alignas(32) PassScales {
  float key[4];  // of the rows with row % 8 / 2 = 0 ... 3; unused where each key has its own (Form::scale_each_key)
  float value;   // of the tile's values, 1 where they have none of their own
  int last;      // 0 in the pass of the residual plane, else 1
  int flagged;   // whether the tile is
  int unused;
};
// What a quantised operand says of a tile with numbers that are not finite: which tokens have some, and of values which channels have
// which.
struct NonFiniteTile {
  std::uint32_t tokens[tile_tokens / 32];
  std::uint32_t nan[max_dim / 32], above[max_dim / 32], below[max_dim / 32];
};

// Index among all passes: a tile's last one (residual 0), or that of its residual plane (1).
constexpr std::int64_t pass_index(std::int64_t tile, int residual) { return 2 * tile + residual; }

// Bytes from the start of all keys to those of a tile, from the start of all values to those of a tile, and from the start of all residual
// planes to a tile's. Tiles of a head follow each other, then come the other heads of the sequence, then the other sequences.
constexpr std::int64_t key_tile_offset(Form form, std::int64_t tile) { return tile * form.key_bytes(); }
constexpr std::int64_t value_tile_offset(Form form, std::int64_t tile) { return tile * form.value_plane_bytes(); }
constexpr std::int64_t residual_offset(Form form, std::int64_t tile) { return tile * (std::int64_t{tile_tokens} * form.dim); }
// Bytes from the start of all orders to a tile's (Form::sorted).
constexpr std::int64_t order_offset(std::int64_t tile) { return tile * tile_tokens; }

// ---- numbers within a tile
//
// Operands are stored as wgmma and ldmatrix read them from shared memory, so a plain copy of bytes brings a tile.
// - Rows (queries, keys, 16-bit values) are cut into *panels* of 128 bytes, or one of 64 if a row has no more. The rows of a panel follow
//   each other.
// - 8-bit values are transposed: a row for each channel, 128 keys long, in the order of stored_key().
// - The 16-byte chunks of each row are swizzled().
// - With Form::sorted the key of rank r stands at row row_of_rank(r) of its tile, and its value likewise: where this says "key", a row is
//   meant. Keys with neighbouring ranks share one of PassScales::key, as two columns of an accumulator do. The tile's order says which key
//   of it stands at each row, a byte each: what a mask needs.
// - Tokens are padded with zeros to whole tiles, channels to Form::dim. Integers of values and of their residual plane are stored + 128
//   (value_offset).
constexpr int panel_bytes(int row_bytes) { return row_bytes < 128 ? row_bytes : 128; }

// Bytes from the first panel of `rows` rows to another one.
constexpr std::int64_t panel_offset(int row_bytes, int panel, std::int64_t rows) { return panel * rows * panel_bytes(row_bytes); }

// Where the 16-byte chunk of a panel's row stands. Rows of 128 bytes trade their chunks by row % 8, rows of 64 bytes by row / 2 % 4. So the
// chunks of one column lie in different banks in eight rows.
template <int row_bytes>
constexpr int swizzled(int chunk, int row) {
  static_assert(row_bytes == 64 || row_bytes == 128);
  return chunk ^ (row_bytes == 128 ? row & 7 : row >> 1 & 3);
}

// The key of 16 whose 8-bit value stands at byte `at`: 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15. In this order the accumulators of the scores
// (m16n8: a lane has columns 2 q, 2 q + 1 of every 8) are the operand of the product with values, without a shuffle.
constexpr int stored_key(int at) { return (at >> 2) * 2 + (at >> 1 & 1) * 8 + (at & 1); }

constexpr std::uint32_t value_offset = 128;
constexpr std::uint32_t value_offsets = 0x80808080u;  // exclusive or with this adds it to four bytes

}  // namespace chitu::cuda
