// SPDX-License-Identifier: Apache-2.0
// Start reading here. attention() is describe -> select -> run: a checked Problem, the first row of the kernel table that takes it,
// that row's function.
#include "chitu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/numbers.h"
#include "common/parallel.h"
#include "dispatch.h"

namespace chitu {
namespace {

void check_workspace(const Kernel& kernel, const Problem& p) {
  if (!p.workspace) return;
  const std::size_t needed = kernel.workspace ? kernel.workspace(p) : 0;
  require(p.workspace_bytes >= needed, "workspace has ", p.workspace_bytes, " bytes; this call needs ", needed, " (workspace_size())");
}

}  // namespace

void attention(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options) {
  with_own_errors([&] {
    const Problem problem = describe(query, key, value, output, options);
    const Kernel& kernel = select(problem);
    check_workspace(kernel, problem);
    kernel.run(problem);
  });
}

std::size_t workspace_size(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options) {
  return with_own_errors([&] {
    const Problem problem = describe(query, key, value, output, options, Data::unread);
    const Kernel& kernel = select(problem);
    return kernel.workspace ? kernel.workspace(problem) : 0;
  });
}

const Method& find_method(std::string_view name) {
  std::string names;
  for (const Method& m : methods) {
    if (m.name == name) return m;
    names += (names.empty() ? "" : ", ") + std::string(m.name);
  }
  throw Error(ErrorCode::bad_argument, "there is no method '" + std::string(name) + "'; the methods are " + names);
}

std::ostream& operator<<(std::ostream& out, const AsText& text) {
  const Shape& s = text.shape;
  return out << "[" << s[0] << ", " << s[1] << ", " << s[2] << ", " << s[3] << "]";
}

namespace {

bool quantised(DType type) { return type == DType::i8 || type == DType::e4m3 || type == DType::f16; }

void check_operand(const Operand& operand, Role role, const Quant& quant, std::span<const std::int64_t> starts, Data data) {
  const char* const name = chitu::name(role);
  check_tensor(operand.tensor(), name, operand.quantized() != nullptr, data);
  check_starts(starts, operand.tensor(), name);
  check_quant(quant, role);
  if (const Quantized* q = operand.quantized()) {
    require(q->role == role, name, " was quantised as another operand: as ", chitu::name(q->role), ", not as ", name);
    require(q->quant == quant, name, " was quantised for another recipe");
    require(std::equal(starts.begin(), starts.end(), q->starts.begin(), q->starts.end()), name,
            " was quantised with other sequence starts");
    if (q->values.device == Device::cpu) check_quantized(*q, name, data);  // on a GPU no kernel takes it
  }
}

// Queries that come quantised must carry the correction for these keys' centre, or their LSE would be wrong without a word.
void check_correction(const Operand& query, const Operand& key, const Recipe& recipe, bool lse) {
  if (!query.quantized() || !lse || query.tensor().device != Device::cpu) return;  // on a GPU no kernel takes it
  const Tensor& with = query.quantized()->centre;
  if (recipe.key.centre == Centre::none)
    return require(!given(with), "query was quantised for keys with a centre, but this recipe's have none, so the LSE would be wrong");
  require(given(with), "query was quantised without keys, but an LSE is asked for: give QuantizeOptions::keys, or the query as it came");
  require(key.quantized(), "query is quantised for given keys, but key is not quantised: give both, or the query as it came");
  const Tensor& centre = key.quantized()->centre;
  require(with.shape == centre.shape &&
              (empty(centre) || std::memcmp(with.data, centre.data, static_cast<std::size_t>(centre.stride[0] * centre.shape[0]) * 4) == 0),
          "query was quantised for keys with another centre, so the LSE would be wrong");
}

void check_recipe(const Recipe& r) {
  const bool int8_scores = r.query.type == DType::i8;
  require(int8_scores == (r.key.type == DType::i8), "recipe: query and key must both be INT8 or neither");
  require(r.query.rotated == r.key.rotated, "recipe: query and key must be rotated alike");
  const Weights& w = r.weights;
  const bool int8_weights = r.value.type == DType::i8;
  require(int8_weights == (w.type == DType::u8), "recipe: INT8 values need u8 weights and the reverse");
  require(int8_weights || w.type == DType::f32 || w.type == DType::f16 || w.type == DType::e4m3, "recipe: weights cannot be ",
          name(w.type));
  require(w.top > 0 && (w.type == DType::f32 || w.top <= largest(w.type)), "recipe: weights have top ", w.top, ", but ", name(w.type),
          " ends at ", largest(w.type));
  require(w.by_tile || r.value.scaling != Scaling::tile, "recipe: values with a scale for each tile need weights by tile");
}

std::vector<Sequence> sequences_of(const Tensor& q, const Tensor& k, const Options& o) {
  std::vector<Sequence> all;
  const auto add = [&](std::int64_t batch, std::int64_t q0, std::int64_t queries, std::int64_t k0, std::int64_t keys) {
    const Positions kp = o.key_positions.value_or(Positions{});
    const Positions qp = o.query_positions.value_or(Positions{kp.first + (keys - queries) * kp.step, kp.step});
    all.push_back({batch, q0, queries, k0, keys, qp, kp});
  };
  if (o.query_starts.empty())
    for (std::int64_t b = 0; b < q.shape[0]; ++b) add(b, 0, q.shape[2], 0, k.shape[2]);
  for (std::size_t i = 0; i + 1 < o.query_starts.size(); ++i)
    add(0, o.query_starts[i], o.query_starts[i + 1] - o.query_starts[i], o.key_starts[i], o.key_starts[i + 1] - o.key_starts[i]);
  return all;
}

std::string place(const Tensor& t) { return (t.device == Device::cpu ? "cpu:" : "cuda:") + std::to_string(t.device_id); }

void check_positions(const std::optional<Positions>& p, const char* name) {
  if (!p) return;
  constexpr std::int64_t limit = unbounded / 4, largest_step = (std::int64_t{1} << 31) - 1;
  require(p->step >= 1 && p->step <= largest_step, name, " have step ", p->step, "; it must be 1 ... ", largest_step);
  require(p->first > -limit && p->first < limit, name, " begin at ", p->first, "; that must lie between -", limit, " and ", limit);
}

constexpr const char* dimensions[] = {"batch entries", "heads", "tokens"};

}  // namespace

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
  require(t.stride[3] == 1, name, " has stride ", t.stride[3], " between channels; the last dimension must be contiguous (stride 1)");
  check_strides(t, name);
  const bool known = is_float(t.type) || (quantized && quantised(t.type));
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
  require(!q.rotated || (role != Role::value && tokens), "recipe: only INT8 queries and keys are rotated");
}

void check_threads(int threads) {
  require(threads >= 0 && threads <= max_threads, "threads is ", threads, "; it must be 0 (all) ... ", max_threads);
}

Problem describe(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& o, Data data) {
  check_operand(query, Role::query, o.recipe.query, o.query_starts, data);
  check_operand(key, Role::key, o.recipe.key, o.key_starts, data);
  check_operand(value, Role::value, o.recipe.value, o.key_starts, data);
  check_recipe(o.recipe);
  check_tensor(output.out, "out", false, data);
  check_written(output.out, "out");
  const Tensor &q = query.tensor(), &k = key.tensor(), &v = value.tensor();
  const bool lse = given(output.lse);
  require(k.shape == v.shape, "key has shape ", AsText(k.shape), ", value ", AsText(v.shape), "; they must be equal");
  require(q.shape[0] == k.shape[0], "query has batch ", q.shape[0], ", key ", k.shape[0]);
  require(q.shape[3] == k.shape[3], "query has dim ", q.shape[3], ", key ", k.shape[3]);
  require(k.shape[1] > 0 ? q.shape[1] % k.shape[1] == 0 : q.shape[1] == 0, "query has ", q.shape[1],
          " heads, which is no multiple of key's ", k.shape[1]);
  require(output.out.shape == q.shape, "out has shape ", AsText(output.out.shape), ", query ", AsText(q.shape), "; they must be equal");
  if (lse) {
    check_lse(output.lse, "lse", q.shape, data);
    check_written(output.lse, "lse");
  }
  for (const auto& [t, name] : {std::pair{&k, "key"}, {&v, "value"}, {&output.out, "out"}, {&output.lse, "lse"}})
    require((!t->data && empty(*t)) || (t->device == q.device && t->device_id == q.device_id), name, " is on ", place(*t), ", query on ",
            place(q), "; all must be on one device");
  require(o.query_starts.size() == o.key_starts.size(), "query_starts have ", o.query_starts.size(), " entries, key_starts ",
          o.key_starts.size(), "; they must be equal");
  require(o.window.left >= 0 && o.window.right >= 0, "window is (", o.window.left, ", ", o.window.right,
          "); both sides must be 0 or more (`unbounded` for no bound)");
  const Window window{std::min(o.window.left, unbounded), std::min(o.window.right, unbounded)};
  const float scale = o.scale.value_or(1 / std::sqrt(static_cast<float>(q.shape[3])));
  require(is_finite(scale), "scale is ", scale, "; it must be finite");
  check_positions(o.query_positions, "query_positions");
  check_positions(o.key_positions, "key_positions");
  check_threads(o.threads);
  require(q.device == Device::cuda || !o.stream, "stream is given, but the tensors are on the CPU; it must be null");
  require(q.device == Device::cpu || o.threads == 0, "threads is ", o.threads, ", but the tensors are on a GPU; it must be 0");
  require(q.device == Device::cuda || !o.workspace, "workspace is given, but the tensors are on the CPU; it must be null");
  require(o.workspace || o.workspace_bytes == 0, "workspace is null, but workspace_bytes is ", o.workspace_bytes);
  require(reinterpret_cast<std::uintptr_t>(o.workspace) % 256 == 0, "workspace starts at no multiple of 256 bytes");
  check_correction(query, key, o.recipe, lse);

  return {.query = query,
          .key = key,
          .value = value,
          .output = output,
          .recipe = o.recipe,
          .window = window,
          .scale = scale,
          .sequences = sequences_of(q, k, o),
          .query_starts = {o.query_starts.begin(), o.query_starts.end()},
          .key_starts = {o.key_starts.begin(), o.key_starts.end()},
          .threads = thread_count(o.threads),
          .stream = o.stream,
          .workspace = o.workspace,
          .workspace_bytes = o.workspace_bytes,
          .kernel = o.kernel};
}

}  // namespace chitu
