// SPDX-License-Identifier: Apache-2.0
// block.h.
#include "cuda/block.h"

#include "checks.h"

namespace chitu::cuda {
namespace {

int narrow(std::int64_t x) { return static_cast<int>(x); }

View view(const Tensor& t) { return {t.data, t.stride[0], t.stride[1], t.stride[2]}; }

}  // namespace

Recipe recipe_of(Role role, const Quant& quant) {
  Recipe r{};
  (role == Role::query ? r.query : role == Role::key ? r.key : r.value) = quant;
  if (role == Role::query) r.key.type = quant.type, r.key.scaling = quant.scaling;  // Form::score_bytes follows from keys
  return r;
}

OperandPlan plan_of(const Tensor& x, Role role, std::span<const std::int64_t> starts) {
  OperandPlan plan{};
  Params& p = plan.params;
  const bool is_query = role == Role::query;
  p.query = p.key = p.value = view(x);
  p.dim = narrow(x.shape[3]);
  p.heads = p.kv_heads = narrow(x.shape[1]);
  p.sequences = narrow(sequence_count(x.shape, starts));
  p.scale = 1;
  SequenceLayout at{};
  if (starts.empty()) {
    (is_query ? at.queries : at.keys) = narrow(x.shape[2]);
    p.same = at;
    (is_query ? p.query_tiles : p.key_tiles) = narrow(x.shape[0] * tiles_of(x.shape[2]));
    return plan;
  }
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const int begin = narrow(starts[i]), count = narrow(starts[i + 1] - starts[i]);
    (is_query ? at.query_begin : at.key_begin) = begin;
    (is_query ? at.queries : at.keys) = count;
    plan.layouts.push_back(at);
    (is_query ? at.query_tile : at.key_tile) += tiles_of(count);
  }
  plan.layouts.push_back(at);
  p.same = plan.layouts.front();
  p.query_tiles = at.query_tile;
  p.key_tiles = at.key_tile;
  return plan;
}

std::size_t place_block(Params& p, Role role, const Quant& quant, std::byte* memory) {
  const Form form = form_of(recipe_of(role, quant), p.dim);
  const std::int64_t tiles = role == Role::query ? std::int64_t{p.query_tiles} * p.heads : std::int64_t{p.key_tiles} * p.kv_heads,
                     tokens = tiles * tile_tokens, heads = std::int64_t{p.sequences} * p.kv_heads;
  Arena arena(memory);
  arena.take(p.any_nonfinite, 1);
  if (role == Role::query) {
    arena.take(p.query_scale, tokens / form.query_scale_rows);
    arena.take(p.correction, tokens);
    arena.take(p.nonfinite_queries, tiles);
    arena.take(p.query_details, tiles);
    arena.take(p.queries, tokens * form.row_bytes());
    return arena.bytes();
  }
  arena.take(p.passes, 2 * tiles);
  if (role == Role::key) {
    std::uint16_t* centre;
    arena.take(centre, quant.centre == Centre::none ? 0 : heads * p.dim);
    p.centre = centre;
    arena.take(p.orders, form.sorted ? tokens : 0);
    arena.take(p.key_scale, form.scale_each_key ? tokens : 0);
    arena.take(p.nonfinite_keys, tiles);
    arena.take(p.key_details, tiles);
    arena.take(p.key_numbers, tiles * form.key_bytes());
  } else {
    arena.take(p.channels, heads * form.dim);
    arena.take(p.nonfinite_values, tiles);
    arena.take(p.value_details, tiles);
    arena.take(p.value_numbers, tiles * form.value_plane_bytes());
    arena.take(p.residuals, form.residuals ? tokens * form.dim : 0);
  }
  return arena.bytes();
}

std::size_t block_bytes(const Quantized& q) {
  Params p = plan_of(q.values, q.role, q.starts).params;
  return place_block(p, q.role, q.quant, nullptr);
}

}  // namespace chitu::cuda
