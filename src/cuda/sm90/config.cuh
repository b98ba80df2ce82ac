// SPDX-License-Identifier: Apache-2.0
// What the attention kernel of a recipe is made of: which products, which sums, how shared memory is divided. Everything follows from the
// recipe's fields; docs/kernels/sm90.md has the table. weights/softmax.cuh lists the members that the shared files read.
#pragma once

#include <cstddef>
#include <type_traits>

#include "chitu/method.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/params.h"
#include "cuda/sm90/kernels.h"
#include "cuda/weights/softmax.cuh"

namespace chitu::cuda::sm90 {

constexpr int most_shared_bytes = 232448;  // of a CTA
constexpr int out_bytes = 16 * 64 * 2;     // 64 channels of a warp's rows, on their way to memory

// The parameters are as kernels.h has them.
template <const Recipe& recipe, DType input_, int dim_, bool quantizes_queries_, bool padded_>
struct Config {
  static constexpr DType input = input_;
  using Input = std::conditional_t<input == DType::bf16, __nv_bfloat16, __half>;
  static constexpr int dim = dim_;
  static constexpr bool quantizes_queries = quantizes_queries_, padded = padded_;
  static constexpr Form form = sm90::form_of(recipe, dim);
  static constexpr bool by_tile = recipe.weights.by_tile;
  static constexpr float log2_top = log2_of(recipe.weights.top);

  static constexpr DType stored(const Quant& quant) { return quant.scaling == Scaling::none ? input : quant.type; }
  static constexpr DType score_type = stored(recipe.key);
  static constexpr DType value_type = stored(recipe.value) == DType::i8 ? DType::u8 : stored(recipe.value);  // with value_offset
  static constexpr DType weight_type = recipe.weights.type == DType::f32 ? input : recipe.weights.type;
  static_assert(weight_type == value_type);
  static constexpr bool integer_scores = score_type == DType::i8, integer_values = value_type == DType::u8;
  // The tensor cores add products with 16-bit values to the output. Other products take one addition for each number.
  static constexpr bool sums_in_place = form.value_bytes == 2;
  // That addition also rescales the output to a new reference: O = a O + P V.
  static constexpr bool folds = !sums_in_place && !integer_values;
  static constexpr bool splittable = form.splittable;
  // The reference may lag this many powers of two behind the maximum, if a weight's precision does not depend on its size.
  static constexpr float lag = splittable ? 8 : 0;

  static constexpr bool query_scales = recipe.query.scaling != Scaling::none;
  static constexpr bool key_scales = recipe.key.scaling != Scaling::none && !form.scale_each_key;
  static constexpr bool value_scales = recipe.value.scaling == Scaling::tile;
  static constexpr bool channel_scales = recipe.value.scaling != Scaling::none;
  static constexpr bool passes = key_scales || value_scales;  // tiles come with PassScales
  static constexpr bool corrections = recipe.key.centre != Centre::none;

  // Which of a row's weights are summed: the rounded ones, those before rounding, or both.
  static constexpr bool rounded_output = recipe.weights.output == Sum::rounded, rounded_lse = recipe.weights.lse == Sum::rounded;
  static constexpr bool rounded_sums = rounded_output || rounded_lse, unrounded_sums = !rounded_output || !rounded_lse;
  static_assert(!rounded_sums || integer_values, "sums of rounded weights are for integers");

  static constexpr int warpgroups = form.block_queries / 64, warps = 4 * warpgroups, consumers = 32 * warps, threads = consumers + 128;
  static_assert(warps <= most_warps);
  static constexpr int registers = warpgroups == 4 ? 112 : warpgroups == 3 ? 160 : 232, producer_registers = warpgroups == 2 ? 40 : 32;

  static constexpr int row_bytes = dim * form.score_bytes, panel = row_bytes < 128 ? row_bytes : 128, panels = row_bytes / panel;
  static constexpr int query_bytes = form.block_queries * row_bytes, key_bytes = form.key_bytes();
  static constexpr int block_bytes = quantizes_queries ? form.block_queries * dim * 2 : query_bytes;  // a block of queries as it is brought
  static constexpr int value_bytes = form.tile_bytes() - key_bytes;
  static constexpr int halves = dim == 256 ? 2 : 1, width = dim / halves;  // channels of a product with values
  // Products with the values of the first keys start while the weights of the others are computed. This is done only where registers allow
  // it and it pays.
  static constexpr bool early = dim == 64 && warpgroups == 3;
  // With four warpgroups, and a scale for each of a thread's two rows, the main loop reads some numbers again that it keeps elsewhere, and
  // finds a tile's maxima again from what its exponents had added.
  static constexpr bool short_of_registers = warpgroups == 4 && form.query_scale_rows == 1;
  static_assert(!short_of_registers || (by_tile && integer_scores));
  // The pipeline of weigh(), in pairs of keys; the numbers are measured (docs/kernels/sm90-log.md). A score is converted `converts_ahead`
  // and scaled `scales_ahead` pairs before its exponential, and its weight is packed `packs_behind` pairs after it. keep_order() holds this
  // order up to `ordered_pairs`, once every `order_step` pairs. Holding it takes registers while products are under way, so `early` holds
  // it in the first block only. Floating-point scores have fewer steps to put in order.
  static constexpr int converts_ahead = by_tile ? 9 : 8, scales_ahead = 8, packs_behind = by_tile ? 6 : 8;
  static constexpr int ordered_pairs = !early ? 32 : integer_scores ? 8 : 0, order_step = integer_scores ? 1 : 4;
  static_assert(scales_ahead <= converts_ahead);

  struct Item {
    float query_scale[query_scales ? form.block_queries / form.query_scale_rows : 4];
    float channels[channel_scales ? dim : 4];
    float correction[corrections ? form.block_queries : 4];
    std::uint16_t centre[quantizes_queries ? dim : 8];
    int2 range[form.block_queries];
    int4 share[warpgroups];  // tiles of a warpgroup: the first, the end, the first that every row sees in full, the end of these
    int4 what;               // rows (0: no more work), first tile, end of tiles; a piece's number among those of all split items, else -1
    std::int64_t out, lse;   // where its first row begins, in elements of the tensors
    int4 rows;               // in the tensors: batch entry, head, first row
    int4 queries;            // in the operands: its head's first tile, its head's tiles, its first row in the head, its row of ranges
    int4 keys;               // in the operands: its kv head, that head's first tile
  };

  // How shared memory is divided. The ring of tiles gets what the rest leaves.
  static constexpr int hadamard_bytes = quantizes_queries ? 64 * 128 : 128;
  static constexpr int fixed_bytes = warps * out_bytes + 2 * sizeof(Item) + hadamard_bytes + 1024;
  static constexpr int order_bytes = form.sorted ? tile_tokens : 0;
  static constexpr int stage_bytes =
      key_bytes + value_bytes + sizeof(PassScales) + (form.scale_each_key ? tile_tokens * 4 : 0) + order_bytes;
  static constexpr int room(int blocks) { return (most_shared_bytes - fixed_bytes - blocks * block_bytes) / stage_bytes; }
  // One slot for blocks is enough if the warpgroups quantise the queries, because it is free again soon after an item has begun.
  static constexpr int block_slots = !quantizes_queries && room(2) >= 2 ? 2 : 1, item_slots = quantizes_queries ? 2 : block_slots;
  static constexpr int key_slots = room(block_slots) > 6 ? 6 : room(block_slots) < 2 ? 1 : room(block_slots);
  // Keys and values of a tile come and go together, unless there is room for one tile only: then its keys are handed back earlier than its
  // values.
  static constexpr bool separate_value_barriers = key_slots == 1;
  static constexpr int value_slots = key_slots;
  static_assert(!quantizes_queries || (panels == 1 && 64 * row_bytes <= 4 * out_bytes && form.query_scale_rows == 1 && corrections));
  static_assert(!separate_value_barriers || !passes, "the main loop hands keys back before it reads PassScales");
  static_assert(!separate_value_barriers || !early, "the main loop waits for values after the weights");
  static_assert(!form.residuals || !unrounded_sums, "a residual plane must not count in the sums");

  struct Shared {
    alignas(1024) std::uint8_t block[block_slots][block_bytes];
    alignas(1024) std::uint8_t hadamard[hadamard_bytes];  // write_hadamard()
    alignas(1024) std::uint8_t key[key_slots][key_bytes];
    alignas(1024) std::uint8_t value[value_slots][value_bytes];
    alignas(1024) std::uint8_t out[warps][out_bytes];  // the epilogue's; with quantizes_queries it has INT8 queries until then
    float key_scale[form.scale_each_key ? key_slots : 1][form.scale_each_key ? tile_tokens : 4];
    PassScales scales[passes ? key_slots : 1];
    Item item[item_slots];
    std::uint64_t item_written[item_slots], query_full[item_slots], query_empty[item_slots], full[key_slots], empty[key_slots];
    std::uint64_t value_full[value_slots], value_empty[value_slots];  // only with separate_value_barriers
    std::uint64_t block_read;                                         // only with `quantizes_queries`
    alignas(16) std::uint8_t order[form.sorted ? key_slots : 1][form.sorted ? tile_tokens : 16];
  };
  static_assert(sizeof(Shared) <= most_shared_bytes, "more than a CTA may have");

  // The members of Shared as addresses.
  struct At {
    std::uint32_t base;
    __device__ std::uint32_t block(int i) const { return base + offsetof(Shared, block) + i * block_bytes; }
    __device__ std::uint32_t hadamard() const { return base + offsetof(Shared, hadamard); }
    // A warpgroup's queries, as wgmma reads them. Queries that the kernel has quantised itself lie in the epilogue's staging buffer, which
    // is free until the item ends.
    __device__ std::uint32_t query(int i, int warpgroup) const {
      return quantizes_queries ? out(4 * warpgroup) : block(i) + warpgroup * 64 * panel;
    }
    __device__ std::uint32_t key(int i) const { return base + offsetof(Shared, key) + i * key_bytes; }
    __device__ std::uint32_t value(int i) const { return base + offsetof(Shared, value) + i * value_bytes; }
    __device__ std::uint32_t key_scale(int i) const { return base + offsetof(Shared, key_scale) + i * sizeof(Shared::key_scale[0]); }
    __device__ std::uint32_t order(int i) const { return base + offsetof(Shared, order) + i * tile_tokens; }
    __device__ std::uint32_t scales(int i) const { return base + offsetof(Shared, scales) + i * sizeof(PassScales); }
    __device__ std::uint32_t item(int i) const { return base + offsetof(Shared, item) + i * sizeof(Item); }
    __device__ std::uint32_t out(int warp) const { return base + offsetof(Shared, out) + warp * out_bytes; }
    __device__ std::uint32_t item_written(int i) const { return base + offsetof(Shared, item_written) + i * 8; }
    __device__ std::uint32_t query_full(int i) const { return base + offsetof(Shared, query_full) + i * 8; }
    __device__ std::uint32_t query_empty(int i) const { return base + offsetof(Shared, query_empty) + i * 8; }
    __device__ std::uint32_t full(int i) const { return base + offsetof(Shared, full) + i * 8; }
    __device__ std::uint32_t empty(int i) const { return base + offsetof(Shared, empty) + i * 8; }
    __device__ std::uint32_t value_full(int i) const { return base + offsetof(Shared, value_full) + i * 8; }
    __device__ std::uint32_t value_empty(int i) const { return base + offsetof(Shared, value_empty) + i * 8; }
    __device__ std::uint32_t block_read() const { return base + offsetof(Shared, block_read); }
  };
};

// Slots of a ring, taken in turn, and the parity with which to wait for their barriers. first: the first parity. one_number: to save a
// register, one number counts through the ring twice.
template <int slots, std::uint32_t first, bool one_number = false>
struct Ring {
  static constexpr bool counts = slots <= 2;  // one number, too
  std::uint32_t at = 0, odd = 0;
  __device__ std::uint32_t slot() const { return one_number ? at >= slots ? at - slots : at : counts ? at & (slots - 1) : at; }
  __device__ std::uint32_t parity() const { return (one_number ? at >= slots : counts ? at / slots & 1 : odd) ^ first; }
  __device__ void advance() {
    if constexpr (one_number) {
      at = at + 1 == 2 * slots ? 0 : at + 1;
    } else if (counts || ++at == slots) {
      at = counts ? at + 1 : 0;
      odd ^= 1;
    }
  }
  // Tells the compiler that all threads agree, so that it uses uniform registers.
  __device__ void keep_uniform() {
    at = __shfl_sync(~0u, at, 0);
    if (!counts && !one_number) odd = __shfl_sync(~0u, odd, 0);
  }
};

}  // namespace chitu::cuda::sm90
