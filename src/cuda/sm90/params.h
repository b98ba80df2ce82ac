// SPDX-License-Identifier: Apache-2.0
// What the kernels of a call share: the caller's tensors, the mask, and the quantised operands between them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "chitu/attention.h"
#include "common/sample.h"

namespace chitu::cuda::sm90 {

inline constexpr int block_queries = 192;  // of a CTA of the attention kernel: three warpgroups of 64 rows

// A tensor: its memory and the strides of batch, head and token, in elements.
struct View {
  void* data;
  std::int64_t batch, head, token;
};

// What the main loop needs of a pass over a tile of keys beside the integers. A flagged tile has two passes: the first has the residual
// plane for values and does not count in the row sums.
struct alignas(32) PassScales {
  float key[4];  // of the keys with key % 8 / 2 = 0 ... 3
  float value;
  int last;     // 1, or 0: of the residual plane
  int flagged;  // the tile
  int unused;
};

// Tokens are padded with zeros to whole tiles. "Swizzled": 16-byte chunks stand where wgmma looks for them once the rows are copied to
// shared memory as they are.
struct Params {
  View query, key, value, out, lse;  // lse.data may be null
  int batch, heads, kv_heads, queries, keys;
  int query_tiles, key_tiles;  // of a head
  bool out_bf16;               // else f16
  float scale;
  Sample sample{0};  // of the keys and values
  Window window;
  Positions query_positions, key_positions;

  std::int8_t* query8;     // [batch, heads, 128 query_tiles, dim], rotated, swizzled; negated if scale is negative
  float* query_scale;      // [batch, heads, 128 query_tiles / 16, 8]
  float* correction;       // [batch, heads, 128 query_tiles]: q . centre
  void* centre;            // [batch, kv_heads, dim], in the type of the keys
  float* channels;         // [batch, kv_heads, dim]: λ
  std::int8_t* tiles;      // [batch, kv_heads, key_tiles]: keys [128, dim], then values [dim, 128], both swizzled
  std::int8_t* residuals;  // [batch, kv_heads, key_tiles, dim, 128], written where flagged
  PassScales* passes;      // [batch, kv_heads, key_tiles, 2]: the last pass, the residual's
  int2* ranges;            // [128 query_tiles]: the keys that a query sees
  int* items_taken;        // of the attention kernel's items, beyond the first of each CTA
};

// Launched in this order on one stream. query, key and value are bf16, or f16.
void quantise(const Params& params, int dim, bool bf16, cudaStream_t stream);
void attend(const Params& params, int dim, int processors, cudaStream_t stream);

}  // namespace chitu::cuda::sm90
