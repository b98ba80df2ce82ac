// SPDX-License-Identifier: Apache-2.0
// The checks of arguments: checks.h.
#include "checks.h"

#include <algorithm>
#include <bit>
#include <ostream>
#include <tuple>

#include "common/numbers.h"
#include "common/tiles.h"

namespace chitu {
namespace {

constexpr const char* dimensions[] = {"batch entries", "heads", "tokens"};

bool quantized_type(DType type) { return type == DType::i8 || type == DType::e4m3 || type == DType::f16; }

}  // namespace

std::ostream& operator<<(std::ostream& out, const AsText& text) {
  const Shape& s = text.shape;
  return out << "[" << s[0] << ", " << s[1] << ", " << s[2] << ", " << s[3] << "]";
}

void check_strides(const Tensor& t, const std::string& name) {
  for (std::size_t i = 0; i < 3; ++i) {
    const std::int64_t most = max_reach / std::max<std::int64_t>(t.shape[i] - 1, 1);
    require(t.shape[i] <= 1 || (t.stride[i] >= -most && t.stride[i] <= most), name, " has stride ", t.stride[i], " between ", t.shape[i],
            " ", dimensions[i], "; so many may lie at most ", most, " elements apart");
  }
}

void check_written(const Tensor& t, const std::string& name) {
  for (std::size_t i = 0; i < 3; ++i)
    require(t.shape[i] <= 1 || t.stride[i] != 0 || empty(t), name, " has stride 0 between ", dimensions[i],
            "; results need memory of their own");
}

void check_lse(const Tensor& lse, const std::string& name, const Shape& out, Data data) {
  const Shape shape{out[0], out[1], out[2], 1};
  require(lse.type == DType::f32 && lse.shape == shape, name, " must be f32 ", AsText(shape), " [batch, heads, queries, 1], but is ",
          chitu::name(lse.type), " ", AsText(lse.shape));
  require(lse.data || empty(lse) || data == Data::unread, name, " has no data, but shape ", AsText(lse.shape));
  check_strides(lse, name);
}

void check_tensor(const Tensor& t, const std::string& name, bool quantized, Data data) {
  const auto [batch, heads, tokens, dim] = t.shape;
  require(batch >= 0 && heads >= 0 && tokens >= 0 && dim >= 0, name, " has shape ", AsText(t.shape), "; no size may be negative");
  require(dim >= 1 && dim <= max_dim, name, " has dim ", dim, "; it must be 1 ... ", max_dim);
  require(batch <= max_heads, name, " has batch ", batch, "; it may be at most ", max_heads);
  require(heads <= max_heads, name, " has ", heads, " heads; there may be at most ", max_heads);
  require(tokens <= max_tokens, name, " has ", tokens, " tokens; there may be at most ", max_tokens);
  std::int64_t elements = 1;
  for (const std::int64_t size : {dim, batch, heads, tokens}) {
    const std::int64_t count = std::max<std::int64_t>(size, 1);
    require(count <= max_elements / elements, name, " has shape ", AsText(t.shape), "; a tensor may have at most ", max_elements,
            " elements");
    elements *= count;
  }
  require(dim == 1 || t.stride[3] == 1, name, " has stride ", t.stride[3],
          " between channels; the last dimension must be contiguous (stride 1)");
  check_strides(t, name);
  const bool known = is_float(t.type) || (quantized && quantized_type(t.type));
  if (!known)
    throw Error(ErrorCode::unsupported,
                name + " has type " + chitu::name(t.type) + "; it must be f32, f16 or bf16, or come from quantize()");
  require(t.data || empty(t) || data == Data::unread, name, " has no data, but shape ", AsText(t.shape));
}

void check_starts(std::span<const std::int64_t> starts, const Tensor& t, const std::string& name) {
  if (starts.empty()) return;
  require(t.shape[0] == 1, name, " has batch ", t.shape[0], "; packed sequences need batch 1");
  require(starts.size() >= 2, name, " starts have ", starts.size(), " entries; they need one more than there are sequences");
  require(starts.size() - 1 <= static_cast<std::size_t>(max_heads), name, " starts are of ", starts.size() - 1,
          " sequences; there may be at most ", max_heads);
  require(starts.front() == 0, name, " starts begin at ", starts.front(), ", not 0");
  const auto fall = std::is_sorted_until(starts.begin(), starts.end());
  if (fall != starts.end())
    require(false, name, " starts fall from ", fall[-1], " to ", *fall, " at index ", fall - starts.begin(), "; they must never");
  require(starts.back() == t.shape[2], name, " starts end at ", starts.back(), ", but there are ", t.shape[2], " tokens");
}

void check_quant(const Quant& q, Role role) {
  const bool none = q.scaling == Scaling::none;
  const bool tokens = q.type == DType::i8 && q.scaling == Scaling::tokens;
  const bool head =
      q.scaling == Scaling::head && (q.type == DType::e4m3 || (role == Role::value && (q.type == DType::i8 || q.type == DType::f16)));
  const bool by_value = role == Role::value &&
                        ((q.type == DType::e4m3 && q.scaling == Scaling::channel) || (q.type == DType::i8 && q.scaling == Scaling::tile));
  const bool fits = none || (tokens && role != Role::value) || head || by_value;
  if (!fits)
    throw Error(ErrorCode::unsupported, std::string("recipe: no quantiser for ") + name(q.type) + " with this scaling for this operand");
  require(!none || q.type == DType::f32, "recipe: an operand that stays as it came is declared f32, not ", name(q.type));
  require(q.groups.block >= 1 && tile_tokens % q.groups.block == 0 && q.groups.lanes >= 1 && 8 % q.groups.lanes == 0 &&
              (q.groups.lanes == 1 || q.groups.block % 8 == 0),
          "recipe: groups {", q.groups.block, ", ", q.groups.lanes, "} must have a block that divides ", tile_tokens,
          " and 1, 2, 4 or 8 lanes");
  require(q.centre == Centre::none || (role == Role::key && tokens), "recipe: only INT8 keys are centred");
  require(!q.sorted || (role == Role::key && tokens && q.groups.block == tile_tokens), "recipe: only INT8 keys with groups of ",
          tile_tokens, " are sorted");
  require(!q.rotated || (role != Role::value && tokens), "recipe: only INT8 queries and keys are rotated");
}

void check_threads(int threads) {
  require(threads >= 0 && threads <= max_threads, "threads is ", threads, "; it must be 0 (all) ... ", max_threads);
}

Shape scales_shape(const Quant& quant, const Shape& x, std::span<const std::int64_t> starts) {
  const auto [batch, heads, tokens, dim] = x;
  const std::int64_t sequences = sequence_count(x, starts);
  if (quant.scaling == Scaling::none) return {};
  if (quant.scaling == Scaling::head) return {sequences, heads, 1, 1};
  if (quant.scaling == Scaling::channel) return {sequences, heads, 1, dim};
  const auto scales = [&](std::int64_t count) { return quant.scaling == Scaling::tile ? tiles_of(count) : quant.groups.count(count); };
  if (starts.empty()) return {batch, heads, scales(tokens), 1};
  std::int64_t all = 0;
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) all += scales(starts[i + 1] - starts[i]);
  return {batch, heads, all, 1};
}

void check_part(const Tensor& t, const std::string& name, DType type, const Shape& wanted, Together together) {
  if (wanted == Shape{}) return require(!given(t), name, ": given, but nothing of this quantisation and role has any");
  require(given(t), name, ": missing; wanted ", chitu::name(type), " ", AsText(wanted));
  require(t.type == type && t.shape == wanted, name, ": wanted ", chitu::name(type), " ", AsText(wanted), ", not ", chitu::name(t.type),
          " ", AsText(t.shape));
  require(t.data || empty(t), name, ": no data, but shape ", AsText(wanted));
  require(t.device == Device::cpu, name, ": not in CPU memory; nothing else is read");
  check_strides(t, name);
  const Shape dense = contiguous_strides(wanted);
  for (std::size_t i = together == Together::dense ? 0 : 2; i < 4; ++i)
    require(wanted[i] <= 1 || t.stride[i] == dense[i], name, ": strides ", AsText(t.stride), "; wanted ",
            together == Together::dense ? "" : "a head's numbers together, as in ", AsText(dense));
}

namespace {

void check_residuals(const Quantized& q, const std::string& name) {
  const bool tile = q.quant.scaling == Scaling::tile;
  const std::int64_t tiles = tile ? q.scales.shape[0] * q.scales.shape[1] * q.scales.shape[2] : 0, planes = q.residuals.shape[1];
  require(static_cast<std::int64_t>(q.residual_of.size()) == tiles, name, "'s residual_of has ", q.residual_of.size(), " entries, not ",
          tiles, ", one for each tile");
  const bool some = tile && given(q.residuals);
  check_part(q.residuals, name + "'s residuals", DType::i8, some ? Shape{1, planes, tile_tokens, q.values.shape[3]} : Shape{},
             Together::dense);
  for (std::size_t i = 0; i < q.residual_of.size(); ++i)
    require(q.residual_of[i] >= -1 && q.residual_of[i] < (some ? planes : 0), name, "'s residual_of[", i, "] is ", q.residual_of[i],
            "; there are ", some ? planes : 0, " residuals, and -1 is for none");
}

// A rank says where a token's scale is, and where a GPU's tile keeps the token.
void check_ranks(const Quantized& q, const std::string& name) {
  const auto [batch, heads, tokens, dim] = q.values.shape;
  check_part(q.ranks, name + "'s ranks", DType::u8, q.quant.sorted ? Shape{batch, heads, tokens, 1} : Shape{}, Together::heads);
  if (!q.quant.sorted) return;
  const std::vector<std::int64_t> whole{0, tokens};
  const std::vector<std::int64_t>& starts = q.starts.empty() ? whole : q.starts;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::size_t s = 0; s + 1 < starts.size(); ++s)
        for (std::int64_t first = starts[s]; first < starts[s + 1]; first += tile_tokens) {
          const auto* ranks = reinterpret_cast<const std::uint8_t*>(row(q.ranks, b, h, first));
          const std::int64_t count = std::min<std::int64_t>(tile_tokens, starts[s + 1] - first);
          std::uint64_t taken[256 / 64] = {};
          for (std::int64_t i = 0; i < count; ++i) taken[ranks[i] / 64] |= std::uint64_t{1} << ranks[i] % 64;
          require(!taken[2] && !taken[3] && std::popcount(taken[0]) + std::popcount(taken[1]) == count, name, "'s ranks of batch entry ", b,
                  ", head ", h, ", tokens ", first, " ... ", first + count - 1, " are not all different and below ", tile_tokens);
        }
}

void check_nonfinite(const Quantized& q, const std::string& name) {
  const auto order = [](const NonFinite& n) { return std::tie(n.sequence, n.head, n.token); };
  for (std::size_t i = 0; i < q.nonfinite.size(); ++i) {
    const NonFinite& n = q.nonfinite[i];
    const auto inside = [](std::int64_t x, std::int64_t count) { return x >= 0 && x < count; };
    const auto sequence = static_cast<std::size_t>(n.sequence);
    require(inside(n.sequence, q.sequences()) && inside(n.head, q.values.shape[1]) &&
                inside(n.token, q.starts.empty() ? q.values.shape[2] : q.starts[sequence + 1] - q.starts[sequence]),
            name, "'s nonfinite[", i, "] is sequence ", n.sequence, ", head ", n.head, ", token ", n.token, "; there is no such token");
    require(static_cast<std::int64_t>(n.values.size()) == q.values.shape[3], name, "'s nonfinite[", i, "] has ", n.values.size(),
            " values, not ", q.values.shape[3], ", the dim");
    require(i == 0 || order(q.nonfinite[i - 1]) < order(n), name, "'s nonfinite[", i,
            "] is not behind the one before it; the order is sequence, head, token");
  }
}

}  // namespace

void check_version(const Quantized& q, const std::string& name) {
  require(q.version == quantized_version, name, " was quantised to format version ", q.version, "; this library reads version ",
          quantized_version, " only");
}

void check_quantized(const Quantized& q, const std::string& name, Data data) {
  check_version(q, name);
  check_tensor(q.values, name, true, data);
  check_starts(q.starts, q.values, name);
  check_quant(q.quant, q.role);
  const auto [batch, heads, tokens, dim] = q.values.shape;
  const bool as_it_came = q.quant.scaling == Scaling::none, correction = q.role == Role::query && given(q.correction);
  require(as_it_came ? is_float(q.values.type) : q.values.type == q.quant.type, name, "'s values are ", chitu::name(q.values.type),
          ", but its quantisation stores ", as_it_came ? "f32, f16 or bf16" : chitu::name(q.quant.type));
  const Shape vector{q.sequences(), heads, 1, dim};
  check_part(q.scales, name + "'s scales", DType::f32, scales_shape(q.quant, q.values.shape, q.starts), Together::heads);
  check_part(q.channels, name + "'s channels", DType::f32, q.quant.scaling == Scaling::tile ? vector : Shape{}, Together::heads);
  check_part(q.correction, name + "'s correction", DType::f32, correction ? Shape{batch, heads, tokens, 1} : Shape{}, Together::heads);
  // The centre that a correction was made with has the keys' heads.
  const std::int64_t kv_heads = q.centre.shape[1];
  require(!correction || shared_by(heads, kv_heads), name, "'s centre has ", kv_heads, " heads, which do not divide its own ", heads);
  check_part(q.centre, name + "'s centre", DType::f32,
             correction                       ? Shape{q.sequences(), kv_heads, 1, dim}
             : q.quant.centre != Centre::none ? vector
                                              : Shape{},
             Together::dense);
  check_ranks(q, name);
  check_residuals(q, name);
  check_nonfinite(q, name);
}

}  // namespace chitu
