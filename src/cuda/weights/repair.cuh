// SPDX-License-Identifier: Apache-2.0
// Rows of a kernel that reads 16-bit operands as they are, which have come out as NaN or infinity. Either they see a token that is not
// finite, and get what exact attention gives them (docs/numerics.md, "NaN and infinity"); or a value beside theirs in a tile was not
// finite, and its weight of 0 did not hide it; or a sum has left fp32's range. All are computed again in fp32 from the caller's tensors.
#pragma once

#include <limits>

#include "common/numbers.h"
#include "common/score.h"
#include "cuda/operands/numbers.cuh"
#include "cuda/params.h"
#include "cuda/weights/softmax.cuh"

namespace chitu::cuda {

// Eight channels of a row in memory.
template <class T>
struct Eight {
  uint4 words;
  __device__ explicit Eight(const T* from) : words(*reinterpret_cast<const uint4*>(from)) {}
  __device__ float operator[](int i) const { return low<T>(word(words, i / 2) >> i % 2 * 16); }
};

// scale * query . key, by one thread.
template <class T>
__device__ inline float score_of(const Params& p, const T* query, const T* key) {
  float sum = 0;
  for (int i = 0; i < p.dim; i += 8) {
    const Eight<T> q(query + i), k(key + i);
#pragma unroll
    for (int c = 0; c < 8; ++c) sum = fmaf(q[c], k[c], sum);
  }
  return p.scale * sum;
}

// Of 8 channels of an output: a bit for each that sees NaN, +infinity, -infinity.
struct Seen {
  unsigned nan = 0, above = 0, below = 0;
  __device__ void add(int channel, float x) {
    nan |= unsigned{x != x} << channel;
    above |= unsigned{x == infinity} << channel;
    below |= unsigned{x == -infinity} << channel;
  }
};

// A warp computes a row of the output and its log-sum-exp again. query: in the sequence. range: the keys that it sees. 32 keys at a time:
// each lane computes the score of one; then `groups` keys are added at once, each by a group of lanes, of which every lane has 8 channels.
template <class C>
__device__ __noinline__ void repair(const Params& p, int sequence, int head, int query, int2 range) {
  using T = typename C::Input;
  const SequenceLayout s = sequence_layout(p, sequence);
  const int lane = static_cast<int>(threadIdx.x) % 32, kv_head = head / (p.heads / p.kv_heads);
  const int chunks = p.dim / 8, groups = 32 / chunks, group = lane / chunks, channel = lane % chunks * 8;
  const auto row_of = [&](const View& x, int key) { return static_cast<const T*>(x.data) + key_offset(x, s, kv_head, key); };
  const T* const q = static_cast<const T*>(p.query.data) + query_offset(p.query, s, head, query);
  const std::int64_t position = s.query_positions.first + query * s.query_positions.step, step = s.key_positions.step;

  // Softmax, without numbers of values that are not finite.
  float maximum = -infinity, sum = 0, out[8] = {};
  Seen seen;
  bool lost = false;  // a score is NaN or +infinity
  for (int first = range.x; first < range.y && !lost; first += 32) {
    const int key = first + lane, count = min(32, range.y - first);
    float score = -infinity;
    if (lane < count)
      score = changed_score(score_of(p, q, row_of(p.key, key)), 1.f, ScorePlace{head, position, s.key_positions.first + key * step, step});
    lost = __any_sync(~0u, !(score < infinity));
    float now = score;
    for (int i = 16; i; i /= 2) now = fmaxf(now, __shfl_xor_sync(~0u, now, i));
    now = fmaxf(now, maximum);
    const float weight = now == -infinity ? 0.f : expf(score - now), keep = now == -infinity ? 1.f : expf(maximum - now);
    maximum = now;
    float weights = weight;
    for (int i = 16; i; i /= 2) weights += __shfl_xor_sync(~0u, weights, i);
    sum = sum * keep + weights;
    for (float& x : out) x *= keep;
    for (int i = 0; i < count; i += groups) {
      const float w = __shfl_sync(~0u, weight, min(i + group, 31));
      if (group >= groups || i + group >= count) continue;
      const Eight<T> v(row_of(p.value, first + i + group) + channel);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        out[c] += is_finite(v[c]) ? w * v[c] : 0.f;
        seen.add(c, v[c]);
      }
    }
  }

  // A query that is not finite, all of whose scores are -infinity, gets zeros, whatever the values are.
  bool finite = true;
  if (lane < chunks) {
    const Eight<T> x(q + lane * 8);
#pragma unroll
    for (int c = 0; c < 8; ++c) finite &= is_finite(x[c]);
  }
  if (__any_sync(~0u, !finite)) seen = {};

  // Join the groups in their order, normalise, add what is not finite. A mean of finite values is finite, in the output's type too.
  std::uint32_t words[4] = {};
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const float one = out[c];
    const unsigned kinds = (seen.nan >> c & 1) | (seen.above >> c & 1) << 1 | (seen.below >> c & 1) << 2;
    unsigned all = kinds;
    for (int g = 1; g < groups; ++g) {
      out[c] += __shfl_sync(~0u, one, (g * chunks + lane) & 31);
      all |= __shfl_sync(~0u, kinds, (g * chunks + lane) & 31);
    }
    const float most = p.out_bf16 ? largest(DType::bf16) : largest(DType::f16), mean = sum == 0 ? 0.f : out[c] / sum;
    float x = fabsf(mean) > most ? copysignf(most, mean) : mean;
    if (all & 2) x = infinity;
    if (all & 4) x = all & 2 ? std::numeric_limits<float>::quiet_NaN() : -infinity;
    if (lost || all & 1) x = std::numeric_limits<float>::quiet_NaN();
    words[c / 2] |= std::uint32_t{p.out_bf16 ? f32_to_bf16(x) : f32_to_f16(x)} << c % 2 * 16;
  }

  // Store.
  if (lane < chunks)
    *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(p.out.data) + query_offset(p.out, s, head, query) + lane * 8) =
        make_uint4(words[0], words[1], words[2], words[3]);
  if (lane == 0 && p.lse.data)
    static_cast<float*>(p.lse.data)[query_offset(p.lse, s, head, query)] = lost       ? std::numeric_limits<float>::quiet_NaN()
                                                                           : sum == 0 ? -infinity
                                                                                      : maximum + logf(sum);
  __syncwarp();
}

}  // namespace chitu::cuda
