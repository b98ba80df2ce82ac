// SPDX-License-Identifier: Apache-2.0
// Checks a call and says it in full: problem.h.
#include "problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "checks.h"
#include "common/numbers.h"
#include "common/parallel.h"

namespace chitu {
namespace {

void check_operand(const Operand& operand, Role role, const Quant& quant, std::span<const std::int64_t> starts, Data data) {
  const char* const name = chitu::name(role);
  check_tensor(operand.tensor(), name, operand.quantized() != nullptr, data);
  check_starts(starts, operand.tensor(), name);
  check_quant(quant, role);
  if (const Quantized* q = operand.quantized()) {
    check_version(*q, name);
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
  const auto numbers = static_cast<std::size_t>(centre.shape[0] * centre.shape[1] * centre.shape[3]);  // dense
  require(with.shape == centre.shape && (empty(centre) || std::memcmp(with.data, centre.data, numbers * sizeof(float)) == 0),
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

void check_position(const Positions& p, const std::string& name) {
  constexpr std::int64_t limit = unbounded / 4, largest_step = (std::int64_t{1} << 31) - 1;
  require(p.step >= 1 && p.step <= largest_step, name, " have step ", p.step, "; it must be 1 ... ", largest_step);
  require(p.first > -limit && p.first < limit, name, " begin at ", p.first, "; that must lie between -", limit, " and ", limit);
}

// one: of all sequences; each: of each of `count` sequences.
void check_positions(const std::optional<Positions>& one, std::span<const Positions> each, std::int64_t count, const std::string& name) {
  if (one) check_position(*one, name);
  if (each.empty()) return;
  require(!one, name, " and ", name, "_of are both given; one must be absent");
  require(static_cast<std::int64_t>(each.size()) == count, name, "_of have ", each.size(), " entries, but there are ", count, " sequences");
  for (std::size_t i = 0; i < each.size(); ++i) check_position(each[i], name + "_of[" + std::to_string(i) + "]");
}

// Of a batch entry whose keys are counted on the GPU.
std::int64_t most_keys(const Tensor& k, const Options& o) { return o.max_keys ? std::min(o.max_keys, k.shape[2]) : k.shape[2]; }

std::vector<Sequence> sequences_of(const Tensor& q, const Tensor& k, const Options& o) {
  std::vector<Sequence> all;
  const auto add = [&](std::int64_t batch, std::int64_t q0, std::int64_t queries, std::int64_t k0, std::int64_t keys) {
    const std::size_t i = all.size();
    const Positions kp = o.key_positions_of.empty() ? o.key_positions.value_or(Positions{}) : o.key_positions_of[i];
    const Positions last_at_last_key{kp.first + (keys - queries) * kp.step, kp.step};
    const Positions qp = o.query_positions_of.empty() ? o.query_positions.value_or(last_at_last_key) : o.query_positions_of[i];
    all.push_back({batch, q0, queries, k0, keys, qp, kp});
  };
  if (!o.device_query_starts.empty())  // as long as they may be
    for (std::size_t i = 0; i + 1 < o.device_query_starts.size(); ++i)
      add(0, 0, std::min(o.max_queries, q.shape[2]), 0, std::min(o.max_keys, k.shape[2]));
  else if (o.query_starts.empty())
    for (std::int64_t b = 0; b < q.shape[0]; ++b)
      add(b, 0, q.shape[2], 0,
          !o.key_lengths.empty()          ? o.key_lengths[static_cast<std::size_t>(b)]
          : !o.device_key_lengths.empty() ? most_keys(k, o)
                                          : k.shape[2]);
  for (std::size_t i = 0; i + 1 < o.query_starts.size(); ++i)
    add(0, o.query_starts[i], o.query_starts[i + 1] - o.query_starts[i], o.key_starts[i], o.key_starts[i + 1] - o.key_starts[i]);
  return all;
}

void check_device_starts(const Tensor& q, const Options& o) {
  const auto &queries = o.device_query_starts, &keys = o.device_key_starts;
  if (queries.empty() && keys.empty()) {
    require(o.max_queries == 0 && (o.max_keys == 0 || !o.device_key_lengths.empty()), "max_queries is ", o.max_queries, " and max_keys ",
            o.max_keys, ", but there are no device_query_starts and device_key_starts, which alone need bounds");
    return require(!o.check_device_lengths || !o.device_key_lengths.empty(),
                   "check_device_lengths is set, but there are no device_query_starts and device_key_starts, and no device_key_lengths");
  }
  require(queries.size() == keys.size(), "device_query_starts have ", queries.size(), " entries, device_key_starts ", keys.size(),
          "; they must be equal");
  require(queries.size() >= 2, "device_query_starts have ", queries.size(), " entries; they need one more than there are sequences");
  require(queries.size() - 1 <= static_cast<std::size_t>(max_heads), "device_query_starts are of ", queries.size() - 1,
          " sequences; there may be at most ", max_heads);
  require(queries.data() && keys.data(), "device_query_starts or device_key_starts are null, but have ", queries.size(), " entries");
  require(o.query_starts.empty() && o.key_starts.empty(),
          "query_starts and device_query_starts are both given; one must be absent, and so with those of keys");
  require(q.shape[0] == 1, "query has batch ", q.shape[0], "; packed sequences need batch 1");
  require(q.device == Device::cuda, "device_query_starts are given, but the tensors are on the CPU: give query_starts and key_starts");
  require(o.max_queries > 0 && o.max_keys > 0, "max_queries is ", o.max_queries, " and max_keys ", o.max_keys,
          "; with device_query_starts and device_key_starts both must be bounds of the sequences' lengths, 1 or more");
}

void check_key_lengths(const Operand& query, const Operand& key, const Operand& value, const Options& o) {
  const Shape& k = key.tensor().shape;
  const bool on_gpu = !o.device_key_lengths.empty();
  const std::size_t count = on_gpu ? o.device_key_lengths.size() : o.key_lengths.size();
  const char* const name = on_gpu ? "device_key_lengths" : "key_lengths";
  if (count == 0) return;
  require(!on_gpu || o.key_lengths.empty(), "key_lengths and device_key_lengths are both given; one must be absent");
  require(o.query_starts.empty() && o.device_query_starts.empty(), name,
          " are given with starts of packed sequences, which say the lengths themselves; one must be absent");
  require(static_cast<std::int64_t>(count) == k[0], name, " have ", count, " entries, but there are ", k[0], " batch entries");
  for (const auto& [operand, role] : {std::pair{&query, "query"}, {&key, "key"}, {&value, "value"}})
    require(!operand->quantized(), name, " are given, but ", role, " came quantised: give the operands as they came");
  if (on_gpu) {
    require(o.device_key_lengths.data(), "device_key_lengths are null, but have ", count, " entries");
    require(key.tensor().device == Device::cuda, "device_key_lengths are given, but the tensors are on the CPU: give key_lengths");
    return require(o.max_keys >= 0, "max_keys is ", o.max_keys, "; it must be a bound of device_key_lengths, or 0 for the tensor's");
  }
  for (std::size_t i = 0; i < count; ++i)
    require(o.key_lengths[i] >= 0 && o.key_lengths[i] <= k[2], "key_lengths[", i, "] is ", o.key_lengths[i], "; it must be 0 ... ", k[2],
            ", the keys of the tensor");
}

// Multiply-adds of a call, at most, with what it takes to read and quantise the operands: for thread_count().
double work_of(std::span<const Sequence> sequences, const Tensor& q, const Tensor& k, const Window& window) {
  const auto span = static_cast<double>(window.left) + static_cast<double>(window.right) + 1;
  double work = 0;
  for (const Sequence& s : sequences) {
    const auto queries = static_cast<double>(q.shape[1] * s.queries), keys = static_cast<double>(s.keys);
    const double numbers = queries + 2 * static_cast<double>(k.shape[1]) * keys;  // dim times as many
    work += (2 * queries * std::min(keys, span) + work_of_a_number * numbers) * static_cast<double>(q.shape[3]);
  }
  return work;
}

// Of tensors that come as they are; an operand that came quantised asks for more than its type.
bool several_types(std::initializer_list<const Operand*> operands, DType out) {
  return std::any_of(operands.begin(), operands.end(), [&](const Operand* o) { return !o->quantized() && o->tensor().type != out; });
}

// Everything in a call that is not the default, or that its recipe adds to `exact`'s. The options are taken apart, so that a new one does
// not compile until it has a name here; then it gets a Need, which every row of the kernel table refuses until the row lists it. Two
// options are select()'s own: `recipe`, for rows say what they compute in, and `kernel`. Every row does what the fields of a recipe say
// that are named here and have no Need. So a new field gets a Need in the same way.
Needs needs_of(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options) {
  const auto& [recipe, window, scale, query_positions, key_positions, query_positions_of, key_positions_of, query_starts, key_starts,
               key_lengths, device_query_starts, device_key_starts, device_key_lengths, max_queries, max_keys, check_device_lengths,
               threads, stream, workspace, workspace_bytes, kernel] = options;
  [[maybe_unused]] const auto& [query_quant, key_quant, value_quant, weights] = recipe;
  [[maybe_unused]] const auto& [type, scaling, groups, centre, rotated, sorted] = key_quant;
  [[maybe_unused]] const auto& [weight_type, top, by_tile, normalises_output, makes_lse] = weights;
  const auto& [out, lse] = output;
  const std::pair<Need, bool> asked[] = {
      {Need::window, window.left < unbounded || window.right < unbounded},
      {Need::scale, scale.has_value()},
      {Need::negative_scale, scale && *scale < 0},
      {Need::query_positions, query_positions.has_value()},
      {Need::key_positions, key_positions.has_value()},
      {Need::positions_of_sequences, !query_positions_of.empty() || !key_positions_of.empty()},
      {Need::packed_sequences, !query_starts.empty() || !key_starts.empty()},
      {Need::key_lengths, !key_lengths.empty()},
      {Need::lengths_on_device, !device_query_starts.empty() || !device_key_starts.empty() || !device_key_lengths.empty() || max_queries ||
                                    max_keys || check_device_lengths},
      {Need::threads, threads != 0},
      {Need::stream, stream},
      {Need::workspace, workspace || workspace_bytes},
      {Need::lse, given(lse)},
      {Need::grouped_heads, query.tensor().shape[1] != key.tensor().shape[1]},
      {Need::mixed_types, several_types({&query, &key, &value}, out.type)},
      {Need::quantized_query, query.quantized()},
      {Need::quantized_key, key.quantized()},
      {Need::quantized_value, value.quantized()},
      {Need::sorted_keys, sorted},
  };
  Needs needs;
  for (const auto& [need, is_asked] : asked)
    if (is_asked) needs.add(need);
  return needs;
}

}  // namespace

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
    require((!t->data && empty(*t)) || (t->device == q.device && t->device_id == q.device_id), name, " is on ", device_name(*t),
            ", query on ", device_name(q), "; all must be on one device");
  require(o.query_starts.size() == o.key_starts.size(), "query_starts have ", o.query_starts.size(), " entries, key_starts ",
          o.key_starts.size(), "; they must be equal");
  require(o.window.left >= 0 && o.window.right >= 0, "window is (", o.window.left, ", ", o.window.right,
          "); both sides must be 0 or more (`unbounded` for no bound)");
  const Window window{std::min(o.window.left, unbounded), std::min(o.window.right, unbounded)};
  const float scale = o.scale.value_or(1 / std::sqrt(static_cast<float>(q.shape[3])));
  require(is_finite(scale), "scale is ", scale, "; it must be finite");
  check_device_starts(q, o);
  check_key_lengths(query, key, value, o);
  const std::int64_t sequence_number =
      o.device_query_starts.empty() ? sequence_count(q.shape, o.query_starts) : static_cast<std::int64_t>(o.device_query_starts.size()) - 1;
  check_positions(o.query_positions, o.query_positions_of, sequence_number, "query_positions");
  check_positions(o.key_positions, o.key_positions_of, sequence_number, "key_positions");
  check_threads(o.threads);
  require(q.device == Device::cuda || !o.stream, "stream is given, but the tensors are on the CPU; it must be null");
  require(q.device == Device::cpu || o.threads == 0, "threads is ", o.threads, ", but the tensors are on a GPU; it must be 0");
  require(q.device == Device::cuda || !o.workspace, "workspace is given, but the tensors are on the CPU; it must be null");
  require(o.workspace || o.workspace_bytes == 0, "workspace is null, but workspace_bytes is ", o.workspace_bytes);
  require(reinterpret_cast<std::uintptr_t>(o.workspace) % 256 == 0, "workspace starts at no multiple of 256 bytes");
  check_correction(query, key, o.recipe, lse);

  Options full = o;
  full.window = window;
  full.scale = scale;
  std::vector<Sequence> sequences = sequences_of(q, k, o);
  full.threads = thread_count(o.threads, work_of(sequences, q, k, window));
  return {.query = query,
          .key = key,
          .value = value,
          .output = output,
          .options = full,
          .needs = needs_of(query, key, value, output, o),
          .sequences = std::move(sequences)};
}

}  // namespace chitu
