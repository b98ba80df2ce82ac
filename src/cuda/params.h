// SPDX-License-Identifier: Apache-2.0
// What the kernels of a call share: the caller's tensors, where its sequences lie, the mask, and the quantised operands between them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/operands/layout.h"
#include "cuda/schedule.h"

namespace chitu::cuda {

constexpr int most_warps = 16;  // of a CTA of an attention kernel; each has 16 queries

// Vectors of 16 bytes that each lane leaves of a piece, for its warp's 16 rows: outputs so far, references, sums.
constexpr int piece_vectors(int dim) { return dim / 8 + 2; }

// What quantize_chitu() needs. It is small and apart from Params, because a kernel fetches its parameters in lines of 64 bytes when it
// starts, and short calls wait for that. For the sample's kernel 128 bytes in place of 784 brought 19.4 to 18.8 us
// (docs/kernels/sm90-log.md).
struct QuantizeParams {
  View key, value;
  const SequenceLayout* layouts;  // [sequences + 1], the last has the totals; null: all sequences are like `same`, one for each batch entry
  SequenceLayout same;            // batch 0 of such a call
  int kv_heads, heads, sequences;
  int dim;                          // of the tensors, a multiple of 8
  int query_tiles, key_tiles;       // of a head, in all sequences
  void* centre;                     // [sequences, kv_heads, dim], in the type of the keys; by quantize_chitu() Form::dim
  float* channels;                  // [sequences, kv_heads, Form::dim]: the factor of outputs at the end: λ, a value's scale, or 1
  std::uint8_t* key_numbers;        // [key tiles x kv_heads]: Form::key_bytes: [panels][128][panel]
  std::uint8_t* value_numbers;      // [key tiles x kv_heads]: Form::value_plane_bytes
  PassScales* passes;               // [key tiles x kv_heads, 2]: the last pass, then the residual plane's
  std::uint8_t* orders;             // [key tiles x kv_heads, 128], with Form::sorted: which key of its tile stands at each row
  std::int8_t* residuals;           // [key tiles x kv_heads]: values' second plane, written where flagged
  std::uint8_t* nonfinite_keys;     // [key tiles x kv_heads]: 1 if a number in the tile is not finite, else 0. Operands have zeros for
  std::uint8_t* nonfinite_values;   //   the whole query or key with such a number, but only for the number of a value
  std::uint8_t* nonfinite_queries;  // [query tiles x heads]
  int* any_nonfinite;               // not 0 if any tile has 1 there

  // What prepare() reads and writes.
  Window window;
  int blocks;                 // of Form::block_queries queries, of a head, in all sequences
  Split split;                // of the blocks of all heads, unless it is on the GPU
  const Split* split_on_gpu;  // null: `split` is right
  int split_items;            // that are taken in pieces, at most
  int2* ranges;               // the keys that a query sees: [128 query_tiles], or [128 tiles of a sequence] where all are alike
  int* items_taken;           // of the attention kernel's items, beyond the first of each CTA; 0 before it starts
  int* pieces_done;           // [split items][16 rows of a block]; 0 before it starts
};

struct Params : QuantizeParams {
  View query, out, lse;  // lse.data may be null
  int heads_at_once;     // whose blocks are taken in turn, counted over all sequences: block_of()
  bool out_bf16;         // else f16
  bool tuned_quantizer;  // quantize_chitu() for keys and values, the attention kernel for queries; else quantize_any_recipe() for all
  float scale;
  float4* pieces;  // results of the pieces of split items: join()

  // Used with quantize_any_recipe() only.
  std::uint8_t* queries;  // [query tiles x heads], a head: [panels][128 tiles][panel]; negated if scale is negative
  float* query_scale;     // [queries / Form::query_scale_rows]: with rows = 2, [each 16 queries][8]
  float* correction;      // [queries]: q . centre; 0 where keys are not centred
  float* key_scale;       // [key tiles x kv_heads, 128], with Form::scale_each_key
  double* statistics;     // [statistics_count()]

  // Of operands that came quantised, else null: [tiles x heads], read where a tile is marked in nonfinite_...
  NonFiniteTile *query_details, *key_details, *value_details;
};

// The number of QuantizeParams::ranges.
__host__ __device__ inline int range_count(const QuantizeParams& p) {
  return tile_tokens * (p.layouts ? p.query_tiles : tiles_of(p.same.queries));
}

// Of a head, in all sequences. Where lengths are on the GPU, QuantizeParams has bounds of them.
__device__ inline int query_tile_count(const QuantizeParams& p) { return p.layouts ? p.layouts[p.sequences].query_tile : p.query_tiles; }
__device__ inline int key_tile_count(const QuantizeParams& p) { return p.layouts ? p.layouts[p.sequences].key_tile : p.key_tiles; }
__device__ inline int block_count(const QuantizeParams& p) { return p.layouts ? p.layouts[p.sequences].block : p.blocks; }

// The split of a call. `opaque` is 0 (block_of()).
__device__ inline int whole_items(const QuantizeParams& p, int opaque) {
  return p.split_on_gpu ? p.split_on_gpu[opaque].whole : p.split.whole + opaque;
}
__device__ inline int pieces_of_item(const QuantizeParams& p) { return p.split_on_gpu ? p.split_on_gpu->pieces : p.split.pieces; }

// Sequence i.
__host__ __device__ inline SequenceLayout sequence_layout(const QuantizeParams& p, int i) {
  if (p.layouts) return p.layouts[i];
  SequenceLayout s = p.same;
  s.batch = i;
  s.query_tile = i * tiles_of(s.queries);
  s.key_tile = i * tiles_of(s.keys);
  return s;
}

// Launched in this order on one stream. bf16: the type of the tensors; else it is f16.
void write_layouts(const SequenceLayout* layouts, int count, SequenceLayout* to, cudaStream_t stream);  // fills Params::layouts

// Starts or lengths in GPU memory, and where the table goes that they complete. What they do not say is there already: positions, and
// with lengths batch entries and queries.
struct Lengths {
  SequenceLayout* layouts;
  Split* split;                                   // to be chosen, too; null: nothing is split
  const std::int32_t *query_starts, *key_starts;  // [sequences + 1], of packed sequences
  const std::int32_t* key_lengths;                // [sequences], of a padded batch: instead of starts
  int sequences, queries, keys;                   // of the tensors
  int max_queries, max_keys;                      // of a sequence
  int block_queries;                              // Form::block_queries
  bool last_at_last_key;                          // where the last query of a sequence stands; else positions are given
  int heads, processors;
  Window window;
};
void read_lengths(const Lengths& lengths, cudaStream_t stream);

// Keys and values of chitu, dims up to 128. Neither this nor quantize_any_recipe() prepares for an attention kernel without
// QuantizeParams::items_taken.
void quantize_chitu(const QuantizeParams& params, bool bf16, cudaStream_t stream);

// What quantize_any_recipe() makes, and vectors that are given instead of collected ones; in fp32, dense.
struct Making {
  bool query = true, key = true, value = true;
  const float* centre = nullptr;    // [sequences, kv_heads, dim]
  const float* channels = nullptr;  // the same, with Scaling::tile
  __host__ __device__ constexpr bool makes(Role role) const { return role == Role::query ? query : role == Role::key ? key : value; }
};
void quantize_any_recipe(const Params& params, const Recipe& recipe, const Form& form, const Making& making, bool bf16,
                         cudaStream_t stream);

// Keys and values that were made together have one array of passes and one any_nonfinite, in the keys' block: where the values' are.
struct ValueBlock {
  PassScales* passes = nullptr;  // null: they were not made together
  int* any_nonfinite = nullptr;
};
// Ends quantize(), for queries or for keys and values: writes Params::..._details where tiles are marked as not finite, fills `values`.
void write_details(const Params& params, const Making& making, const ValueBlock& values, bool bf16, cudaStream_t stream);

// Operands that came quantised: what becomes one array in Params.
struct Joined {
  Params params;
  const PassScales *key_passes, *value_passes;                               // null: made by quantize_any_recipe(), or has none
  const int *query_any_nonfinite, *key_any_nonfinite, *value_any_nonfinite;  // null likewise
  bool prepares;                                                             // no quantizer has prepared for the attention kernel
};
void join_operands(const Joined& joined, cudaStream_t stream);

std::int64_t statistics_count(const Params& params);  // what quantize_any_recipe() needs of Params::statistics
// ... then AttentionKernel::start(), then, for inputs that were not finite:
void spoil_nonfinite(const Params& params, bool bf16, int processors, cudaStream_t stream);

}  // namespace chitu::cuda
