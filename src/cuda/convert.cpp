// SPDX-License-Identifier: Apache-2.0
// convert.h.
#include "cuda/convert.h"

#include <algorithm>
#include <cstring>

#include "checks.h"
#include "common/limits.h"
#include "common/numbers.h"

namespace chitu::cuda {
namespace {

constexpr std::uint8_t zero_of_i8 = value_offset;

// A tile of a head: its tokens in the tensor, and where it stands among all.
struct Tile {
  std::int64_t sequence, batch, head, begin, count;  // begin: its first token, in the tensor
  std::int64_t in_sequence, index;                   // its number in the sequence; among all tiles of the operand
  std::int64_t first_group, first_of_batch;          // the sequence's first group of tokens, and first tile, in a head's scales
};

template <class Visit>
void for_tiles(const Quantized& q, const Visit& visit) {
  const auto [batch, heads, tokens, dim] = q.values.shape;
  std::int64_t before = 0, groups = 0, tiles_before = 0;
  for (std::int64_t s = 0; s < q.sequences(); ++s) {
    const bool packed = !q.starts.empty();
    const std::int64_t begin = packed ? q.starts[static_cast<std::size_t>(s)] : 0,
                       end = packed ? q.starts[static_cast<std::size_t>(s) + 1] : tokens, tiles = tiles_of(end - begin);
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t first = begin + t * tile_tokens;
        visit(Tile{s, packed ? 0 : s, h, first, std::min<std::int64_t>(tile_tokens, end - first), t, before + h * tiles + t, groups,
                   tiles_before});
      }
    before += heads * tiles;
    if (packed) groups += q.quant.groups.count(end - begin), tiles_before += tiles;
  }
}

// Where numbers stand in a block.
struct Places {
  const Quantized& q;
  const Form form;
  const int bytes, dim;
  const Rows& rows;
  Params p;

  Places(const Quantized& q, const Rows& rows, std::byte* block)
      : q(q),
        form(form_of(recipe_of(q.role, q.quant), static_cast<int>(q.values.shape[3]))),
        bytes(chitu::bytes(q.quant.type)),
        dim(static_cast<int>(q.values.shape[3])),
        rows(rows),
        p(plan_of(q.values, q.role, q.starts).params) {
    place_block(p, q.role, q.quant, block);
  }
  int row_of(const Tile& t, std::int64_t token) const {
    return rows.empty() ? static_cast<int>(token) : rows[static_cast<std::size_t>(t.index * tile_tokens + token)];
  }
  std::int64_t in_panels(std::int64_t panel_rows, std::int64_t row, int channel) const {
    const int row_bytes = form.dim * bytes, panel = panel_bytes(row_bytes), at = channel * bytes, chunk = at % panel / 16,
              place = panel == 128 ? swizzled<128>(chunk, static_cast<int>(row)) : swizzled<64>(chunk, static_cast<int>(row));
    return panel_offset(row_bytes, at / panel, panel_rows) + row * panel + place * 16 + at % 16;
  }
  static std::int64_t in_columns(int row, int channel) {
    int at = 0;
    while (stored_key(at) != row % 16) ++at;
    return channel * 128 + swizzled<128>(row / 16, channel % 8) * 16 + at;
  }
  std::byte* number(const Tile& t, std::int64_t token, int channel) const {
    if (q.role == Role::query) {
      const std::int64_t begin = q.starts.empty() ? 0 : q.starts[static_cast<std::size_t>(t.sequence)],
                         end = q.starts.empty() ? q.values.shape[2] : q.starts[static_cast<std::size_t>(t.sequence) + 1],
                         rows_of_head = tiles_of(end - begin) * tile_tokens, first = (t.index - t.in_sequence) * tile_tokens;
      return reinterpret_cast<std::byte*>(p.queries) + first * form.row_bytes() +
             in_panels(rows_of_head, t.in_sequence * tile_tokens + token, channel);
    }
    const int row = row_of(t, token);
    if (q.role == Role::key)
      return reinterpret_cast<std::byte*>(p.key_numbers) + key_tile_offset(form, t.index) + in_panels(tile_tokens, row, channel);
    return reinterpret_cast<std::byte*>(p.value_numbers) + value_tile_offset(form, t.index) +
           (form.value_bytes == 1 ? in_columns(row, channel) : in_panels(tile_tokens, row, channel));
  }
  std::int8_t* residual(const Tile& t, std::int64_t token, int channel) const {
    return p.residuals + residual_offset(form, t.index) + in_columns(row_of(t, token), channel);
  }
  // A query's.
  float* scale(const Tile& t, std::int64_t token) const {
    return p.query_scale +
           (form.query_scale_rows == 2 ? t.index * (tile_tokens / 2) + token / 16 * 8 + token % 8 : t.index * tile_tokens + token);
  }
  bool has_offset() const { return q.role == Role::value && q.quant.type == DType::i8; }
};

float* f32_at(const Tensor& t, std::int64_t i0, std::int64_t i1, std::int64_t i2 = 0) {
  return reinterpret_cast<float*>(row(t, i0, i1, i2));
}

// Calls visit(where it is in a block, where it is row by row) for each scale of a tile. `shared` ones of a head come once for each tile.
template <class Visit>
void for_scales(const Places& at, const Tile& t, const Tensor& scales, const Visit& visit) {
  const Quantized& q = at.q;
  const Groups& groups = q.quant.groups;
  const std::int64_t first = t.first_group + groups.count(t.in_sequence * tile_tokens),
                     count = groups.count(t.count);  // of a head's scales
  PassScales* const passes = q.role == Role::query ? nullptr : at.p.passes + pass_index(t.index, 0);
  const auto of_group = [&](std::int64_t i) { return f32_at(scales, t.batch, t.head, first + i); };
  if (q.role == Role::query) {
    for (std::int64_t token = 0; token < t.count; ++token)
      visit(at.scale(t, token), q.quant.scaling == Scaling::head ? f32_at(scales, t.sequence, t.head) : of_group(groups.of(token)));
    // Groups of which no token is there.
    if (q.quant.scaling == Scaling::tokens && groups.block > 1)
      for (std::int64_t i = 0; i < count; ++i)
        visit(at.scale(t, i / groups.lanes * groups.block + i % groups.lanes * 8 / groups.lanes), of_group(i));
  } else if (q.role == Role::key && at.form.scale_each_key) {
    for (std::int64_t token = 0; token < t.count; ++token)
      visit(at.p.key_scale + t.index * tile_tokens + token, of_group(groups.of(token)));
  } else if (q.role == Role::key) {
    for (int pass = 0; pass < 2; ++pass)
      for (int i = 0; i < 4; ++i)
        visit(&passes[pass].key[i], q.quant.scaling == Scaling::head ? f32_at(scales, t.sequence, t.head) : of_group(i));
  }
}

// Calls visit(in a block, row by row, count) for the vectors of a head's values.
template <class Visit>
void for_vectors(const Places& at, const Quantized& q, const Visit& visit) {
  for (std::int64_t s = 0; s < q.sequences(); ++s)
    for (std::int64_t h = 0; h < q.values.shape[1]; ++h) {
      float* const channels = at.p.channels + (s * q.values.shape[1] + h) * at.form.dim;
      if (q.quant.scaling == Scaling::tile)
        visit(channels, f32_at(q.channels, s, h), std::int64_t{at.dim});
      else
        visit(channels, f32_at(q.scales, s, h), q.quant.scaling == Scaling::channel ? std::int64_t{at.dim} : std::int64_t{1});
    }
}

std::int64_t tile_count(const Quantized& q) {
  std::int64_t count = 0;
  for_tiles(q, [&](const Tile&) { ++count; });
  return count;
}

Tensor allocated(Quantized& q, DType type, const Shape& shape) {
  const auto numbers = static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]);
  q.storage.push_back(
      std::make_shared<std::byte[]>(numbers * static_cast<std::size_t>(bytes(type)) + 64));  // kernels may read past the end
  return dense(q.storage.back().get(), type, shape);
}

std::uint16_t to_half(DType type, float x) { return type == DType::f16 ? f32_to_f16(x) : f32_to_bf16(x); }
float from_half(DType type, std::uint16_t x) { return type == DType::f16 ? f16_to_f32(x) : bf16_to_f32(x); }

// The tile of a token, for those that are not finite.
std::int64_t tile_of(const Quantized& q, const NonFinite& n) {
  std::int64_t found = -1;
  for_tiles(q, [&](const Tile& t) {
    if (t.sequence == n.sequence && t.head == n.head && t.in_sequence == n.token / tile_tokens) found = t.index;
  });
  return found;
}

void write_nonfinite(const Quantized& q, const Params& p) {
  std::uint8_t* const marks = q.role == Role::query ? p.nonfinite_queries : q.role == Role::key ? p.nonfinite_keys : p.nonfinite_values;
  NonFiniteTile* const details = q.role == Role::query ? p.query_details : q.role == Role::key ? p.key_details : p.value_details;
  *p.any_nonfinite = !q.nonfinite.empty();
  for (const NonFinite& n : q.nonfinite) {
    const std::int64_t tile = tile_of(q, n);
    marks[tile] = 1;
    details[tile].tokens[n.token % tile_tokens / 32] |= 1u << n.token % 32;
    for (std::size_t c = 0; c < n.values.size(); ++c) {
      const std::uint32_t bit = 1u << c % 32;
      const float x = n.values[c];
      if (x != x) details[tile].nan[c / 32] |= bit;
      if (x > largest(DType::f32)) details[tile].above[c / 32] |= bit;
      if (x < -largest(DType::f32)) details[tile].below[c / 32] |= bit;
    }
  }
}

void write_centre(const Quantized& q, DType from, const Params& p) {
  if (q.role != Role::key || q.quant.centre == Centre::none) return;
  const std::int64_t dim = q.values.shape[3];
  for (std::int64_t s = 0; s < q.sequences(); ++s)
    for (std::int64_t h = 0; h < q.values.shape[1]; ++h)
      for (std::int64_t c = 0; c < dim; ++c) {
        const float x = f32_at(q.centre, s, h)[c];
        const std::uint16_t bits = to_half(from, x);
        require(from_half(from, bits) == x, "the keys' centre has the number ", x, ", which ", name(from),
                " does not hold: a GPU keeps the centre in the type of the tensor");
        static_cast<std::uint16_t*>(const_cast<void*>(static_cast<const void*>(p.centre)))[(s * q.values.shape[1] + h) * dim + c] = bits;
      }
}

// Whether a tile of it has a number that is not finite. Params::any_nonfinite may also speak of what was made together with it.
bool is_marked(const Quantized& like, const Params& p) {
  const std::uint8_t* const marks = like.role == Role::query ? p.nonfinite_queries
                                    : like.role == Role::key ? p.nonfinite_keys
                                                             : p.nonfinite_values;
  bool marked = false;
  for_tiles(like, [&](const Tile& t) { marked |= marks[t.index] != 0; });
  return marked;
}

}  // namespace

Rows rows_by_ranks(const Quantized& key) {
  if (!key.quant.sorted) return {};
  Rows rows(static_cast<std::size_t>(tile_count(key)) * tile_tokens);
  for_tiles(key, [&](const Tile& t) {
    for (std::int64_t i = 0; i < tile_tokens; ++i) {  // places behind the end have the last ranks
      const auto rank = i < t.count ? std::to_integer<int>(*row(key.ranks, t.batch, t.head, t.begin + i)) : static_cast<int>(i);
      rows[static_cast<std::size_t>(t.index * tile_tokens + i)] = static_cast<std::uint8_t>(row_of_rank(rank));
    }
  });
  return rows;
}

Rows rows_by_orders(const std::uint8_t* orders, std::int64_t tiles) {
  Rows rows(static_cast<std::size_t>(tiles * tile_tokens));
  for (std::int64_t i = 0; i < tiles * tile_tokens; ++i)
    rows[static_cast<std::size_t>(i / tile_tokens * tile_tokens + orders[i] % tile_tokens)] = static_cast<std::uint8_t>(i % tile_tokens);
  return rows;
}

void write_block(const Quantized& q, DType from, const Rows& rows, std::byte* block) {
  std::memset(block, 0, block_bytes(q));
  const Places at(q, rows, block);
  const std::int64_t tiles = tile_count(q);
  if (at.has_offset()) {
    std::memset(at.p.value_numbers, zero_of_i8, static_cast<std::size_t>(value_tile_offset(at.form, tiles)));
    if (at.form.residuals) std::memset(at.p.residuals, zero_of_i8, static_cast<std::size_t>(residual_offset(at.form, tiles)));
  }
  write_nonfinite(q, at.p);
  write_centre(q, from, at.p);
  if (q.role == Role::value) {
    const std::int64_t count = std::int64_t{at.p.sequences} * at.p.kv_heads * at.form.dim;
    std::fill_n(at.p.channels, count, 1.f);
    for_vectors(at, q, [&](float* to, const float* from_rows, std::int64_t n) {
      for (std::int64_t c = 0; c < at.form.dim; ++c)
        if (c < n || n == 1) to[c] = from_rows[n == 1 ? 0 : c];
    });
  }
  for_tiles(q, [&](const Tile& t) {
    for (std::int64_t i = 0; i < t.count; ++i) {
      const std::byte* const numbers = row(q.values, t.batch, t.head, t.begin + i);
      for (int c = 0; c < at.dim; ++c) {
        std::byte* const to = at.number(t, i, c);
        std::memcpy(to, numbers + c * at.bytes, static_cast<std::size_t>(at.bytes));
        if (at.has_offset()) *to ^= std::byte{zero_of_i8};
      }
      if (q.role == Role::query)
        at.p.correction[t.index * tile_tokens + i] = given(q.correction) ? *f32_at(q.correction, t.batch, t.head, t.begin + i) : 0;
    }
    if (q.role == Role::key && at.form.sorted)
      for (int i = 0; i < tile_tokens; ++i) at.p.orders[order_offset(t.index) + at.row_of(t, i)] = static_cast<std::uint8_t>(i);
    for_scales(at, t, q.scales, [](float* to, const float* scale) { *to = *scale; });
    if (q.role != Role::value) return;
    PassScales* const passes = at.p.passes + pass_index(t.index, 0);
    float scale = 1;
    int plane = -1;
    if (q.quant.scaling == Scaling::tile) {
      const std::int64_t of_head = q.scales.shape[2], i = t.first_of_batch + t.in_sequence;
      scale = *f32_at(q.scales, t.batch, t.head, i);
      plane = q.residual_of[static_cast<std::size_t>((t.batch * q.values.shape[1] + t.head) * of_head + i)];
    }
    passes[0].value = scale, passes[0].last = 1;
    passes[1].value = scale * (1 / residual_parts);
    passes[0].flagged = passes[1].flagged = plane >= 0;
    for (std::int64_t i = 0; plane >= 0 && i < tile_tokens; ++i)
      for (int c = 0; c < at.dim; ++c)
        *at.residual(t, i, c) = static_cast<std::int8_t>(reinterpret_cast<const std::int8_t*>(row(q.residuals, 0, plane, i))[c] ^ -128);
  });
}

Quantized read_block(const Quantized& like, const Rows& rows, const Tensor* centre, std::byte* block) {
  const Places at(like, rows, block);
  require(!is_marked(like, at.p), name(like.role),
          " has NaN or infinity: a GPU keeps where they were, but not the numbers, which a Quantized in CPU memory must have");
  const auto [batch, heads, tokens, dim] = like.values.shape;
  Quantized q;
  q.role = like.role;
  q.quant = like.quant;
  q.starts = like.starts;
  q.values = allocated(q, q.quant.type, like.values.shape);
  q.scales = allocated(q, DType::f32, scales_shape(q.quant, q.values.shape, q.starts));
  if (q.quant.scaling == Scaling::head) {  // of sequences without tokens
    const float least = smallest_maximum / largest(q.quant.type);
    std::fill_n(static_cast<float*>(q.scales.data), q.sequences() * heads, least);
  }
  const Shape vector{q.sequences(), heads, 1, dim};
  if (q.quant.sorted) q.ranks = allocated(q, DType::u8, {batch, heads, tokens, 1});
  if (q.role == Role::key && q.quant.centre != Centre::none) {
    q.centre = allocated(q, DType::f32, vector);
    for (std::int64_t i = 0; i < vector[0] * heads * dim; ++i)
      static_cast<float*>(q.centre.data)[i] = from_half(like.from, static_cast<const std::uint16_t*>(at.p.centre)[i]);
  }
  if (centre) {
    q.centre = *centre;
    q.correction = allocated(q, DType::f32, {batch, heads, tokens, 1});
  }
  if (q.quant.scaling == Scaling::tile) {
    q.channels = allocated(q, DType::f32, vector);
    q.residual_of.assign(static_cast<std::size_t>(batch * heads * q.scales.shape[2]), -1);
  }
  if (q.role == Role::value) for_vectors(at, q, [](const float* from, float* to, std::int64_t n) { std::copy_n(from, n, to); });
  for_tiles(q, [&](const Tile& t) {
    for (std::int64_t i = 0; i < t.count; ++i) {
      std::byte* const numbers = row(q.values, t.batch, t.head, t.begin + i);
      for (int c = 0; c < at.dim; ++c) {
        std::memcpy(numbers + c * at.bytes, at.number(t, i, c), static_cast<std::size_t>(at.bytes));
        if (at.has_offset()) numbers[c] ^= std::byte{zero_of_i8};
      }
      if (q.quant.sorted) {
        const int stands = at.row_of(t, i);  // row_of_rank() the other way round
        *row(q.ranks, t.batch, t.head, t.begin + i) = static_cast<std::byte>(stands % 8 / 2 * 32 + stands / 8 * 2 + stands % 2);
      }
      if (centre) *f32_at(q.correction, t.batch, t.head, t.begin + i) = at.p.correction[t.index * tile_tokens + i];
    }
    for_scales(at, t, q.scales, [](const float* scale, float* to) { *to = *scale; });
    if (q.quant.scaling != Scaling::tile) return;
    const PassScales& pass = at.p.passes[pass_index(t.index, 0)];
    const std::int64_t of_head = q.scales.shape[2], i = t.first_of_batch + t.in_sequence;
    *f32_at(q.scales, t.batch, t.head, i) = pass.value;
    if (pass.flagged) q.residual_of[static_cast<std::size_t>((t.batch * heads + t.head) * of_head + i)] = 0;  // its plane comes below
  });
  // Planes stand in the order of residual_of.
  std::int32_t count = 0;
  for (std::int32_t& plane : q.residual_of)
    if (plane == 0) plane = count++;
  if (count == 0) return q;
  q.residuals = allocated(q, DType::i8, {1, count, tile_tokens, dim});
  for_tiles(q, [&](const Tile& t) {
    const std::int32_t plane =
        q.residual_of[static_cast<std::size_t>((t.batch * heads + t.head) * q.scales.shape[2] + t.first_of_batch + t.in_sequence)];
    for (std::int64_t i = 0; plane >= 0 && i < tile_tokens; ++i)
      for (int c = 0; c < at.dim; ++c)
        reinterpret_cast<std::int8_t*>(row(q.residuals, 0, plane, i))[c] = static_cast<std::int8_t>(*at.residual(t, i, c) ^ -128);
  });
  return q;
}

}  // namespace chitu::cuda
