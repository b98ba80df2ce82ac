// SPDX-License-Identifier: Apache-2.0
// quantize() on a GPU: what it refuses, its memory, its launches. One operand alone is made by quantize_any_recipe(). Keys and values
// together are made by the quantizer that a call from tensors has.
#include "cuda/quantize.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "checks.h"
#include "cuda/block.h"
#include "cuda/call.h"
#include "cuda/convert.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace chitu::cuda {
namespace {

constexpr std::int64_t most_tiles = std::int64_t{1} << 30;

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::unsupported, "quantize() on a GPU: " + why); }

void check_tensor(const Tensor& x, Role role, const Recipe& recipe) {
  const std::string name = chitu::name(role);
  if (std::none_of(methods.begin(), methods.end(), [&](const Method& m) { return m.recipe == recipe; }))
    refuse("it makes operands of the library's methods, and this recipe is not one of them");
  if (x.type != DType::f16 && x.type != DType::bf16) refuse("it takes f16 and bf16, but " + name + " is " + chitu::name(x.type));
  if (x.shape[3] % 8) refuse("it is for dims that are multiples of 8, not " + std::to_string(x.shape[3]));
  if (std::string why = misaligned(x, name.c_str()); !why.empty()) refuse(why);
  if (x.shape[1] * (x.shape[0] + x.shape[2] / tile_tokens + 1) * std::max<std::int64_t>(tiles_of(x.shape[2]), 1) < 0 ||
      x.shape[0] * x.shape[1] * tiles_of(x.shape[2]) > most_tiles)
    refuse("it is for up to 2^30 tiles of all heads: give fewer heads a call");
}

void check_device(const Tensor& x, Role role, const QuantizeOptions& o) {
  std::string why = "this build has no GPU kernels";
  for (const Architecture* a : architectures())
    if (why = trouble(x.device_id, a->major, a->minor); why.empty()) break;
  if (!why.empty()) refuse(why);
  for (const auto& [data, what] : {std::pair{x.data, name(role)},
                                   {o.memory, "memory"},
                                   {o.workspace, "workspace"},
                                   {o.centre.data, "centre"},
                                   {o.channels.data, "channels"}})
    require(!data || on_device(data, x.device_id), what, "'s memory is not on GPU ", x.device_id, ", as the tensor says");
}

// The keys of a query, whose centre it meets, or of a value, in whose order its tokens stand.
void check_keys(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& o) {
  const bool needed = role == Role::value && recipe.key.sorted;
  require(!needed || o.keys, "keys are missing: this recipe sorts the keys of a tile, and on a GPU values stand in their order");
  if (!o.keys) return;
  require(role != Role::key, "keys are given, but this operand is the key");
  require(role == Role::query || needed, "keys are given for the value, but this recipe does not sort keys");
  const Quantized& k = *o.keys;
  check_version(k, "keys");
  require(k.role == Role::key, "keys are given, but were quantised as another operand: as ", name(k.role));
  require(k.values.device == Device::cuda && k.values.device_id == x.device_id, "keys are on ", device_name(k.values), ", the tensor on ",
          device_name(x), "; both must be on one device");
  require(k.quant == recipe.key, "keys were quantised for another recipe");
  const Shape &a = k.values.shape, &b = x.shape;
  require(a[3] == b[3] && a[0] == b[0] && (role == Role::value ? a == b : shared_by(b[1], a[1])), "keys have shape ", AsText(a),
          ", which does not fit the ", name(role), "'s ", AsText(b));
  require(role == Role::query ? k.sequences() == sequence_count(b, o.starts)
                              : std::equal(o.starts.begin(), o.starts.end(), k.starts.begin(), k.starts.end()),
          "keys were quantised with other sequence starts");
  require(k.from == x.type, "keys were quantised from ", name(k.from), ", but the ", name(role), " is ", name(x.type));
}

// The call's parameters without memory; keys' arrays, where it needs them.
OperandPlan plan_of_call(const Tensor& x, Role role, const QuantizeOptions& o) {
  OperandPlan plan = plan_of(x, role, o.starts);
  if (role == Role::query && o.keys) plan.params.kv_heads = static_cast<int>(o.keys->values.shape[1]);
  return plan;
}

std::size_t place_workspace(Params& p, bool table, SequenceLayout*& layouts, std::byte* memory) {
  Arena arena(memory);
  std::uint16_t* unused_centre;
  float* unused_channels;
  const std::int64_t heads = std::int64_t{p.sequences} * p.kv_heads;
  arena.take(p.statistics, statistics_count(p));
  arena.take(unused_centre, heads * p.dim);
  arena.take(unused_channels, heads * padded_dim(p.dim));
  arena.take(layouts, table ? p.sequences + 1 : 0);
  p.centre = unused_centre;
  p.channels = unused_channels;
  p.layouts = table ? layouts : nullptr;
  return arena.bytes();
}

std::shared_ptr<std::byte[]> allocate(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes));
  return {static_cast<std::byte*>(memory), [](std::byte* data) { (void)cudaFree(data); }};
}

// What fits `bytes` bytes and starts at a multiple of 256.
void check_memory(void* memory, std::size_t given, std::size_t needed, const char* what, const char* function) {
  require(memory || given == 0, what, " is null, but ", what, "_bytes is ", given);
  if (!memory) return;
  require(reinterpret_cast<std::uintptr_t>(memory) % 256 == 0, what, " starts at no multiple of 256 bytes");
  require(given >= needed, what, " has ", given, " bytes; this call needs ", needed, " (", function, ")");
}

// The call's memory: of the results, and for what one kernel leaves to the next. What is not given is allocated.
struct CallMemory {
  std::byte* result;
  std::byte* workspace;
  std::shared_ptr<std::byte[]> owned;  // of the result
  std::optional<StreamMemory> own_workspace;

  CallMemory(const QuantizeOptions& o, std::size_t result_bytes, const char* result_function, std::size_t workspace_bytes, int device)
      : result(static_cast<std::byte*>(o.memory)), workspace(static_cast<std::byte*>(o.workspace)) {
    const auto stream = static_cast<cudaStream_t>(o.stream);
    check_memory(o.memory, o.memory_bytes, result_bytes, "memory", result_function);
    check_memory(o.workspace, o.workspace_bytes, workspace_bytes, "workspace", "quantize_workspace_size()");
    require((o.memory && o.workspace) || !is_capturing(stream),
            "the stream is being captured into a graph: give QuantizeOptions::memory and ::workspace");
    if (!result) result = (owned = allocate(result_bytes)).get();
    if (!workspace) workspace = own_workspace.emplace(workspace_bytes, device, stream).data();
  }
};

// An operand that views x, as with Scaling::none.
Quantized as_it_came(const Tensor& x, Role role, const Quant& quant, const QuantizeOptions& o) {
  Quantized q;
  q.role = role;
  q.quant = quant;
  q.starts.assign(o.starts.begin(), o.starts.end());
  q.from = x.type;
  q.values = x;
  return q;
}

// Puts it into a block, which nobody has filled yet.
void put_into(Quantized& q, std::byte* block, std::size_t bytes, const std::shared_ptr<std::byte[]>& owned) {
  if (owned) q.storage.push_back(owned);
  q.values = {block, q.quant.type, Device::cuda, q.values.device_id, q.values.shape, contiguous_strides(q.values.shape)};
  q.block_bytes = bytes;
}

bool is_empty(const Tensor& x) { return x.shape[0] * x.shape[1] * x.shape[2] == 0; }

}  // namespace

std::size_t quantized_bytes(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& o) {
  const Quant& quant = quant_of(recipe, role);
  if (quant.scaling == Scaling::none) return 0;
  Params p = plan_of_call(x, role, o).params;
  return place_block(p, role, quant, nullptr);
}

std::size_t quantize_workspace_bytes(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& o) {
  if (quant_of(recipe, role).scaling == Scaling::none) return 0;
  Params p = plan_of_call(x, role, o).params;
  SequenceLayout* layouts = nullptr;
  return place_workspace(p, !o.starts.empty(), layouts, nullptr);
}

Quantized quantize(const Tensor& x, Role role, const Recipe& given, const QuantizeOptions& o) {
  check_tensor(x, role, given);
  check_keys(x, role, given, o);
  const Quant& quant = quant_of(given, role);
  Quantized q = as_it_came(x, role, quant, o);
  if (quant.scaling == Scaling::none) return q;
  check_device(x, role, o);

  const auto stream = static_cast<cudaStream_t>(o.stream);
  const DeviceGuard guard(x.device_id);
  const std::size_t bytes = cuda::quantized_bytes(x, role, given, o);
  const CallMemory memory(o, bytes, "quantized_bytes()", quantize_workspace_bytes(x, role, given, o), x.device_id);
  put_into(q, memory.result, bytes, memory.owned);
  if (is_empty(x)) return q;

  // Where everything lies.
  OperandPlan plan = plan_of_call(x, role, o);
  Params& p = plan.params;
  SequenceLayout* layouts = nullptr;
  place_workspace(p, !o.starts.empty(), layouts, memory.workspace);
  place_block(p, role, quant, static_cast<std::byte*>(q.values.data));
  Recipe recipe = given;
  if (role == Role::query && !o.keys) recipe.key.centre = Centre::none;  // then it has no corrections
  if (o.keys) {
    Params k = plan_of(o.keys->values, Role::key, o.keys->starts).params;
    place_block(k, Role::key, o.keys->quant, static_cast<std::byte*>(o.keys->values.data));
    if (role == Role::query)
      p.centre = k.centre;
    else
      p.orders = k.orders;
    if (role == Role::query && recipe.key.centre != Centre::none) q.centre = o.keys->values;  // tells whose centre it was
  }

  // Launches.
  const bool bf16 = x.type == DType::bf16;
  if (!plan.layouts.empty()) write_layouts(plan.layouts.data(), static_cast<int>(plan.layouts.size()), layouts, stream);
  const Making making{.query = role == Role::query,
                      .key = role == Role::key,
                      .value = role == Role::value,
                      .centre = static_cast<const float*>(o.centre.data),
                      .channels = static_cast<const float*>(o.channels.data)};
  quantize_any_recipe(p, recipe, form_of(recipe, p.dim), making, bf16, stream);
  write_details(p, making, {}, bf16, stream);
  return q;
}

KeysAndValues quantize_keys_and_values(const Tensor& key, const Tensor& value, const Recipe& recipe, const QuantizeOptions& of_key,
                                       const QuantizeOptions& of_value) {
  if (recipe.key.scaling == Scaling::none || recipe.value.scaling == Scaling::none)  // at most one block
    return {cuda::quantize(key, Role::key, recipe, of_key), cuda::quantize(value, Role::value, recipe, of_value)};
  check_tensor(key, Role::key, recipe);
  check_tensor(value, Role::value, recipe);
  if (key.type != value.type)
    refuse(std::string("it takes key and value in one type, but they are ") + name(key.type) + ", " + name(value.type));
  check_device(key, Role::key, of_key);
  check_device(value, Role::value, of_value);

  const auto stream = static_cast<cudaStream_t>(of_key.stream);
  const DeviceGuard guard(key.device_id);
  const std::size_t key_bytes = cuda::quantized_bytes(key, Role::key, recipe, of_key),
                    value_bytes = cuda::quantized_bytes(value, Role::value, recipe, of_value);
  const CallMemory memory(of_key, key_bytes + value_bytes, "quantized_bytes() of both",
                          quantize_workspace_bytes(key, Role::key, recipe, of_key), key.device_id);
  KeysAndValues both{as_it_came(key, Role::key, recipe.key, of_key), as_it_came(value, Role::value, recipe.value, of_value)};
  put_into(both.key, memory.result, key_bytes, memory.owned);
  put_into(both.value, memory.result + key_bytes, value_bytes, memory.owned);
  if (is_empty(key)) return both;

  // Where everything lies. The keys come last: their block has what both share.
  OperandPlan plan = plan_of(key, Role::key, of_key.starts);
  Params& p = plan.params;
  p.value = plan_of(value, Role::value, of_value.starts).params.value;
  SequenceLayout* layouts = nullptr;
  place_workspace(p, !of_key.starts.empty(), layouts, memory.workspace);
  place_block(p, Role::value, recipe.value, memory.result + key_bytes);
  const ValueBlock values{p.passes, p.any_nonfinite};
  place_block(p, Role::key, recipe.key, memory.result);

  // Launches. quantize_chitu() samples always.
  const bool bf16 = key.type == DType::bf16;
  const Making making{.query = false,
                      .centre = static_cast<const float*>(of_key.centre.data),
                      .channels = static_cast<const float*>(of_value.channels.data)};
  if (!plan.layouts.empty()) write_layouts(plan.layouts.data(), static_cast<int>(plan.layouts.size()), layouts, stream);
  if (recipe == recipes::chitu && (p.dim == 64 || p.dim == 128) && !making.centre && !making.channels)
    quantize_chitu(p, bf16, stream);
  else
    quantize_any_recipe(p, recipe, form_of(recipe, p.dim), making, bf16, stream);
  write_details(p, making, values, bf16, stream);
  return both;
}

namespace {

// A copy of a block in host memory.
std::shared_ptr<std::byte[]> copied(const Quantized& q, cudaStream_t stream) {
  auto host = std::make_shared<std::byte[]>(q.block_bytes);
  check(cudaMemcpyAsync(host.get(), q.values.data, q.block_bytes, cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  return host;
}

// Of the keys in whose order values stand, which may be on either device.
Rows rows_of(const Quantized& keys, cudaStream_t stream) {
  if (keys.values.device == Device::cpu) return rows_by_ranks(keys);
  if (!keys.quant.sorted) return {};
  const auto host = copied(keys, stream);
  Params p = plan_of(keys.values, Role::key, keys.starts).params;
  place_block(p, Role::key, keys.quant, host.get());
  return rows_by_orders(p.orders, std::int64_t{p.key_tiles} * p.kv_heads);
}

}  // namespace

Quantized to_host(const Quantized& q, const ConvertOptions& o) {
  const auto stream = static_cast<cudaStream_t>(o.stream);
  const DeviceGuard guard(q.values.device_id);
  require(!is_capturing(stream), "to_host() waits for the stream, which is being captured into a graph");
  const auto host = copied(q, stream);
  const Rows rows = q.role == Role::key ? rows_of(q, stream) : o.keys ? rows_of(*o.keys, stream) : Rows{};
  if (!given(q.centre)) return read_block(q, rows, nullptr, host.get());
  require(o.keys, "keys are missing: the query's corrections were made with their centre");
  const Quantized keys = o.keys->values.device == Device::cpu ? *o.keys : cuda::to_host(*o.keys, {.stream = o.stream});
  Quantized query = read_block(q, {}, &keys.centre, host.get());
  query.storage.insert(query.storage.end(), keys.storage.begin(), keys.storage.end());
  return query;
}

Quantized to_device(const Quantized& q, DType from, int device, const ConvertOptions& o) {
  const auto stream = static_cast<cudaStream_t>(o.stream);
  const DeviceGuard guard(device);
  require(!is_capturing(stream), "to_device() waits for the stream, which is being captured into a graph");
  Quantized result;
  result.role = q.role;
  result.quant = q.quant;
  result.starts = q.starts;
  result.from = from;
  result.values = q.values;
  result.block_bytes = block_bytes(q);
  check_memory(o.memory, o.memory_bytes, result.block_bytes, "memory", "quantized_bytes()");
  require(!o.memory || on_device(o.memory, device), "memory is not on GPU ", device);
  if (!o.memory) result.storage.push_back(allocate(result.block_bytes));
  result.values = {o.memory ? o.memory : result.storage.back().get(),
                   q.quant.type,
                   Device::cuda,
                   device,
                   q.values.shape,
                   contiguous_strides(q.values.shape)};
  const auto host = std::make_shared<std::byte[]>(result.block_bytes);
  write_block(q, from, q.role == Role::key ? rows_by_ranks(q) : o.keys ? rows_of(*o.keys, stream) : Rows{}, host.get());
  check(cudaMemcpyAsync(result.values.data, host.get(), result.block_bytes, cudaMemcpyHostToDevice, stream));
  check(cudaStreamSynchronize(stream));
  if (given(q.correction) && o.keys && o.keys->values.device == Device::cuda) result.centre = o.keys->values;
  return result;
}

}  // namespace chitu::cuda
