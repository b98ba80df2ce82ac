// SPDX-License-Identifier: Apache-2.0
// Writes the table of a call's sequences, if they are not all alike, before all other kernels; from starts in GPU memory, if they are
// there.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/params.h"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {

constexpr int layouts_at_once = 56;

// A part of the table, as the argument of a kernel: the launch copies it, so the host's memory need not live on.
struct LayoutsPart {
  SequenceLayout* to;
  int count;
  SequenceLayout layouts[layouts_at_once];
};
static_assert(sizeof(LayoutsPart) <= 4096, "the arguments of a kernel");

__global__ void __launch_bounds__(layouts_at_once) write_layouts_kernel(const __grid_constant__ LayoutsPart part) {
  if (threadIdx.x < part.count) part.to[threadIdx.x] = part.layouts[threadIdx.x];
}

constexpr int length_threads = 256;

// Replaces the values of the CTA's threads by their sums, or with `largest` by their maxima, of this and all threads before it. Returns
// that of all threads.
template <bool largest>
__device__ int scan(int& value, int (&shared)[2][length_threads]) {
  const int thread = static_cast<int>(threadIdx.x);
  int from = 0;
  shared[0][thread] = value;
  __syncthreads();
  for (int distance = 1; distance < length_threads; distance *= 2, from ^= 1) {
    const int other = thread >= distance ? shared[from][thread - distance] : largest ? value : 0;
    value = largest ? max(value, other) : value + other;
    shared[from ^ 1][thread] = value;
    __syncthreads();
  }
  const int all = shared[from][length_threads - 1];
  __syncthreads();
  return all;
}

// Where sequence `first` + thread lies. Starts are made to stay within the tensor and never to fall. `before`: the largest start of the
// sequences before `first`; it becomes that of these, too.
struct Bounds {
  int begin, length;
};
__device__ Bounds bounds_of(const std::int32_t* starts, int tokens, int longest, int first, int sequences, int& before,
                            int (&shared)[2][length_threads]) {
  const int i = first + static_cast<int>(threadIdx.x);
  const auto start = [&](int at) { return min(max(starts[min(at, sequences)], 0), tokens); };
  int begin = start(i);
  const int largest = scan<true>(begin, shared);
  begin = max(begin, before);
  before = max(before, largest);
  return {begin, i < sequences ? min(max(start(i + 1) - begin, 0), longest) : 0};
}

// Chooses the split of `items` items, which see `tiles` tiles on average and `longest` at most: split_items(), by the threads of a warp.
__device__ Split split_by_warp(const Splitting& splitting) {
  const int pieces = static_cast<int>(threadIdx.x % 32) + 1;
  Split best{static_cast<int>(splitting.items), 1};
  double least = splitting.limit();
  for (std::int64_t whole = splitting.most_whole(); whole >= splitting.least_whole(); whole -= splitting.processors) {
    const double own = pieces == 1 ? least : splitting.time_of(whole, pieces);
    double first = own;
#pragma unroll
    for (int n = 16; n; n /= 2) first = fmin(first, __shfl_xor_sync(~0u, first, n));
    const unsigned those = __ballot_sync(~0u, own == first);
    if (first < least) least = first, best = {static_cast<int>(whole), __ffs(static_cast<int>(those))};
  }
  return best;
}
static_assert(most_pieces == 32, "a thread of a warp for each number of pieces");

// What split_by_warp() must know of the blocks.
struct Seen {
  unsigned long long tiles, blocks;
  int longest;
};

// The CTA looks at the blocks of all sequences, a warp at those of one.
__device__ void look_at_blocks(const Lengths& p, Seen& seen) {
  if (threadIdx.x == 0) seen = {};
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) / 32; i < p.sequences; i += length_threads / 32) {
    const SequenceLayout s = p.layouts[i];
    const int blocks = (s.queries + p.block_queries - 1) / p.block_queries, step = block_step(blocks),
              block = blocks - 1 - static_cast<int>(threadIdx.x % 32) * step;
    if (block < 0) continue;
    const int tiles = tiles_of_block(p.window, s, block, p.block_queries);
    atomicAdd(&seen.tiles, static_cast<unsigned long long>(tiles) * step);
    atomicAdd(&seen.blocks, static_cast<unsigned long long>(step));
    atomicMax(&seen.longest, tiles);
  }
  __syncthreads();
}
static_assert(blocks_looked_at == 32, "a thread of a warp for each block");

// Chooses in which order the sequences' blocks are taken, as layouts_of() does. Returns how many blocks a head has.
__device__ int order_blocks(const Lengths& p, int (&shared)[2][length_threads]) {
  static_assert(most_ordered == length_threads);
  const int thread = static_cast<int>(threadIdx.x);
  const bool ordered = p.sequences <= most_ordered;
  const int keys = ordered && thread < p.sequences ? p.layouts[thread].keys : 0;  // its own
  __syncthreads();                                                                // all lengths are written
  shared[0][thread] = keys;
  __syncthreads();
  if (ordered && thread < p.sequences) {
    int before = 0;
    for (int i = 0; i < p.sequences; ++i) before += shared[0][i] > keys || (shared[0][i] == keys && i < thread);
    p.layouts[before].taken = thread;
  }
  __syncthreads();
  int blocks = 0;
  for (int first = 0; first < p.sequences; first += length_threads) {
    const int i = first + thread;
    int own = 0;
    if (i < p.sequences) {
      if (!ordered) p.layouts[i].taken = i;
      own = (p.layouts[ordered ? p.layouts[i].taken : i].queries + p.block_queries - 1) / p.block_queries;
    }
    int sum = own;
    const int all = scan<false>(sum, shared);
    if (i < p.sequences) p.layouts[i].block = blocks + sum - own;
    blocks += all;
  }
  return blocks;
}

// One CTA completes the table.
__global__ void __launch_bounds__(length_threads) read_lengths_kernel(const __grid_constant__ Lengths p) {
  __shared__ int shared[2][length_threads];
  __shared__ Seen seen;
  int queries_before = 0, keys_before = 0, query_tiles = 0, key_tiles = 0;
  for (int first = 0; first < p.sequences; first += length_threads) {
    const int i = first + static_cast<int>(threadIdx.x);
    Bounds query{}, key{};
    if (p.key_lengths) {
      query.length = i < p.sequences ? p.layouts[i].queries : 0;
      key.length = i < p.sequences ? min(max(p.key_lengths[i], 0), p.max_keys) : 0;
    } else {
      query = bounds_of(p.query_starts, p.queries, p.max_queries, first, p.sequences, queries_before, shared);
      key = bounds_of(p.key_starts, p.keys, p.max_keys, first, p.sequences, keys_before, shared);
    }
    const int own[2] = {tiles_of(query.length), tiles_of(key.length)};
    int sums[2] = {own[0], own[1]};
    const int all[2] = {scan<false>(sums[0], shared), scan<false>(sums[1], shared)};
    if (i < p.sequences) {
      SequenceLayout& s = p.layouts[i];
      s.query_begin = query.begin, s.queries = query.length;
      s.key_begin = key.begin, s.keys = key.length;
      s.query_tile = query_tiles + sums[0] - own[0];
      s.key_tile = key_tiles + sums[1] - own[1];
      const Positions& keys = s.key_positions;
      if (p.last_at_last_key) s.query_positions = {keys.first + (std::int64_t{key.length} - query.length) * keys.step, keys.step};
    }
    query_tiles += all[0], key_tiles += all[1];
  }
  const int blocks = order_blocks(p, shared);
  if (threadIdx.x == 0) {
    SequenceLayout& end = p.layouts[p.sequences];
    end.query_tile = query_tiles, end.key_tile = key_tiles, end.block = blocks;
  }
  if (!p.split) return;
  const std::int64_t items = std::int64_t{blocks} * p.heads;
  Split split{static_cast<int>(items), 1};
  if (!never_split(false, items, p.processors)) {
    __syncthreads();
    look_at_blocks(p, seen);
    const double tiles = seen.blocks ? static_cast<double>(seen.tiles) / static_cast<double>(seen.blocks) : 0;
    if (threadIdx.x < 32) split = split_by_warp({items, tiles, static_cast<double>(seen.longest), p.processors});
  }
  if (threadIdx.x == 0) *p.split = split;
}

// Counters of items and pieces, for kernels that no quantizer prepares.
__global__ void __launch_bounds__(256) clear_counters_kernel(const __grid_constant__ QuantizeParams p) {
  ptx::let_next_start();
  ptx::wait_for_previous();
  if (threadIdx.x == 0) *p.items_taken = 0;
  for (int i = threadIdx.x; i < p.split_items * most_warps; i += 256) p.pieces_done[i] = 0;
}

}  // namespace

void read_lengths(const Lengths& lengths, cudaStream_t stream) {
  launch(read_lengths_kernel, {.blocks = 1, .threads = length_threads}, stream, lengths);
}

void clear_counters(const QuantizeParams& params, cudaStream_t stream) {
  launch(clear_counters_kernel, {.blocks = 1, .threads = 256, .overlaps = true}, stream, params);
}

void write_layouts(const SequenceLayout* layouts, int count, SequenceLayout* to, cudaStream_t stream) {
  for (int first = 0; first < count; first += layouts_at_once) {
    LayoutsPart part{to + first, std::min(count - first, layouts_at_once), {}};
    std::copy_n(layouts + first, part.count, part.layouts);
    launch(write_layouts_kernel, {.blocks = 1, .threads = layouts_at_once}, stream, part);
  }
}

}  // namespace chitu::cuda
