// SPDX-License-Identifier: Apache-2.0
// What the kernels of a call share: the caller's tensors, where its sequences lie, the mask, and the quantised operands between them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "chitu/tensor.h"
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
  const SequenceLayout* layouts;  // [sequences]; null: all sequences are like `same`, one for each batch entry
  SequenceLayout same;            // batch 0 of such a call
  int kv_heads, heads, sequences;
  int dim;                          // of the tensors, a multiple of 8
  int query_tiles, key_tiles;       // of a head, in all sequences
  void* centre;                     // [sequences, kv_heads, dim], in the type of the keys
  float* channels;                  // [sequences, kv_heads, Form::dim]: the factor of outputs at the end: λ, a value's scale, or 1
  std::uint8_t* tiles;              // [key tiles x kv_heads]: Form::tile_bytes: keys [panels][128][panel], then values
  PassScales* passes;               // [key tiles x kv_heads, 2]: the last pass, then the residual plane's
  std::uint8_t* orders;             // [key tiles x kv_heads, 128], with Form::sorted: which key of its tile stands at each row
  std::int8_t* residuals;           // [key tiles x kv_heads]: values' second plane, written where flagged
  std::uint8_t* nonfinite_keys;     // [key tiles x kv_heads]: 1 if a number in the tile is not finite, else 0. Operands have zeros for
  std::uint8_t* nonfinite_values;   //   the whole query or key with such a number, but only for the number of a value
  std::uint8_t* nonfinite_queries;  // [query tiles x heads]
  int* any_nonfinite;               // not 0 if any tile has 1 there

  // What prepare() reads and writes.
  Window window;
  int blocks;        // of Form::block_queries queries, of a head, in all sequences
  Split split;       // of the blocks of all heads
  int2* ranges;      // the keys that a query sees: [128 query_tiles], or [128 tiles of a sequence] where all are alike
  int* items_taken;  // of the attention kernel's items, beyond the first of each CTA; 0 before it starts
  int* pieces_done;  // [split items][16 rows of a block]; 0 before it starts
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
};

// The tensors of a call, for whoever reads them by tensor maps.
struct Operands {
  Tensor query, key, value;
};

// Items of the attention kernel that are taken in pieces.
__host__ __device__ inline int split_item_count(const QuantizeParams& p) { return p.blocks * p.heads - p.split.whole; }

// The number of QuantizeParams::ranges.
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

// Launched in this order on one stream. bf16: the type of the tensors; else it is f16.
void write_layouts(const SequenceLayout* layouts, int count, SequenceLayout* to, cudaStream_t stream);  // fills Params::layouts
void quantize_chitu(const QuantizeParams& params, bool bf16, cudaStream_t stream);  // keys and values of chitu, dim 64 or 128
void quantize_any_recipe(const Params& params, const Recipe& recipe, const Form& form, bool bf16, cudaStream_t stream);
std::int64_t statistics_count(const Params& params);  // what quantize_any_recipe() needs of Params::statistics
void clear_counters(const QuantizeParams& params, cudaStream_t stream);  // of a direct kernel, in place of a quantizer: items, pieces
// ... then AttentionKernel::start(), then, for inputs that were not finite:
void spoil_nonfinite(const Params& params, bool bf16, int processors, cudaStream_t stream);

}  // namespace chitu::cuda
