// SPDX-License-Identifier: Apache-2.0
// What the kernels of a call share: the caller's tensors, where its sequences lie, the mask, and the quantised operands between them.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "chitu/attention.h"
#include "common/sample.h"
#include "common/tiles.h"
#include "cuda/schedule.h"

namespace chitu::cuda {

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

// What the main loop needs of a pass over a tile of keys beside the numbers. A flagged tile has two passes: the first has the residual
// plane for values and does not count in the row sums.
struct alignas(32) PassScales {
  float key[4];  // of the keys with key % 8 / 2 = 0 ... 3; unused where each key has its own (Form::scale_each_key)
  float value;   // of the tile's values, 1 where they have none of their own
  int last;      // 1, or 0: of the residual plane
  int flagged;   // the tile
  int unused;
};

// What the attention kernels want the operands of a recipe as. "Bytes" are of a number.
struct Form {
  int dim;               // channels, padded with zeros: 64, 128 or 256
  int score_bytes;       // of queries and keys
  int value_bytes;       // 1: values are transposed, keys permuted within 16; 2: as they came
  int query_scale_rows;  // 2: rows r and r + 8 of 16 share a scale, else 1
  bool scale_each_key;   // a scale for each key of a tile instead of PassScales::key
  bool residuals;        // flagged tiles
  bool splittable;       // items may be split: a weight's precision does not depend on the keys before it
  int block_queries;     // of a CTA of the attention kernel: 64 for each of its warpgroups, as many as their registers allow

  friend constexpr bool operator==(const Form&, const Form&) = default;
  constexpr int key_bytes() const { return tile_tokens * dim * score_bytes; }  // of a tile
  // What a warp's 16 rows of a piece of an item come to, 16 bytes for each lane: the output so far, its references, sums.
  constexpr int piece_vectors() const { return dim / 8 + 2; }
  constexpr int tile_bytes() const { return key_bytes() + tile_tokens * dim * value_bytes; }
};

constexpr int most_warps = 16;  // of an attention kernel, 16 queries each

constexpr Form form_of(const Recipe& r, int dim) {
  const auto bytes_of = [](const Quant& q) { return q.scaling == Scaling::none ? 2 : bytes(q.type); };
  const int padded = dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
  const int query_scale_rows = r.query.scaling == Scaling::tokens && r.query.groups == Groups{16, 8} ? 2 : 1;
  return {.dim = padded,
          .score_bytes = bytes_of(r.key),
          .value_bytes = bytes_of(r.value),
          .query_scale_rows = query_scale_rows,
          .scale_each_key = r.key.scaling == Scaling::tokens && !(r.key.groups == Groups{128, 4}),
          .residuals = r.value.scaling == Scaling::tile,
          .splittable = r.weights.by_tile || bytes_of(r.value) == 2,
          .block_queries = padded == 256                                                     ? 128
                           : padded == 64 && bytes_of(r.value) == 1 && query_scale_rows == 2 ? 256
                                                                                             : 192};
}

// Operands are stored as wgmma looks for them in shared memory, so that plain copies of bytes do. A row of queries or keys, and a 16-bit
// row of values, is cut into *panels* of 128 bytes (one of 64 where it has no more); a panel's rows follow each other, and their 16-byte
// chunks are swizzled: chunk c of row r stands at c ^ r % 8 (rows of 64 bytes: c ^ r / 2 % 4). 8-bit values are transposed: a row of 128
// keys for each channel, swizzled likewise, keys in the order 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15 within 16. Tokens are padded with
// zeros to whole tiles, channels to Form::dim. Integers of values, and of their residual plane, are stored + 128 (value_offset). Tiles of a
// head follow each other, heads of a sequence, sequences.
constexpr std::uint32_t value_offset = 128, value_offsets = 0x80808080u;  // the latter is added by exclusive or

// What quantise() needs. Apart from the rest because it is on the way of short calls: a kernel's parameters are part of its launch, and
// come to a multiprocessor in lines of 64 bytes, none of which it has when the kernel starts.
struct QuantizeParams {
  View key, value;
  const SequenceLayout* layouts;  // [sequences] of a packed call; null: all sequences are like `same`, one for each batch entry
  SequenceLayout same;            // batch 0 of such a call
  int kv_heads, heads, sequences;
  int dim;                       // of the tensors, a multiple of 8
  int query_tiles, key_tiles;    // of a head, in all sequences
  void* centre;                  // [sequences, kv_heads, dim], in the type of the keys
  float* channels;               // [sequences, kv_heads, Form::dim]: what outputs are multiplied by at the end: λ, a value's scale; 1
  std::uint8_t* tiles;           // [key tiles x kv_heads]: Form::tile_bytes: keys [panels][128][panel], then values
  PassScales* passes;            // [key tiles x kv_heads, 2]: the last pass, the residual's
  std::int8_t* residuals;        // [key tiles x kv_heads]: values' second plane, written where flagged
  std::uint8_t* nonfinite_keys;  // [key tiles x kv_heads]: 1 if the tile has something that is not finite, else 0: of queries and keys the
  std::uint8_t* nonfinite_values;   //   token was left out of the operands, of values the number
  std::uint8_t* nonfinite_queries;  // [query tiles x heads]
  int* any_nonfinite;               // not 0 if any is

  // By prepare().
  Window window;
  int blocks;        // of Form::block_queries queries, of a head, in all sequences
  Split split;       // of the blocks of all heads
  int2* ranges;      // the keys that a query sees: [128 query_tiles], or [128 tiles of a sequence] where all are alike
  int* items_taken;  // of the attention kernel's items, beyond the first of each CTA; 0 before it starts
  int* pieces_done;  // [split items][16 rows of a block]; 0 before it starts
};

struct Params : QuantizeParams {
  View query, out, lse;  // lse.data may be null
  int heads_at_once;     // of all sequences, where their blocks are taken in turn: block_of()
  bool out_bf16;         // else f16
  bool tuned_quantizer;  // of chitu: quantise() for keys and values, the attention kernel for queries; else pack() for all
  float scale;
  float4* pieces;  // what split items' pieces have come to: join()

  CUtensorMap queries_as_given;  // with tuned_quantizer: [batch][head][token][channel], in boxes of Form::block_queries x 64

  // With pack() only.
  std::uint8_t* queries;  // [query tiles x heads], a head: [panels][128 tiles][panel]; negated if scale is negative
  float* query_scale;     // [queries / Form::query_scale_rows]: with rows = 2, [each 16 queries][8]
  float* correction;      // [queries]: q . centre; 0 where keys are not centred
  float* key_scale;       // [key tiles x kv_heads, 128], with Form::scale_each_key
  double* statistics;     // [statistics_count()]
};

// Items of the attention kernel that are taken in pieces.
__host__ __device__ inline int split_item_count(const QuantizeParams& p) { return p.blocks * p.heads - p.split.whole; }

// Of QuantizeParams::ranges.
__host__ __device__ inline int range_count(const QuantizeParams& p) {
  return tile_tokens * (p.layouts ? p.query_tiles : tiles_of(p.same.queries));
}

// Sequence i.
__host__ __device__ inline SequenceLayout sequence_layout(const QuantizeParams& p, int i) {
  if (p.layouts) return p.layouts[i];
  SequenceLayout s = p.same;
  s.batch = i;
  s.query_tile = i * tiles_of(s.queries);
  s.key_tile = i * tiles_of(s.keys);
  return s;
}

// Launched in this order on one stream. The tensors are bf16, or f16.
void write_layouts(const SequenceLayout* layouts, int count, SequenceLayout* to, cudaStream_t stream);  // fills Params::layouts
void quantize_chitu(const QuantizeParams& params, bool bf16, cudaStream_t stream);  // keys and values of chitu, dim 64 or 128
void quantize_any_recipe(const Params& params, const Recipe& recipe, bool bf16, cudaStream_t stream);  // any recipe and dim
std::int64_t statistics_count(const Params& params);  // what pack() needs of Params::statistics
namespace sm90 {
void attend(const Params& params, const Recipe& recipe, bool bf16, int processors, cudaStream_t stream);
}
void spoil_nonfinite(const Params& params, bool bf16, int processors, cudaStream_t stream);  // what was not finite

}  // namespace chitu::cuda
