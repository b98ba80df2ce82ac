// SPDX-License-Identifier: Apache-2.0
// Repairs output rows that see a NaN or an infinity. It runs after the attention kernel.
//
// The quantisers stored zeros for a query or key that is not finite, and a zero for such a number of a value. This pass gives NaN or
// infinity to the rows that exact attention would give it to (docs/numerics.md, "NaN and infinity"), as cpu/nonfinite.cpp does. One thing
// differs: on a GPU the main loop has counted a non-finite key with the score of zeros. If all such keys of a row should have weighed
// nothing, the row is computed again in fp32, from the caller's tensors.
//
// A CTA takes one tile of queries of a head after another. It reads the flags of the head's tiles of keys, and finds the non-finite tokens
// of flagged tiles by reading these again. Each of its warps then goes over its own rows. For values it costs as much as reading the
// flagged tiles once for each tile of queries; only at the edges of a mask does a row look at single tokens. Rows that are computed again
// cost an attention on CUDA cores.
//
// Of operands that came quantised the numbers are no longer there, but NonFiniteTile says where they were. A row that sees such a key, or
// has such a query, becomes NaN, as on the CPU. Of values it says which channels have what in the tile as a whole: a row that sees only
// some of the tile's non-finite values gets NaN in these channels.
#include <algorithm>
#include <limits>

#include "common/numbers.h"
#include "common/score.h"
#include "cuda/launch.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;
constexpr int resident = 2;  // CTAs on a multiprocessor
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

// What becomes of a row of the output.
enum class RowState : int {
  as_it_is,
  again,    // computed again: the row sees non-finite keys, and all of them should have weighed nothing
  nothing,  // zeros: the query is not finite, and all its scores are -inf
  nan,
};

// Which channels of 8 hold NaN, +inf or -inf: a bit each.
struct Kinds {
  std::uint32_t nan = 0, above = 0, below = 0;
  __device__ void add(const Kinds& x) { nan |= x.nan, above |= x.above, below |= x.below; }
  __device__ bool any() const { return nan | above | below; }
};
// The same of all channels, a byte for each 8 of them.
struct KindsOfRow {
  std::uint32_t nan[max_dim / 32], above[max_dim / 32], below[max_dim / 32];
  __device__ Kinds of(int chunk) const {
    const int word = chunk / 4, shift = chunk % 4 * 8;
    return {nan[word] >> shift & 0xff, above[word] >> shift & 0xff, below[word] >> shift & 0xff};
  }
  __device__ void add_atomically(int chunk, const Kinds& x) {
    const int word = chunk / 4, shift = chunk % 4 * 8;
    if (x.nan) atomicOr(&nan[word], x.nan << shift);
    if (x.above) atomicOr(&above[word], x.above << shift);
    if (x.below) atomicOr(&below[word], x.below << shift);
  }
};

struct Shared {
  int begin, end;                          // the keys that any row sees
  std::uint32_t tokens[tile_tokens / 32];  // a bit for each key of a tile: 1 if it is not finite
  RowState rows[tile_tokens];              // of the queries
  KindsOfRow tile, kinds[tile_tokens];     // of a tile's values; of those that each row sees
  float query[warps][max_dim];             // of the row that a warp computes again
};

// A 16-byte chunk of a row: 8 numbers.
template <class T>
struct Chunk {
  uint4 words;

  __device__ explicit Chunk(const T* from) : words(*reinterpret_cast<const uint4*>(from)) {}
  __device__ float operator[](int i) const { return low<T>(word(words, i / 2) >> i % 2 * 16); }
  __device__ bool finite() const { return !has_nonfinite<T>(largest_sizes(words)); }
  __device__ Kinds kinds() const {
    Kinds found;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float x = (*this)[c];
      found.nan |= std::uint32_t{x != x} << c;
      found.above |= std::uint32_t{x == infinity} << c;
      found.below |= std::uint32_t{x == -infinity} << c;
    }
    return found;
  }
};

__device__ float warp_sum(float x) {
#pragma unroll
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

__device__ float warp_maximum(float x) {
#pragma unroll
  for (int i = 16; i; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
  return x;
}

// A tile of queries of a head, and the keys and values that they see. A member with a row as argument is called by a whole warp, for a row
// of its own. All threads of the CTA call the other members that run() calls.
template <class T>
class QueryTile {
 public:
  __device__ QueryTile(const Params& p, int index, Shared& shared)
      : p_(p),
        shared_(shared),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        chunks_(p.dim / 8),
        tile_(locate_tile<true>(p, index)),
        sequence_(sequence_layout(p, tile_.sequence)),
        first_(tile_.tile * tile_tokens),
        rows_(min(tile_tokens, sequence_.queries - first_)),
        kv_head_(tile_.head / (p.heads / p.kv_heads)),
        as_they_came_(!p.query_details && !p.key_details && !p.value_details),
        ranges_(p.ranges + first_ + (p.layouts ? std::int64_t{sequence_.query_tile} * tile_tokens : 0)) {}

  __device__ void run() const {
    if (!begin()) return;

    // Find the states of the rows: first from their queries, then from the keys that they see.
    if (p_.nonfinite_queries[tile_.index])
      for (int row = warp_; row < rows_; row += warps) query(row);
    for_flagged(p_.nonfinite_keys, [&](int tile) { see_keys(tile); });

    // Replace rows whose output changes as a whole.
    for (int row = warp_; row < rows_; row += warps) {
      const RowState what = state(row);
      if (what == RowState::nan || (what == RowState::again && !attend_again(row))) fill(row, nan, nan);
      if (what == RowState::nothing) fill(row, 0, -infinity);
    }

    // The attention kernel left non-finite numbers of values out. Add them to the other rows.
    for_flagged(p_.nonfinite_values, [&](int tile) { see_values(tile); });
    for (int row = warp_; row < rows_; row += warps)
      if (state(row) < RowState::nothing) add_nonfinite(row);
  }

 private:
  // Prepares `shared`. True if any row sees any key.
  __device__ bool begin() const {
    __syncthreads();  // no thread needs the tile before any more
    if (threadIdx.x == 0) shared_.begin = std::numeric_limits<int>::max(), shared_.end = 0;
    if (threadIdx.x < tile_tokens) shared_.rows[threadIdx.x] = RowState::as_it_is, shared_.kinds[threadIdx.x] = {};
    __syncthreads();
    if (threadIdx.x < rows_)
      if (const int2 seen = ranges_[threadIdx.x]; seen.x < seen.y) {
        atomicMin(&shared_.begin, seen.x);
        atomicMax(&shared_.end, seen.y);
      }
    __syncthreads();
    return shared_.begin < shared_.end;
  }

  __device__ RowState state(int row) const { return shared_.rows[row]; }
  __device__ void set(int row, RowState what) const {  // of a row of this warp
    __syncwarp();
    if (lane_ == 0) shared_.rows[row] = what;
    __syncwarp();
  }

  __device__ const T* query_row(int row) const {
    return static_cast<const T*>(p_.query.data) + query_offset(p_.query, sequence_, tile_.head, first_ + row);
  }
  __device__ const T* key_row(const View& x, int key) const {  // or a value's
    return static_cast<const T*>(x.data) + key_offset(x, sequence_, kv_head_, key);
  }
  __device__ std::uint16_t* out_row(int row) const {
    return static_cast<std::uint16_t*>(p_.out.data) + query_offset(p_.out, sequence_, tile_.head, first_ + row);
  }
  __device__ std::uint16_t out_bits(float x) const { return p_.out_bf16 ? f32_to_bf16(x) : f32_to_f16(x); }
  __device__ float out_number(std::uint16_t bits) const { return p_.out_bf16 ? bf16_to_f32(bits) : f16_to_f32(bits); }

  // Of the head, among all.
  __device__ std::int64_t first_key_tile() const {
    return std::int64_t{sequence_.key_tile} * p_.kv_heads + std::int64_t{kv_head_} * tiles_of(sequence_.keys);
  }

  // Calls visit(tile) for each flagged tile of keys that some row sees; tile: its first token.
  template <class Visit>
  __device__ void for_flagged(const std::uint8_t* flags, Visit visit) const {
    flags += first_key_tile();
    for (int first = shared_.begin / tile_tokens; first * tile_tokens < shared_.end; first += 32) {
      const int mine = first + lane_;
      unsigned flagged = __ballot_sync(~0u, mine * tile_tokens < shared_.end && flags[mine]);
      for (; flagged; flagged &= flagged - 1) visit((first + __ffs(flagged) - 1) * tile_tokens);
    }
  }

  // States of the rows that see non-finite keys of a tile. Once all rows are decided, no tile is looked at any more.
  __device__ void see_keys(int tile) const {
    __syncthreads();  // states of the tile before are written
    if (!__syncthreads_or(threadIdx.x < rows_ && state(threadIdx.x) < RowState::nothing)) return;
    find<false>(tile, p_.key, p_.key_details);
    for (int row = warp_; row < rows_; row += warps)
      for_tokens(row, tile, [&](int key) {
        if (state(row) < RowState::nothing) set(row, as_they_came_ && weighs_nothing(row, key) ? RowState::again : RowState::nan);
      });
  }

  // What the rows see of a tile's non-finite values. A row that sees the whole tile takes what the tile has as a whole: the sum over all
  // rows then costs as much as reading the values, not the number of rows times the number of such values.
  __device__ void see_values(int tile) const {
    find<true>(tile, p_.value, p_.value_details);
    const int end = min(tile + tile_tokens, sequence_.keys);
    for (int row = warp_; row < rows_; row += warps) {
      const int2 seen = ranges_[row];
      Kinds found;
      if (seen.x <= tile && seen.y >= end)
        found = shared_.tile.of(lane_);
      else if (p_.value_details)
        found = of_some(row, tile);
      else
        for_tokens(row, tile, [&](int key) {
          if (lane_ < chunks_) found.add(Chunk<T>(key_row(p_.value, key) + lane_ * 8).kinds());
        });
      if (found.any()) shared_.kinds[row].add_atomically(lane_, found);
    }
  }

  // Of values that came quantised, to a row that sees a part of the tile.
  __device__ Kinds of_some(int row, int tile) const {
    int seen = 0, all = 0;
    for_tokens(row, tile, [&](int) { ++seen; });
    for (int word = 0; word < tile_tokens / 32; ++word) all += __popc(shared_.tokens[word]);
    Kinds found = shared_.tile.of(lane_);
    if (seen == 0) return {};
    if (seen < all) found.nan |= found.above | found.below;
    return found;
  }

  // Calls visit(key) for each of Shared::tokens that a row sees. The row's warp calls it.
  template <class Visit>
  __device__ void for_tokens(int row, int tile, Visit visit) const {
    const int2 seen = ranges_[row];
    for (int word = 0; word < tile_tokens / 32; ++word)
      for (unsigned tokens = shared_.tokens[word]; tokens; tokens &= tokens - 1) {
        const int key = tile + word * 32 + __ffs(tokens) - 1;
        if (key >= seen.x && key < seen.y) visit(key);
      }
  }

  // Fills Shared::tokens, and with_kinds Shared::tile, for the tile whose first token is `tile`.
  template <bool with_kinds>
  __device__ void find(int tile, const View& x, const NonFiniteTile* details) const {
    __syncthreads();  // no thread needs the tile before any more
    if (details) {    // it came quantised
      const NonFiniteTile& from = details[first_key_tile() + tile / tile_tokens];
      const int i = static_cast<int>(threadIdx.x);
      if (i < tile_tokens / 32) shared_.tokens[i] = from.tokens[i];
      if (with_kinds && i < max_dim / 32)
        shared_.tile.nan[i] = from.nan[i], shared_.tile.above[i] = from.above[i], shared_.tile.below[i] = from.below[i];
      __syncthreads();
      return;
    }
    if (threadIdx.x < tile_tokens / 32) shared_.tokens[threadIdx.x] = 0;
    if (with_kinds && threadIdx.x == 0) shared_.tile = {};
    __syncthreads();
    const int count = min(tile_tokens, sequence_.keys - tile) * chunks_;
#pragma unroll 2
    for (int i = threadIdx.x; i < count; i += threads) {
      const int token = i / chunks_;
      const Chunk<T> chunk(key_row(x, tile + token) + i % chunks_ * 8);
      if (chunk.finite()) continue;
      atomicOr(&shared_.tokens[token / 32], 1u << token % 32);
      if (with_kinds) shared_.tile.add_atomically(i % chunks_, chunk.kinds());
    }
    __syncthreads();
  }

  // Finds the state of a row from its query, in a tile with non-finite queries.
  __device__ void query(int row) const {
    const int2 seen = ranges_[row];
    if (seen.x >= seen.y) return;
    bool finite = true;
    if (p_.query_details)
      finite = !(p_.query_details[tile_.index].tokens[row / 32] >> row % 32 & 1);
    else if (lane_ < chunks_)
      finite = Chunk<T>(query_row(row) + lane_ * 8).finite();
    if (__all_sync(~0u, finite)) return;
    if (!as_they_came_) return set(row, RowState::nan);
    int key = seen.x;
    while (key < seen.y && weighs_nothing(row, key)) ++key;
    set(row, key == seen.y ? RowState::nothing : RowState::nan);
  }

  __device__ ScorePlace score_place(int row, int key) const {
    const Positions &queries = sequence_.query_positions, &keys = sequence_.key_positions;
    return {tile_.head, queries.first + (first_ + row) * queries.step, keys.first + key * keys.step, keys.step};
  }

  // Whether the score is -inf.
  __device__ bool weighs_nothing(int row, int key) const {
    float sum = 0;
    if (lane_ < chunks_) {
      const Chunk<T> q(query_row(row) + lane_ * 8), k(key_row(p_.key, key) + lane_ * 8);
#pragma unroll
      for (int c = 0; c < 8; ++c) sum += q[c] * k[c];
    }
    return changed_score(p_.scale * warp_sum(sum), 1.f, score_place(row, key)) == -infinity;
  }

  // Computes a row again: softmax(scale * query . key) value, without numbers of values that are not finite. False if a score is NaN or
  // +inf. It takes 32 keys at a time. First each lane computes the score of one key. Then `groups` keys are added at once, each by a group
  // of lanes, of which every lane has a chunk of the key's value.
  __device__ bool attend_again(int row) const {
    float* query = shared_.query[warp_];
    __syncwarp();
    if (lane_ < chunks_) {
      const Chunk<T> q(query_row(row) + lane_ * 8);
#pragma unroll
      for (int c = 0; c < 8; ++c) query[lane_ * 8 + c] = q[c];
    }
    __syncwarp();
    const int groups = 32 / chunks_, group = lane_ / chunks_, chunk = lane_ % chunks_;
    const int2 seen = ranges_[row];
    float maximum = -infinity, sum = 0, out[8] = {};
    for (int first = seen.x; first < seen.y; first += 32) {
      const int key = first + lane_;
      const float score = key < seen.y ? changed_score(p_.scale * dot(query, key_row(p_.key, key)), 1.f, score_place(row, key)) : -infinity;
      if (!__all_sync(~0u, score < infinity)) return false;
      const float now = fmaxf(maximum, warp_maximum(score));
      if (now == -infinity) continue;
      const float weight = expf(score - now), keep = expf(maximum - now);
      maximum = now;
      sum = sum * keep + warp_sum(weight);
#pragma unroll
      for (float& x : out) x *= keep;
      const int count = min(32, seen.y - first);
      for (int i = 0; i < count; i += groups) {
        const float w = __shfl_sync(~0u, weight, min(i + group, 31));
        if (group >= groups || i + group >= count) continue;
        const Chunk<T> v(key_row(p_.value, first + i + group) + chunk * 8);
#pragma unroll
        for (int c = 0; c < 8; ++c) out[c] += is_finite(v[c]) ? w * v[c] : 0;
      }
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) {  // joins the groups, in their order
      const float one = out[c];
      for (int g = 1; g < groups; ++g) out[c] += __shfl_sync(~0u, one, g * chunks_ + chunk);
      // A weighted mean of finite values is finite, in the output's type too.
      const float most = p_.out_bf16 ? largest(DType::bf16) : largest(DType::f16), mean = sum == 0 ? 0 : out[c] / sum;
      out[c] = fabsf(mean) > most ? copysignf(most, mean) : mean;
    }
    store(row, out, sum == 0 ? -infinity : maximum + logf(sum));
    return true;
  }

  __device__ float dot(const float* query, const T* key) const {
    float sum = 0;
    for (int i = 0; i < p_.dim; i += 8) {
      const Chunk<T> k(key + i);
#pragma unroll
      for (int c = 0; c < 8; ++c) sum += query[i + c] * k[c];
    }
    return sum;
  }

  // Adds to a row what it sees of non-finite values.
  __device__ void add_nonfinite(int row) const {
    __syncwarp();  // its kinds are written
    if (lane_ >= chunks_) return;
    const Kinds seen = shared_.kinds[row].of(lane_);
    if (!seen.any()) return;
    std::uint16_t* out = out_row(row) + lane_ * 8;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const bool is_nan = (seen.nan | (seen.above & seen.below)) >> c & 1;
      const float added = is_nan ? nan : seen.above >> c & 1 ? infinity : -infinity;
      if (is_nan || (seen.above | seen.below) >> c & 1) out[c] = out_bits(out_number(out[c]) + added);
    }
  }

  __device__ void fill(int row, float value, float lse) const {
    const float out[8] = {value, value, value, value, value, value, value, value};
    store(row, out, lse);
  }

  // Stores a row. Lane i < chunks has its i-th 8 numbers.
  __device__ void store(int row, const float (&x)[8], float lse) const {
    if (lane_ < chunks_) {
      std::uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) words[w] = out_bits(x[2 * w]) | std::uint32_t{out_bits(x[2 * w + 1])} << 16;
      *reinterpret_cast<uint4*>(out_row(row) + lane_ * 8) = make_uint4(words[0], words[1], words[2], words[3]);
    }
    if (lane_ == 0 && p_.lse.data) static_cast<float*>(p_.lse.data)[query_offset(p_.lse, sequence_, tile_.head, first_ + row)] = lse;
  }

  const Params& p_;
  Shared& shared_;
  const int lane_, warp_, chunks_;
  const TileLocation tile_;
  const SequenceLayout sequence_;
  const int first_, rows_, kv_head_;  // first query; queries here
  const bool as_they_came_;           // no operand came quantised: scores are known, and rows can be computed again
  const int2* const ranges_;          // of the tile's rows
};

template <class T>
__global__ void __launch_bounds__(threads, resident) nonfinite_kernel(const __grid_constant__ Params p) {
  ptx::wait_for_previous();
  if (*p.any_nonfinite == 0) return;
  __shared__ Shared shared;
  for (int i = blockIdx.x; i < query_tile_count(p) * p.heads; i += gridDim.x) QueryTile<T>(p, i, shared).run();
}

}  // namespace

void spoil_nonfinite(const Params& p, bool bf16, int processors, cudaStream_t stream) {
  // Starts no more CTAs than run at once, because every call would pay for more, and most have no such tokens.
  const auto blocks = static_cast<unsigned>(std::min(p.query_tiles * p.heads, resident * processors));
  launch(bf16 ? nonfinite_kernel<__nv_bfloat16> : nonfinite_kernel<__half>, {.blocks = blocks, .threads = threads, .overlaps = true},
         stream, p);
}

}  // namespace chitu::cuda
