// SPDX-License-Identifier: Apache-2.0
// quantize_any_recipe(): the operands of any recipe, at any dim that is a multiple of 8. docs/numerics.md, "Quantising", is the
// specification, layout.h says where the numbers go.
//
//   - statistics.cu runs first and looks at whole heads. The kernels here start beside it.
//   - Each tile is read once and written once. All its loads are under way before the CTA waits for the statistics.
//   - Rows (queries, keys, 16-bit values) and columns (8-bit values) have kernels of their own, because columns need more registers. Rows
//     come first: with Form::sorted, columns stand in the order of their keys.
//   - Each step is one rounding of fp32, in the order of the CPU's quantiser. So integers are the same to the bit.
#include "cuda/launch.h"
#include "cuda/operands/any_recipe.cuh"
#include "cuda/operands/any_recipe_columns.cuh"
#include "cuda/operands/any_recipe_rows.cuh"
#include "cuda/ptx/async.h"

namespace chitu::cuda {
namespace {

// Whether there is tile `unit` of the queries, or of the keys. Where lengths are on the GPU, CTAs start for as many as there may be.
__device__ __forceinline__ bool exists(const Params& p, bool is_query, int unit) {
  return unit < (is_query ? query_tile_count(p) * p.heads : key_tile_count(p) * p.kv_heads);
}

// CTAs of keys come first, then those of queries, then those of values that are rows. With 80 registers a multiprocessor has room for three
// CTAs of 256 threads.
template <class T, bool rotated>
__global__ void __maxnreg__(rotated ? 128 : 80) rows_kernel(const __grid_constant__ AnyRecipeCall call) {
  __shared__ RowsShared shared;
  ptx::let_next_start();
  const Params& p = call.params;
  const int unit = static_cast<int>(blockIdx.x), keys = made_tiles(call, Role::key), queries = made_tiles(call, Role::query);
  const bool is_key = unit < keys, is_query = !is_key && unit - keys < queries;
  if (!exists(p, is_query, unit - (is_key ? 0 : is_query ? keys : keys + queries))) return ptx::wait_for_previous();
  if (is_key)
    quantize_rows<T, rotated>(call, Role::key, unit, shared);
  else if (is_query)
    quantize_rows<T, rotated>(call, Role::query, unit - keys, shared);
  else
    quantize_rows<T, false>(call, Role::value, unit - keys - queries, shared);
}

template <class T>
__global__ void __launch_bounds__(most_columns, 2) columns_kernel(const __grid_constant__ AnyRecipeCall call) {
  __shared__ ColumnsShared shared;
  ptx::let_next_start();
  const int unit = static_cast<int>(blockIdx.x);
  if (!exists(call.params, false, unit)) return ptx::wait_for_previous();
  quantize_columns<T>(call, unit, shared);
}

template <class T>
void start(const AnyRecipeCall& call, cudaStream_t stream) {
  const unsigned dim = static_cast<unsigned>(call.form.dim), keys = static_cast<unsigned>(made_tiles(call, Role::key)),
                 queries = static_cast<unsigned>(made_tiles(call, Role::query)),
                 values = static_cast<unsigned>(made_tiles(call, Role::value));
  const bool columns = call.form.value_bytes == 1;
  launch(call.recipe.key.rotated ? rows_kernel<T, true> : rows_kernel<T, false>,
         {.blocks = keys + queries + (columns ? 0 : values), .threads = 2 * dim, .overlaps = true}, stream, call);
  if (columns) launch(columns_kernel<T>, {.blocks = values, .threads = dim, .overlaps = true}, stream, call);
}

}  // namespace

void quantize_any_recipe(const Params& params, const Recipe& recipe, const Form& form, const Making& making, bool bf16,
                         cudaStream_t stream) {
  const AnyRecipeCall call{params, recipe, form, making};
  collect(call, bf16, stream);
  bf16 ? start<__nv_bfloat16>(call, stream) : start<__half>(call, stream);
}

}  // namespace chitu::cuda
