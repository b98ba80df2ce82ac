// SPDX-License-Identifier: Apache-2.0
// The C interface: each function converts its arguments, calls the C++ one, and turns what is thrown into a status.
#include "chitu/c.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "c_api.h"
#include "checks.h"
#include "chitu/attention.h"
#include "chitu/version.h"

namespace {

using chitu::require;

// Not a string: keeping a message must not throw.
thread_local char last_error[4096] = "";

using chitu::c_api::guarded;

static_assert(static_cast<int>(chitu::ErrorCode::bad_argument) == CHITU_BAD_ARGUMENT &&
              static_cast<int>(chitu::ErrorCode::unsupported) == CHITU_UNSUPPORTED &&
              static_cast<int>(chitu::ErrorCode::out_of_memory) == CHITU_OUT_OF_MEMORY &&
              static_cast<int>(chitu::ErrorCode::internal) == CHITU_INTERNAL);
static_assert(static_cast<int>(chitu::DType::e4m3) == CHITU_E4M3 && static_cast<int>(chitu::Device::cuda) == CHITU_CUDA &&
              static_cast<int>(chitu::Role::value) == CHITU_VALUE);

chitu::Tensor tensor(const chitu_tensor* t, const char* name) {
  require(t, name, " is NULL");
  require(t->dtype >= CHITU_F32 && t->dtype <= CHITU_E4M3, name, " has dtype ", t->dtype, "; it must be 0 ... ", int{CHITU_E4M3});
  require(t->device == CHITU_CPU || t->device == CHITU_CUDA, name, " has device ", t->device, "; it must be 0 (CPU) or 1 (CUDA)");
  chitu::Tensor result{t->data, static_cast<chitu::DType>(t->dtype), static_cast<chitu::Device>(t->device), t->device_id};
  std::copy_n(t->shape, 4, result.shape.begin());
  std::copy_n(t->stride, 4, result.stride.begin());
  return result;
}

chitu::Tensor tensor_or_none(const chitu_tensor* t, const char* name) { return t ? tensor(t, name) : chitu::Tensor{}; }

chitu_tensor view(const chitu::Tensor& t) {
  chitu_tensor result{t.data, static_cast<int32_t>(t.type), static_cast<int32_t>(t.device), t.device_id, {}, {}};
  std::copy(t.shape.begin(), t.shape.end(), result.shape);
  std::copy(t.stride.begin(), t.stride.end(), result.stride);
  return result;
}

chitu::Operand operand(const chitu_operand* o, const char* name) {
  require(o && (o->tensor != nullptr) != (o->quantized != nullptr), name, " must have a tensor or a quantized, and not both");
  return o->quantized ? chitu::Operand(o->quantized->value) : chitu::Operand(tensor(o->tensor, name));
}

std::span<const std::int64_t> starts(const int64_t* data, size_t count, const char* name) {
  require(data || count == 0, name, " is NULL, but its count is ", count);
  return {data, count};
}

// What the caller's struct, perhaps of an older or newer header, says in terms of this one.
template <class Struct>
Struct known(const Struct* given, const Struct& defaults, const char* name) {
  Struct result = defaults;
  if (!given) return result;
  const size_t size = given->struct_size;
  require(size >= sizeof size && size % alignof(Struct) == 0 && size <= (size_t{1} << 16), name, ".struct_size is ", size,
          "; it must be sizeof(", name, "), here ", sizeof(Struct));
  std::memcpy(&result, given, std::min(size, sizeof(Struct)));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(Struct); i < size; ++i)
    require(bytes[i] == 0, name, ".struct_size is ", size, ", and a field past the ", sizeof(Struct),
            " bytes that this library knows is set");
  require(result.reserved == 0, name, ".reserved is ", result.reserved, "; it must be 0");
  return result;
}

chitu_options default_options() {
  chitu_options o{};
  o.struct_size = sizeof o;
  o.method = "chitu";
  o.window_left = o.window_right = -1;
  o.query_positions = o.key_positions = {0, 1};
  return o;
}

std::int64_t bound(int64_t given, const char* name) {
  require(given >= -1, name, " is ", given, "; it must be 0 or more, or -1 for no bound");
  return given == -1 ? chitu::unbounded : given;
}

template <class Enum>
Enum enumeration(int32_t number, Enum last, const char* what) {
  require(number >= 0 && number <= static_cast<int32_t>(last), "recipe: ", what, " is ", number, "; it must be 0 ... ",
          static_cast<int32_t>(last));
  return static_cast<Enum>(number);
}

chitu::Quant quant(const chitu_quant& q) {
  return {.type = enumeration(q.dtype, chitu::DType::e4m3, "dtype"),
          .scaling = enumeration(q.scaling, chitu::Scaling::tile, "scaling"),
          .groups = {q.group_block, q.group_lanes},
          .centre = enumeration(q.centre, chitu::Centre::sampled_mean, "centre"),
          .rotated = q.rotated != 0,
          .sorted = q.sorted != 0};
}

chitu_quant number(const chitu::Quant& q) {
  return {static_cast<int32_t>(q.type),
          static_cast<int32_t>(q.scaling),
          q.groups.block,
          q.groups.lanes,
          static_cast<int32_t>(q.centre),
          q.rotated,
          q.sorted};
}

chitu_recipe numbers(const chitu::Recipe& r) {
  return {number(r.query),
          number(r.key),
          number(r.value),
          static_cast<int32_t>(r.weights.type),
          r.weights.top,
          r.weights.by_tile,
          static_cast<int32_t>(r.weights.output),
          static_cast<int32_t>(r.weights.lse)};
}

// owner: the text before a field's name in messages.
chitu::Recipe recipe(const char* method, const chitu_recipe* given, const char* owner) {
  require(method || given, owner, "method is NULL");
  if (!given) return chitu::find_method(method).recipe;
  require(!method, owner, "method and recipe are both given; one must be NULL");
  return {.query = quant(given->query),
          .key = quant(given->key),
          .value = quant(given->value),
          .weights = {.type = enumeration(given->weights_dtype, chitu::DType::e4m3, "weights_dtype"),
                      .top = given->weights_top,
                      .by_tile = given->weights_by_tile != 0,
                      .output = enumeration(given->weights_output, chitu::Sum::rounded, "weights_output"),
                      .lse = enumeration(given->weights_lse, chitu::Sum::rounded, "weights_lse")}};
}

// Options that view what they hold.
struct HeldOptions : chitu::Options {
  HeldOptions() = default;
  HeldOptions(HeldOptions&&) = default;
  std::vector<chitu::Positions> held[2];
};

std::span<const chitu::Positions> positions(const chitu_positions* data, size_t count, const char* name,
                                            std::vector<chitu::Positions>& held) {
  require(data || count == 0, name, " is NULL, but its count is ", count);
  for (size_t i = 0; i < count; ++i) held.push_back({data[i].first, data[i].step});
  return held;
}

HeldOptions options(const chitu_options* given) {
  const chitu_options o = known(given, default_options(), "chitu_options");
  // The defaults have step 1, used or not; a struct of zeros would ask for a window of (0, 0).
  require(o.query_positions.step != 0 && o.key_positions.step != 0, "chitu_options has positions with step 0, used or not; ",
          "fill it with chitu_options_init() first");
  HeldOptions result;
  result.recipe = recipe(o.method, o.recipe, "chitu_options.");
  result.window = {bound(o.window_left, "window_left"), bound(o.window_right, "window_right")};
  if (o.has_scale) result.scale = o.scale;
  if (o.has_query_positions) result.query_positions = {o.query_positions.first, o.query_positions.step};
  if (o.has_key_positions) result.key_positions = {o.key_positions.first, o.key_positions.step};
  result.query_positions_of = positions(o.query_positions_of, o.query_positions_of_count, "query_positions_of", result.held[0]);
  result.key_positions_of = positions(o.key_positions_of, o.key_positions_of_count, "key_positions_of", result.held[1]);
  result.query_starts = starts(o.query_starts, o.query_starts_count, "query_starts");
  result.key_starts = starts(o.key_starts, o.key_starts_count, "key_starts");
  require(o.device_query_starts || o.device_query_starts_count == 0, "device_query_starts is NULL, but its count is ",
          o.device_query_starts_count);
  require(o.device_key_starts || o.device_key_starts_count == 0, "device_key_starts is NULL, but its count is ", o.device_key_starts_count);
  require(o.device_key_lengths || o.device_key_lengths_count == 0, "device_key_lengths is NULL, but its count is ",
          o.device_key_lengths_count);
  result.device_key_lengths = {o.device_key_lengths, o.device_key_lengths_count};
  result.key_lengths = starts(o.key_lengths, o.key_lengths_count, "key_lengths");
  result.device_query_starts = {o.device_query_starts, o.device_query_starts_count};
  result.device_key_starts = {o.device_key_starts, o.device_key_starts_count};
  result.max_queries = o.max_queries;
  result.max_keys = o.max_keys;
  result.check_device_lengths = o.check_device_lengths != 0;
  result.threads = o.threads;
  result.stream = o.stream;
  result.workspace = o.workspace;
  result.workspace_bytes = o.workspace_bytes;
  if (o.kernel) result.kernel = o.kernel;
  return result;
}

static_assert(std::size(chitu::quantized_parts) == CHITU_RANKS + 1);

// Views of what the caller gave, checked.
chitu::Quantized quantized_view(const chitu_quantized_parts& p) {
  require(p.version == chitu::quantized_version, "parts have version ", p.version, "; this library's is ", chitu::quantized_version);
  require(p.role >= CHITU_QUERY && p.role <= CHITU_VALUE, "role is ", p.role, "; it must be 0 (query), 1 (key) or 2 (value)");
  require(p.parts_count <= std::size(chitu::quantized_parts), "parts_count is ", p.parts_count, "; there are ",
          std::size(chitu::quantized_parts));
  require(p.parts || p.parts_count == 0, "parts is NULL, but its count is ", p.parts_count);
  require(p.residual_of || p.residual_of_count == 0, "residual_of is NULL, but its count is ", p.residual_of_count);
  require(p.nonfinite || p.nonfinite_count == 0, "nonfinite is NULL, but its count is ", p.nonfinite_count);
  chitu::Quantized q;
  q.role = static_cast<chitu::Role>(p.role);
  q.quant = quant(p.quant);
  const auto sequence_starts = starts(p.starts, p.starts_count, "starts");
  q.starts.assign(sequence_starts.begin(), sequence_starts.end());
  for (size_t i = 0; i < p.parts_count; ++i) q.*chitu::quantized_parts[i] = tensor(&p.parts[i], "a part");
  q.residual_of.assign(p.residual_of, p.residual_of + p.residual_of_count);
  for (size_t i = 0; i < p.nonfinite_count; ++i) {
    const chitu_nonfinite& n = p.nonfinite[i];
    require(n.values, "nonfinite[", i, "].values is NULL");
    q.nonfinite.push_back({n.sequence, n.head, n.token, {n.values, n.values + std::clamp<int64_t>(q.values.shape[3], 0, chitu::max_dim)}});
  }
  chitu::check_quantized(q, chitu::name(q.role));
  return q;
}

// What chitu_quantize() and the functions of its sizes are given.
struct QuantizeArguments {
  chitu::Tensor x;
  chitu::Role role{};
  chitu::Recipe recipe;
  chitu::QuantizeOptions options;

  QuantizeArguments(const chitu_tensor* given_x, int32_t given_role, const char* method, const chitu_quantize_options* given) {
    require(given_role >= CHITU_QUERY && given_role <= CHITU_VALUE, "role is ", given_role, "; it must be 0 (query), 1 (key) or 2 (value)");
    const chitu_quantize_options o = known(given, {}, "chitu_quantize_options");
    x = tensor(given_x, "x");
    role = static_cast<chitu::Role>(given_role);
    recipe = ::recipe(method, o.recipe, "");
    options = {.starts = starts(o.starts, o.starts_count, "starts"),
               .keys = o.keys ? &o.keys->value : nullptr,
               .centre = tensor_or_none(o.centre, "centre"),
               .channels = tensor_or_none(o.channels, "channels"),
               .threads = o.threads,
               .stream = o.stream,
               .memory = o.memory,
               .memory_bytes = o.memory_bytes,
               .workspace = o.workspace,
               .workspace_bytes = o.workspace_bytes};
  }
};

// A dense copy, of which `q` owns the memory.
chitu::Tensor copied(const chitu::Tensor& t, chitu::Quantized& q) {
  if (!t.data) return t;
  const auto size = static_cast<size_t>(chitu::bytes(t.type)), row = static_cast<size_t>(t.shape[3]) * size;
  const auto rows = static_cast<size_t>(t.shape[0] * t.shape[1] * t.shape[2]);
  q.storage.push_back(std::make_shared<std::byte[]>(rows * row + 64));  // kernels may read past the end
  std::byte* to = q.storage.back().get();
  const auto* from = static_cast<const std::byte*>(t.data);
  for (int64_t b = 0; b < t.shape[0]; ++b)
    for (int64_t h = 0; h < t.shape[1]; ++h)
      for (int64_t s = 0; s < t.shape[2]; ++s, to += row)
        std::memcpy(to, from + (b * t.stride[0] + h * t.stride[1] + s * t.stride[2]) * static_cast<int64_t>(size), row);
  return chitu::dense(q.storage.back().get(), t.type, t.shape);
}

}  // namespace

chitu_quantized::chitu_quantized(chitu::Quantized quantized) : value(std::move(quantized)) {
  for (const auto part : chitu::quantized_parts) parts.push_back(view(value.*part));
  for (const chitu::NonFinite& n : value.nonfinite) nonfinite.push_back({n.sequence, n.head, n.token, n.values.data()});
}

chitu_status chitu::c_api::fail(chitu_status status, const char* what) {
  std::snprintf(last_error, sizeof last_error, "%s", what);
  return status;
}

extern "C" {

int32_t chitu_abi_version(void) { return CHITU_ABI_VERSION; }
const char* chitu_version(void) { return CHITU_VERSION; }
const char* chitu_last_error(void) { return last_error; }

chitu_status chitu_options_init(chitu_options* o, size_t struct_size) {
  return guarded([&] {
    require(o, "options is NULL");
    require(struct_size >= sizeof struct_size && struct_size % alignof(chitu_options) == 0, "struct_size is ", struct_size,
            "; it must be sizeof(chitu_options)");
    const chitu_options defaults = default_options();
    std::memset(o, 0, struct_size);
    std::memcpy(o, &defaults, std::min(struct_size, sizeof defaults));
    o->struct_size = struct_size;
  });
}

chitu_status chitu_attention(const chitu_tensor* query, const chitu_tensor* key, const chitu_tensor* value, const chitu_tensor* out,
                             const chitu_tensor* lse, const chitu_options* o) {
  return guarded([&] {
    chitu::attention(tensor(query, "query"), tensor(key, "key"), tensor(value, "value"), {tensor(out, "out"), tensor_or_none(lse, "lse")},
                     options(o));
  });
}

chitu_status chitu_workspace_size(const chitu_tensor* query, const chitu_tensor* key, const chitu_tensor* value, const chitu_tensor* out,
                                  const chitu_tensor* lse, const chitu_options* o, size_t* bytes) {
  return guarded([&] {
    require(bytes, "bytes is NULL");
    *bytes = chitu::workspace_size(tensor(query, "query"), tensor(key, "key"), tensor(value, "value"),
                                   {tensor(out, "out"), tensor_or_none(lse, "lse")}, options(o));
  });
}

chitu_status chitu_attention_quantized(const chitu_operand* query, const chitu_operand* key, const chitu_operand* value,
                                       const chitu_tensor* out, const chitu_tensor* lse, const chitu_options* o) {
  return guarded([&] {
    chitu::attention(operand(query, "query"), operand(key, "key"), operand(value, "value"),
                     {tensor(out, "out"), tensor_or_none(lse, "lse")}, options(o));
  });
}

chitu_status chitu_workspace_size_quantized(const chitu_operand* query, const chitu_operand* key, const chitu_operand* value,
                                            const chitu_tensor* out, const chitu_tensor* lse, const chitu_options* o, size_t* bytes) {
  return guarded([&] {
    require(bytes, "bytes is NULL");
    *bytes = chitu::workspace_size(operand(query, "query"), operand(key, "key"), operand(value, "value"),
                                   {tensor(out, "out"), tensor_or_none(lse, "lse")}, options(o));
  });
}

chitu_status chitu_quantize(const chitu_tensor* x, int32_t role, const char* method, const chitu_quantize_options* given,
                            chitu_quantized** quantized) {
  return guarded([&] {
    require(quantized, "quantized is NULL");
    const QuantizeArguments a(x, role, method, given);
    *quantized = new chitu_quantized(chitu::quantize(a.x, a.role, a.recipe, a.options));
  });
}

chitu_status chitu_quantize_keys_and_values(const chitu_tensor* key, const chitu_tensor* value, const char* method,
                                            const chitu_quantize_options* given, chitu_quantized** quantized_key,
                                            chitu_quantized** quantized_value) {
  return guarded([&] {
    require(quantized_key && quantized_value, quantized_key ? "quantized_value" : "quantized_key", " is NULL");
    const QuantizeArguments a(key, CHITU_KEY, method, given);
    chitu::KeysAndValues both = chitu::quantize_keys_and_values(a.x, tensor(value, "value"), a.recipe, a.options);
    auto first = std::make_unique<chitu_quantized>(std::move(both.key));
    *quantized_value = new chitu_quantized(std::move(both.value));
    *quantized_key = first.release();
  });
}

chitu_status chitu_quantized_bytes(const chitu_tensor* x, int32_t role, const char* method, const chitu_quantize_options* given,
                                   size_t* bytes) {
  return guarded([&] {
    require(bytes, "bytes is NULL");
    const QuantizeArguments a(x, role, method, given);
    *bytes = chitu::quantized_bytes(a.x, a.role, a.recipe, a.options);
  });
}

chitu_status chitu_quantize_workspace_size(const chitu_tensor* x, int32_t role, const char* method, const chitu_quantize_options* given,
                                           size_t* bytes) {
  return guarded([&] {
    require(bytes, "bytes is NULL");
    const QuantizeArguments a(x, role, method, given);
    *bytes = chitu::quantize_workspace_size(a.x, a.role, a.recipe, a.options);
  });
}

void chitu_quantized_free(chitu_quantized* quantized) { delete quantized; }
int32_t chitu_quantized_version(void) { return chitu::quantized_version; }

chitu_status chitu_quantized_vectors(const chitu_quantized* quantized, chitu_tensor* centre, chitu_tensor* channels) {
  return guarded([&] {
    require(quantized, "quantized is NULL");
    if (centre) *centre = view(quantized->value.centre);
    if (channels) *channels = view(quantized->value.channels);
  });
}

chitu_status chitu_quantized_part(const chitu_quantized* quantized, int32_t part, chitu_tensor* result) {
  return guarded([&] {
    require(quantized, "quantized is NULL");
    require(result, "view is NULL");
    require(part >= CHITU_VALUES && part <= CHITU_RANKS, "part is ", part, "; it must be 0 ... ", int{CHITU_RANKS});
    *result = quantized->parts[static_cast<size_t>(part)];
  });
}

chitu_status chitu_quantized_view(const chitu_quantized* quantized, chitu_quantized_parts* parts) {
  return guarded([&] {
    require(quantized, "quantized is NULL");
    require(parts, "parts is NULL");
    const size_t size = parts->struct_size;
    require(size == sizeof *parts, "parts.struct_size is ", size, "; it must be sizeof(chitu_quantized_parts), here ", sizeof *parts);
    const chitu::Quantized& q = quantized->value;
    *parts = {.struct_size = size,
              .version = q.version,
              .role = static_cast<int32_t>(q.role),
              .quant = number(q.quant),
              .starts = q.starts.data(),
              .starts_count = q.starts.size(),
              .parts = quantized->parts.data(),
              .parts_count = quantized->parts.size(),
              .residual_of = q.residual_of.data(),
              .residual_of_count = q.residual_of.size(),
              .nonfinite = quantized->nonfinite.data(),
              .nonfinite_count = quantized->nonfinite.size(),
              .reserved = 0};
  });
}

chitu_status chitu_quantized_make(const chitu_quantized_parts* parts, chitu_quantized** quantized) {
  return guarded([&] {
    require(parts, "parts is NULL");
    require(quantized, "quantized is NULL");
    chitu::Quantized q = quantized_view(known(parts, {}, "chitu_quantized_parts"));
    for (const auto part : chitu::quantized_parts) q.*part = copied(q.*part, q);
    *quantized = new chitu_quantized(std::move(q));
  });
}

chitu_status chitu_merge(const chitu_tensor* out_a, const chitu_tensor* lse_a, const chitu_tensor* out_b, const chitu_tensor* lse_b,
                         const chitu_tensor* out_result, const chitu_tensor* lse_result) {
  return guarded([&] {
    chitu::merge({tensor(out_a, "out_a"), tensor(lse_a, "lse_a")}, {tensor(out_b, "out_b"), tensor(lse_b, "lse_b")},
                 {tensor(out_result, "out_result"), tensor(lse_result, "lse_result")});
  });
}

chitu_status chitu_merge_parts(size_t count, const chitu_tensor* outs, const chitu_tensor* lses, const chitu_tensor* out_result,
                               const chitu_tensor* lse_result, const chitu_merge_options* given) {
  return guarded([&] {
    const chitu_merge_options o = known(given, {}, "chitu_merge_options");
    require(outs || count == 0, "outs is NULL, but count is ", count);
    require(lses || count == 0, "lses is NULL, but count is ", count);
    std::vector<chitu::Output> parts;
    for (size_t i = 0; i < count; ++i) parts.emplace_back(tensor(&outs[i], "an out of outs"), tensor(&lses[i], "an lse of lses"));
    chitu::merge(parts, {tensor(out_result, "out_result"), tensor(lse_result, "lse_result")}, {.threads = o.threads, .stream = o.stream});
  });
}

chitu_status chitu_explain(const chitu_operand* query, const chitu_operand* key, const chitu_operand* value, const chitu_tensor* out,
                           const chitu_tensor* lse, const chitu_options* o, char* buffer, size_t capacity, size_t* needed) {
  return guarded([&] {
    require(buffer || capacity == 0, "buffer is NULL, but its capacity is ", capacity);
    const std::string text = chitu::explain(operand(query, "query"), operand(key, "key"), operand(value, "value"),
                                            {tensor(out, "out"), tensor_or_none(lse, "lse")}, options(o));
    if (needed) *needed = text.size() + 1;
    if (capacity == 0) return;
    const size_t count = std::min(text.size(), capacity - 1);
    std::memcpy(buffer, text.data(), count);
    buffer[count] = 0;
  });
}

size_t chitu_kernel_count(void) {
  size_t count = 0;
  guarded([&] { count = chitu::kernels().size(); });
  return count;
}

chitu_status chitu_kernel_info(size_t index, chitu_kernel* info) {
  return guarded([&] {
    require(info, "info is NULL");
    const auto all = chitu::kernels();
    require(index < all.size(), "kernel index is ", index, "; there are ", all.size(), " kernels");
    const chitu::KernelInfo& k = all[index];  // its names are literals, which end with a 0
    *info = {k.name.data(), k.scores.data(), k.weights.data(), k.available, static_cast<int32_t>(k.device)};
  });
}

size_t chitu_method_count(void) { return chitu::methods.size(); }
const char* chitu_method_name(size_t index) { return index < chitu::methods.size() ? chitu::methods[index].name.data() : nullptr; }

chitu_status chitu_method_info(size_t index, chitu_method* info) {
  return guarded([&] {
    require(info, "info is NULL");
    require(index < chitu::methods.size(), "method index is ", index, "; there are ", chitu::methods.size(), " methods");
    const chitu::Method& m = chitu::methods[index];  // its texts are literals, which end with a 0
    *info = {m.name.data(), m.summary.data(), m.origin.data(), numbers(m.recipe)};
  });
}

}  // extern "C"
