// SPDX-License-Identifier: Apache-2.0
// The direct kernel: attention on 16-bit queries, keys and values as the caller's tensors have them. No pass stores them anew, and nothing
// has a scale. So its main loop is apart from that of the quantised recipes: it may choose its tiles, and start a tile's scores before the
// values of the tile before are multiplied. docs/kernels/sm90.md, "The direct kernel", has the schedule and why the shapes are as they are.
#pragma once

#include <cstddef>
#include <type_traits>

#include "common/visible.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/params.h"
#include "cuda/sm90/direct/kernels.h"
#include "cuda/weights/softmax.cuh"

namespace chitu::cuda::sm90::direct {

template <DType input_, int dim_, Shape shape>
struct Config {
  static constexpr DType input = input_;
  static constexpr int dim = dim_, keys = shape.keys;
  static constexpr bool overlaps = shape.overlaps;
  using Input = std::conditional_t<input == DType::bf16, __nv_bfloat16, __half>;

  static constexpr int warpgroups = shape.warpgroups, warps = 4 * warpgroups, consumers = 32 * warps, threads = consumers + 128;
  static constexpr int registers = warpgroups == 2 ? 232
                                   : dim > 96      ? 160
                                                   : 152,
                       producer_registers = warpgroups == 2 ? 40
                                            : dim > 96      ? 32
                                                            : 56;
  static_assert(warps <= most_warps);

  // What weights/ reads of a Config: nothing is quantised, and the output has all channels in one part.
  static constexpr int halves = 1, width = dim;
  static constexpr bool integer_values = false, rounded_sums = false, unrounded_sums = true;
  static constexpr float lag = 8;

  // Operands lie in panels of 64 channels: rows of 128 bytes, swizzled. Channels behind the tensors' dim are zeros.
  static constexpr int rows = 64 * warpgroups, panels = (dim + 63) / 64, key_panel = keys * 128, query_panel = rows * 128;
  static constexpr int query_bytes = panels * query_panel, tile_bytes = panels * key_panel;  // of keys, and of values
  static_assert(dim % 16 == 0 && keys % 16 == 0 && key_panel % 1024 == 0);

  // An item as the producer describes it.
  struct Item {
    int4 share[warpgroups];  // tiles of a warpgroup: the first, the end, the first that every row sees in full, the end of these
    int4 what;               // rows (0: no more work), first tile, end of tiles; a piece's number among those of all split items, else -1
    int4 place;              // sequence, query head, first row in the sequence, the sequence's queries
    int4 source;             // in the tensors: batch entry, kv head, first key, first query
    int4 number;             // how many items the CTA has had before it
  };

  // How shared memory is divided: two blocks of queries if two tiles still fit, and as many tiles as the rest holds.
  static constexpr int most_shared = 232448, fixed_bytes = 2 * sizeof(Item) + rows * 8 + 256 + 1024;
  static constexpr int room(int blocks) { return (most_shared - fixed_bytes - blocks * query_bytes) / (2 * tile_bytes); }
  static constexpr int query_slots = room(2) >= 2 ? 2 : 1, slots = room(query_slots) >= 4 ? 4 : room(query_slots) >= 2 ? 2 : 0;
  static_assert(slots >= 2, "a tile's keys are brought while the tile before is in use");

  struct Shared {
    alignas(1024) std::uint8_t query[query_slots][query_bytes];
    alignas(1024) std::uint8_t key[slots][tile_bytes];
    alignas(1024) std::uint8_t value[slots][tile_bytes];
    Item item[2];
    int2 range[rows];  // the keys that a row sees; a warp writes and reads those of its own rows
    std::uint64_t item_written[2], item_empty[2], query_full[query_slots], query_empty[query_slots];
    std::uint64_t key_full[slots], key_empty[slots], value_full[slots], value_empty[slots];
  };
  static_assert(sizeof(Shared) <= most_shared, "more than a CTA may have");

  // Items, blocks and tiles are counted from the kernel's start. They go round their slots, of which there are 1, 2 or 4, and a barrier of
  // a slot flips its parity once a round.
  template <int count>
  struct Ring {
    static __device__ std::uint32_t slot(std::uint32_t number) { return number & (count - 1); }
    static __device__ std::uint32_t parity(std::uint32_t number) { return number / count & 1; }
  };
  using Items = Ring<2>;
  using Blocks = Ring<query_slots>;
  using Tiles = Ring<slots>;

  // The members of Shared as addresses.
  struct At {
    std::uint32_t base;
    __device__ std::uint32_t query(int i) const { return base + offsetof(Shared, query) + i * query_bytes; }
    __device__ std::uint32_t key(int i) const { return base + offsetof(Shared, key) + i * tile_bytes; }
    __device__ std::uint32_t value(int i) const { return base + offsetof(Shared, value) + i * tile_bytes; }
    __device__ std::uint32_t item(int i) const { return base + offsetof(Shared, item) + i * sizeof(Item); }
    __device__ std::uint32_t range() const { return base + offsetof(Shared, range); }
    __device__ std::uint32_t item_written(int i) const { return base + offsetof(Shared, item_written) + i * 8; }
    __device__ std::uint32_t item_empty(int i) const { return base + offsetof(Shared, item_empty) + i * 8; }
    __device__ std::uint32_t query_full(int i) const { return base + offsetof(Shared, query_full) + i * 8; }
    __device__ std::uint32_t query_empty(int i) const { return base + offsetof(Shared, query_empty) + i * 8; }
    __device__ std::uint32_t key_full(int i) const { return base + offsetof(Shared, key_full) + i * 8; }
    __device__ std::uint32_t key_empty(int i) const { return base + offsetof(Shared, key_empty) + i * 8; }
    __device__ std::uint32_t value_full(int i) const { return base + offsetof(Shared, value_full) + i * 8; }
    __device__ std::uint32_t value_empty(int i) const { return base + offsetof(Shared, value_empty) + i * 8; }
  };
};

// The range of keys that a query of a sequence sees. Every row's range begins and ends no earlier than that of the row before.
__device__ inline int2 range_of(const Params& p, int sequence, int query) {
  const SequenceLayout& s = p.layouts ? p.layouts[sequence] : p.same;
  const Range seen = visible(p.window, s.query_positions.first + query * s.query_positions.step, s.key_positions, s.keys);
  return make_int2(static_cast<int>(seen.begin), static_cast<int>(seen.end));
}

}  // namespace chitu::cuda::sm90::direct
