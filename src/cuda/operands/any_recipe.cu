// SPDX-License-Identifier: Apache-2.0
// quantize_any_recipe(): the operands of any recipe, at any dim that is a multiple of 8. docs/numerics.md, "Quantising", is the
// specification, params.h the layout.
//
//   - Each tile is read once, its loads under way before the CTA waits for the statistics, and written once.
//   - Rows (queries, keys, 16-bit values): a row of Form::dim channels is 8, 16 or 32 lanes, so that what a token needs as a whole takes
//     shuffles only. A thread has 8 channels of 8 rows, 16 apart.
//   - Columns (8-bit values): a thread has 16 keys of 8 channels; the transposition is a choice of the registers that are packed together.
//   - Each step is one rounding of fp32, in the order of the CPU's quantiser. So integers are the same to the bit.
#include "common/limits.h"
#include "common/rotation.h"
#include "cuda/launch.h"
#include "cuda/operands/any_recipe.cuh"
#include "cuda/operands/sequences.cuh"
#include "cuda/ptx/async.h"
#include "cuda/ptx/convert.h"

namespace chitu::cuda {
namespace {

constexpr int most_columns = 256;       // channels: threads of a CTA
constexpr int rows = 8, row_step = 16;  // a thread's

// How numbers are stored.
enum class Number { same, f16, i8, e4m3 };
template <class T>
__device__ Number number_of(const Quant& q) {
  if (q.scaling == Scaling::none || (q.type == DType::f16 && std::is_same_v<T, __half>)) return Number::same;
  return q.type == DType::f16 ? Number::f16 : q.type == DType::i8 ? Number::i8 : Number::e4m3;
}

struct RowsShared {  // of a tile's rows
  float top[tile_tokens], group[tile_tokens], factor[tile_tokens], dot[tile_tokens];
};
struct ColumnsShared {                         // of each warp's part of a tile
  float size[most_columns / 32][tile_tokens];  // of keys
  float top[most_columns / 32];
};

template <Number number>
__device__ __forceinline__ std::uint32_t pack_8bit(float a, float b, float c, float d) {
  return number == Number::i8 ? ptx::pack_i8(a, b, c, d) : ptx::pack_e4m3(a, b, c, d);
}

// ---- rows

// Joins each of `rows` numbers over the `lanes` lanes of a row; lane i has the result of x[i % 8].
template <class Join>
__device__ __forceinline__ float over_row(float (&x)[rows], int lane, int lanes, Join join) {
#pragma unroll
  for (int n = rows / 2; n; n /= 2)
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float keep = lane & n ? x[i + n] : x[i], give = lane & n ? x[i] : x[i + n];
      x[i] = join(keep, __shfl_xor_sync(~0u, give, n));
    }
  for (int n = rows; n < lanes; n *= 2) x[0] = join(x[0], __shfl_xor_sync(~0u, x[0], n));
  return x[0];
}

// The largest of row `threadIdx.x`'s group. By all threads of a CTA; for the first tile_tokens.
__device__ float over_group(const Groups& groups, float top, RowsShared& shared) {
  const int alike = groups.block == 1 ? 1 : 8 / groups.lanes;  // neighbours in a group
#pragma unroll
  for (int n = 1; n < 32; n *= 2)
    if (n < 8 ? n < alike : n < groups.block) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
  if (groups.block <= 32) return top;
  if (threadIdx.x < tile_tokens) shared.group[threadIdx.x] = top;
  __syncthreads();
  if (threadIdx.x < tile_tokens)
    for (int n = 32; n < groups.block; n += 32) top = fmaxf(top, shared.group[threadIdx.x ^ n]);
  return top;
}

// 8 channels of the rotated row; a row's lanes together.
__device__ __forceinline__ void rotate(float (&y)[8], int piece, int block) {
#pragma unroll
  for (int c = 0; c < 8; ++c)
    if (rotation_negates(piece * 8 + c)) y[c] = -y[c];
#pragma unroll
  for (int n = 1; n < 8; n *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      if (c & n) continue;
      const float a = y[c], b = y[c + n];
      y[c] = a + b;
      y[c + n] = a - b;
    }
  for (int n = 1; n * 8 < block; n *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float other = __shfl_xor_sync(~0u, y[c], n);
      y[c] = piece & n ? other - y[c] : other + y[c];
    }
  const float scale = rotation_scale(block);
#pragma unroll
  for (float& x : y) x *= scale;
}

template <class T, bool rotated>
__device__ __forceinline__ void quantize_rows(const AnyRecipeCall& call, Role role, int unit, RowsShared& shared) {
  const Params& p = call.params;
  const bool is_query = role == Role::query, is_value = role == Role::value;
  const Quant& quant = quant_of(call.recipe, role);
  const View& in = input_of(p, role);
  const TileLocation at = is_query ? locate_tile<true>(p, unit) : locate_tile<false>(p, unit);
  const SequenceLayout s = sequence_layout(p, at.sequence);
  const int lanes = call.form.dim / 8, lane = threadIdx.x % 32, piece = threadIdx.x % lanes, row0 = threadIdx.x / lanes;
  const bool real = piece * 8 < p.dim;  // else padding
  const int tokens = (is_query ? s.queries : s.keys) - at.tile * tile_tokens;
  const int first = at.tile * tile_tokens + row0;
  const T* from =
      static_cast<const T*>(in.data) + (is_query ? query_offset(in, s, at.head, first) : key_offset(in, s, at.head, first)) + piece * 8;
  uint4 x[rows];
  std::uint32_t absent = 0;  // bit j: the thread's row j is no token, or none that counts
#pragma unroll
  for (int j = 0; j < rows; ++j) {
    const bool is_token = row0 + j * row_step < tokens;
    x[j] = is_token && real ? load_input(from + j * row_step * in.token) : make_uint4(0, 0, 0, 0);
    absent |= static_cast<std::uint32_t>(!is_token) << j;
  }
  ptx::wait_for_previous();  // for the statistics

  std::uint32_t sizes = 0;
#pragma unroll
  for (int j = 0; j < rows; ++j) sizes = larger(sizes, largest(x[j]));
  bool nonfinite = has_nonfinite<T>(sizes);
  if (__any_sync(~0u, nonfinite)) {
    const std::uint32_t row_lanes = (lanes == 32 ? ~0u : (1u << lanes) - 1) << (lane & -lanes);
#pragma unroll
    for (int j = 0; j < rows; ++j) {
      if (is_value)
        x[j] = finite_part<T>(x[j]);
      else if (__ballot_sync(~0u, has_nonfinite<T>(largest(x[j]))) & row_lanes) {
        x[j] = make_uint4(0, 0, 0, 0);
        absent |= 1u << j;
      }
    }
  }

  const bool centred = !is_value && call.recipe.key.centre != Centre::none;
  uint4 centre = make_uint4(0, 0, 0, 0);
  if (centred && real) {
    const int kv_head = is_query ? at.head / (p.heads / p.kv_heads) : at.head;
    centre = __ldcg(reinterpret_cast<const uint4*>(static_cast<const T*>(p.centre) +
                                                   (std::int64_t{at.sequence} * p.kv_heads + kv_head) * p.dim + piece * 8));
  }
  const auto put = [&](float* of_rows, float result) {  // what over_row() leaves
    if (threadIdx.x % lanes < rows) of_rows[row0 + threadIdx.x % rows * row_step] = result;
  };
  if (is_query && centred) {
    float dot[rows], c[8];
    unpack<T>(centre, c);
#pragma unroll
    for (int j = 0; j < rows; ++j) {
      float y[8];
      unpack<T>(x[j], y);
      dot[j] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) dot[j] = fmaf(y[i], c[i], dot[j]);
    }
    put(shared.dot, over_row(dot, lane, lanes, [](float a, float b) { return a + b; }));
  }

  // The thread's part of row j as it is scaled, times headroom; kept where it is dear.
  constexpr float headroom = rotated ? rotation_headroom : 1;
  float kept[rotated ? rows : 1][8];
  const auto make = [&](int j, float(&y)[8]) {
    unpack<T>(x[j], y);
    if (!is_query && centred) {
      float c[8];
      unpack<T>(centre, c);
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = absent >> j & 1 ? 0 : rotated ? fmaf(y[i], headroom, -(c[i] * headroom)) : y[i] - c[i];
    } else if constexpr (rotated) {
#pragma unroll
      for (float& z : y) z *= headroom;
    }
    if constexpr (rotated) rotate(y, piece, rotation_block(p.dim));
  };
  float top[rows];
  if (rotated || quant.scaling == Scaling::tokens) {
#pragma unroll
    for (int j = 0; j < rows; ++j) {
      float y[8];
      make(j, y);
      top[j] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        top[j] = fmaxf(top[j], fabsf(y[i]));
        if constexpr (rotated) kept[j][i] = y[i];
      }
    }
    put(shared.top, over_row(top, lane, lanes, [](float a, float b) { return fmaxf(a, b); }));
  }
  nonfinite = __syncthreads_or(nonfinite);

  // A thread a row: its scale.
  const int row = threadIdx.x;
  float2 scaling = make_float2(1, 1);  // scale, what numbers are multiplied by
  if (quant.scaling == Scaling::tokens) {
    const float m = fmaxf(over_group(quant.groups, row < tile_tokens ? shared.top[row] : 0, shared), smallest_maximum * headroom);
    scaling = make_float2(m / 127 / headroom, 127 / m);
  } else if (quant.scaling == Scaling::head) {
    const Statistics statistics(p);
    const int heads = is_query ? p.heads : p.kv_heads;
    const std::int64_t index = std::int64_t{at.sequence} * heads + at.head;
    if (is_value)
      scaling.y = __ldcg(reinterpret_cast<const float*>(p.statistics + statistics.value_factors) + index * p.dim);
    else
      scaling = __ldcg(reinterpret_cast<const float2*>(p.statistics + (is_query ? statistics.query_heads : statistics.key_heads)) + index);
  }
  if (row < tile_tokens) {
    shared.factor[row] = is_query && p.scale < 0 ? -scaling.y : scaling.y;
    const std::int64_t token = at.index * tile_tokens + row;
    if (is_query) {
      p.correction[token] = centred ? shared.dot[row] : 0;
      if (call.form.query_scale_rows == 1) p.query_scale[token] = scaling.x;
      if (call.form.query_scale_rows == 2 && row % 16 < 8) p.query_scale[at.index * (tile_tokens / 2) + row / 16 * 8 + row % 8] = scaling.x;
    } else if (!is_value) {
      if (call.form.scale_each_key)
        p.key_scale[token] = scaling.x;
      else if (row % 2 == 0 && row < 8)
        p.passes[pass_index(at.index, 0)].key[row / 2] = p.passes[pass_index(at.index, 1)].key[row / 2] = scaling.x;
    }
  }
  if (row == 0) {
    mark(p, is_query ? p.nonfinite_queries : is_value ? p.nonfinite_values : p.nonfinite_keys, at.index, nonfinite);
    if (is_value) write_passes(p, at.index, 1, false);
  }
  __syncthreads();

  // The compiler must not keep what it made of the rows before: in fp32 they take twice the registers.
  if constexpr (!rotated)
#pragma unroll
    for (uint4& piece : x) asm volatile("" : "+r"(piece.x), "+r"(piece.y), "+r"(piece.z), "+r"(piece.w));
  const Number number = number_of<T>(quant);
  const int bytes = number == Number::same || number == Number::f16 ? 2 : 1, row_bytes = call.form.dim * bytes,
            panel = panel_bytes(row_bytes), panel_rows = is_query ? tiles_of(s.queries) * tile_tokens : tile_tokens;
  const int in_row = piece * 8 * bytes, chunk = in_row % panel / 16,
            place = panel == 128 ? swizzled<128>(chunk, row0) : swizzled<64>(chunk, row0);
  std::uint8_t* out = is_query ? p.queries + (at.index - at.tile) * tile_tokens * row_bytes + std::int64_t{at.tile} * tile_tokens * panel
                               : p.tiles + (is_value ? value_tile_offset(call.form, at.index) : key_tile_offset(call.form, at.index));
  out += panel_offset(row_bytes, in_row / panel, panel_rows) + row0 * panel + place * 16 + in_row % 16;
  const auto write = [&](auto store) {
#pragma unroll
    for (int j = 0; j < rows; ++j) store(j, out + j * row_step * panel);
  };
  const auto stored = [&](int j, float(&y)[8]) {
    const float factor = shared.factor[row0 + j * row_step];
    if constexpr (rotated)
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = kept[j][i];
    else
      make(j, y);
#pragma unroll
    for (float& z : y) z *= factor;
  };
  const auto write_8bit = [&]<Number eight>() {
    write([&](int j, std::uint8_t* to) {
      float y[8];
      stored(j, y);
      *reinterpret_cast<uint2*>(to) = make_uint2(pack_8bit<eight>(y[0], y[1], y[2], y[3]), pack_8bit<eight>(y[4], y[5], y[6], y[7]));
    });
  };
  if (number == Number::i8) {
    write_8bit.template operator()<Number::i8>();
  } else if (number == Number::e4m3) {
    write_8bit.template operator()<Number::e4m3>();
  } else if (number == Number::f16) {
    write([&](int j, std::uint8_t* to) {
      float y[8];
      stored(j, y);
      *reinterpret_cast<uint4*>(to) =
          make_uint4(ptx::pack_f16(y[0], y[1]), ptx::pack_f16(y[2], y[3]), ptx::pack_f16(y[4], y[5]), ptx::pack_f16(y[6], y[7]));
    });
  } else {
    const std::uint32_t sign = is_query && p.scale < 0 ? 0x80008000u : 0;
    write([&](int j, std::uint8_t* to) {
      *reinterpret_cast<uint4*>(to) = make_uint4(x[j].x ^ sign, x[j].y ^ sign, x[j].z ^ sign, x[j].w ^ sign);
    });
  }
}

// ---- columns

// The mean size of the tile's smallest key that is not zero. sizes: a tile's warps' sums over their channels.
__device__ __forceinline__ float smallest_key(const float (*sizes)[tile_tokens], int warps, int dim) {
  const int lane = threadIdx.x % 32;
  float size[4] = {};
  for (int w = 0; w < warps; ++w)
#pragma unroll
    for (int i = 0; i < 4; ++i) size[i] += sizes[w][i * 32 + lane];
  float least = __int_as_float(0x7f800000);
#pragma unroll
  for (const float x : size)
    if (x > 0) least = fminf(least, x);
#pragma unroll
  for (int n = 16; n; n /= 2) least = fminf(least, __shfl_xor_sync(~0u, least, n));
  return least / static_cast<float>(dim);
}

// A warp has 128 keys of 32 channels.
template <class T>
__device__ __forceinline__ void quantize_columns(const AnyRecipeCall& call, int unit, ColumnsShared& shared) {
  const Params& p = call.params;
  const Quant& quant = call.recipe.value;
  const bool by_tile = quant.scaling == Scaling::tile;
  const int warps = call.form.dim / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, block = lane / 4, column = lane % 4,
            channel0 = warp * 32 + column * 8;
  const bool real = channel0 < p.dim;  // else padding
  const TileLocation at = locate_tile<false>(p, unit);
  const SequenceLayout s = sequence_layout(p, at.sequence);
  const int first = at.tile * tile_tokens + block * 16, keys = s.keys - first;  // the thread's keys
  const T* from = static_cast<const T*>(p.value.data) + key_offset(p.value, s, at.head, first) + channel0;
  uint4 x[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] = real && i < keys ? load_input(from + i * p.value.token) : make_uint4(0, 0, 0, 0);
  ptx::wait_for_previous();  // for the statistics

  std::uint32_t most[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i)
#pragma unroll
    for (int w = 0; w < 4; ++w) most[w] = larger(most[w], word(x[i], w));
  bool nonfinite = has_nonfinite<T>(larger(larger(larger(most[0], most[1]), most[2]), most[3]));
  if (nonfinite) {
#pragma unroll
    for (int w = 0; w < 4; ++w) most[w] = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      x[i] = finite_part<T>(x[i]);
#pragma unroll
      for (int w = 0; w < 4; ++w) most[w] = larger(most[w], word(x[i], w));
    }
  }

  float factor[8] = {};
  if (real) {
    const Statistics statistics(p);
    const auto* factors = reinterpret_cast<const float4*>(reinterpret_cast<const float*>(p.statistics + statistics.value_factors) +
                                                          (std::int64_t{at.sequence} * p.kv_heads + at.head) * p.dim + channel0);
    const float4 a = __ldcg(factors), b = __ldcg(factors + 1);
    factor[0] = a.x, factor[1] = a.y, factor[2] = a.z, factor[3] = a.w;
    factor[4] = b.x, factor[5] = b.y, factor[6] = b.z, factor[7] = b.w;
  }
  if (by_tile) {
    // The largest |v / λ| of a channel is that of its largest |v|.
    float top = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) top = fmaxf(top, low<T>(most[c / 2] >> c % 2 * 16 & 0xffff) * factor[c]);
#pragma unroll
    for (int n = 16; n; n /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
    if (lane == 0) shared.top[warp] = top;
    // Sizes of keys: each of the 4 lanes that share 16 keys ends with 4 of their sums.
    const auto size_of = [&](int i) {
      float sum = 0;
#pragma unroll
      for (int c = 0; c < 8; ++c) sum += low<T>(word(x[i], c / 2) >> c % 2 * 16 & 0x7fff) * factor[c];
      return sum;
    };
    const bool upper = column & 2, odd = column & 1;
    float size[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float a = size_of(i), b = size_of(i + 8);
      size[i] = (upper ? b : a) + __shfl_xor_sync(~0u, upper ? a : b, 2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      shared.size[warp][block * 16 + column * 4 + i] = (odd ? size[i + 4] : size[i]) + __shfl_xor_sync(~0u, odd ? size[i] : size[i + 4], 1);
  }
  nonfinite = __syncthreads_or(nonfinite);

  float scale = 1, inverse = 1;
  bool flagged = false;
  if (by_tile) {
    float top = 0;
    for (int w = 0; w < warps; ++w) top = fmaxf(top, shared.top[w]);
    flagged = top > flag_ratio * smallest_key(shared.size, warps, p.dim);
    top = fmaxf(top, smallest_maximum);
    scale = top / 127;
    inverse = 127 / top;
  }
  if (threadIdx.x == 0) {
    mark(p, p.nonfinite_values, at.index, nonfinite);
    write_passes(p, at.index, scale, flagged);
  }

  // Keys in the order of stored_key().
  const auto write = [&]<Number number>(void* tile, const auto& stored) {
  // Nor here: there are more numbers than registers.
#pragma unroll
    for (uint4& key : x) asm volatile("" : "+r"(key.x), "+r"(key.y), "+r"(key.z), "+r"(key.w));
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = pack_8bit<number>(stored(stored_key(4 * i), c), stored(stored_key(4 * i + 1), c), stored(stored_key(4 * i + 2), c),
                                     stored(stored_key(4 * i + 3), c)) ^
                   (number == Number::i8 ? value_offsets : 0);
      static_cast<uint4*>(tile)[(channel0 + c) * 8 + swizzled<128>(block, c)] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  };
  const auto scaled = [&](int i, int c) { return low<T>(word(x[i], c / 2) >> c % 2 * 16 & 0xffff) * factor[c]; };
  void* tile = p.tiles + value_tile_offset(call.form, at.index);
  if (quant.type == DType::e4m3)
    write.template operator()<Number::e4m3>(tile, scaled);
  else
    write.template operator()<Number::i8>(tile, [&](int i, int c) { return scaled(i, c) * inverse; });
  if (flagged)
    write.template operator()<Number::i8>(p.residuals + residual_offset(call.form, at.index), [&](int i, int c) {
      const float y = scaled(i, c);
      return __fsub_rn(y, __fmul_rn(rintf(y * inverse), scale)) * (residual_parts * inverse);
    });
}

// ---- the kernels: apart, because columns want more registers

// CTAs of keys, then of queries, then of values that are rows. With 80 registers a multiprocessor has three CTAs of 256 threads.
template <class T, bool rotated>
__global__ void __maxnreg__(rotated ? 128 : 80) rows_kernel(const __grid_constant__ AnyRecipeCall call) {
  __shared__ RowsShared shared;
  ptx::let_next_start();
  const Params& p = call.params;
  const int unit = static_cast<int>(blockIdx.x), keys = p.key_tiles * p.kv_heads, queries = p.query_tiles * p.heads;
  if (unit < keys)
    quantize_rows<T, rotated>(call, Role::key, unit, shared);
  else if (unit - keys < queries)
    quantize_rows<T, rotated>(call, Role::query, unit - keys, shared);
  else
    quantize_rows<T, false>(call, Role::value, unit - keys - queries, shared);
}

template <class T>
__global__ void __launch_bounds__(most_columns, 2) columns_kernel(const __grid_constant__ AnyRecipeCall call) {
  __shared__ ColumnsShared shared;
  ptx::let_next_start();
  quantize_columns<T>(call, static_cast<int>(blockIdx.x), shared);
}

template <class T>
void start(const AnyRecipeCall& call, cudaStream_t stream) {
  const Params& p = call.params;
  const unsigned dim = static_cast<unsigned>(call.form.dim), keys = static_cast<unsigned>(p.key_tiles * p.kv_heads),
                 queries = static_cast<unsigned>(p.query_tiles * p.heads);
  const bool columns = call.form.value_bytes == 1;
  if (columns) launch(columns_kernel<T>, {.blocks = keys, .threads = dim, .overlaps = true}, stream, call);
  launch(call.recipe.key.rotated ? rows_kernel<T, true> : rows_kernel<T, false>,
         {.blocks = keys + queries + (columns ? 0 : keys), .threads = 2 * dim, .overlaps = true}, stream, call);
}

}  // namespace

void quantize_any_recipe(const Params& params, const Recipe& recipe, const Form& form, bool bf16, cudaStream_t stream) {
  const AnyRecipeCall call{params, recipe, form};
  collect(call, bf16, stream);
  bf16 ? start<__nv_bfloat16>(call, stream) : start<__half>(call, stream);
}

}  // namespace chitu::cuda
