// SPDX-License-Identifier: Apache-2.0
// quantize(): checks its arguments and chooses the device's quantiser.
#include "cuda/quantize.h"
#include "checks.h"
#include "chitu/attention.h"
#include "cpu/backend.h"

namespace chitu {
namespace {

// Of f32, beside x: on its device.
void check_vector(const Tensor& t, const char* name, const Tensor& x, const Shape& wanted) {
  require(t.device == x.device && t.device_id == x.device_id, name, " is on ", device_name(t), ", the tensor on ", device_name(x),
          "; both must be on one device");
  Tensor here = t;
  here.device = Device::cpu;
  check_part(here, name, DType::f32, wanted, Together::dense);
}

void check_vectors(const Tensor& x, const Quant& quant, const QuantizeOptions& options) {
  const Shape vector{sequence_count(x.shape, options.starts), x.shape[1], 1, x.shape[3]};
  if (given(options.centre)) {
    require(quant.centre != Centre::none, "centre is given, but the recipe does not centre this operand");
    check_vector(options.centre, "centre", x, vector);
  }
  if (given(options.channels)) {
    require(quant.scaling == Scaling::tile, "channels are given, but the recipe has no channel vector for this operand");
    check_vector(options.channels, "channels", x, vector);
  }
}

// keys: those that the queries x will meet.
void check_keys(const Quantized& keys, const Tensor& x, std::span<const std::int64_t> starts) {
  check_version(keys, name(Role::key));
  require(keys.role == Role::key, "keys are given, but were quantised as another operand: as ", name(keys.role));
  check_quantized(keys, name(Role::key));
  if (!given(keys.centre)) return;
  const std::int64_t sequences = sequence_count(x.shape, starts);
  const Shape& centre = keys.centre.shape;
  require(centre[0] == sequences && centre[3] == x.shape[3] && shared_by(x.shape[1], centre[1]), "keys hold ", centre[0], " sequences, ",
          centre[1], " heads of dim ", centre[3], ", which does not fit the query's ", sequences, " sequences, ", x.shape[1],
          " heads of dim ", x.shape[3]);
}

// What both devices ask for.
void check_call(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options, Data data) {
  const char* const name = chitu::name(role);
  check_tensor(x, name, false, data);
  check_starts(options.starts, x, name);
  check_threads(options.threads);
  check_quant(quant_of(recipe, role), role);
  check_vectors(x, quant_of(recipe, role), options);
  const bool on_cpu = x.device == Device::cpu;
  require(on_cpu || options.threads == 0, "threads is ", options.threads, ", but the tensor is on a GPU; it must be 0");
  for (const auto& [memory, what] : {std::pair{options.stream, "stream"}, {options.memory, "memory"}, {options.workspace, "workspace"}})
    require(!on_cpu || !memory, what, " is given, but the tensor is on the CPU; it must be null");
}

// The keys that a conversion needs: of values in the order of keys, of queries with corrections.
void check_conversion(const Quantized& q, const ConvertOptions& options) {
  check_version(q, name(q.role));
  require(q.quant.scaling != Scaling::none, name(q.role), " was left as it came: there is nothing to convert");
  if (!options.keys) return;
  const Quantized& k = *options.keys;
  check_version(k, "keys");
  require(q.role != Role::key, "keys are given, but this operand is the key");
  require(k.role == Role::key, "keys are given, but were quantised as another operand: as ", name(k.role));
  const Shape &a = k.values.shape, &b = q.values.shape;
  require(q.role == Role::query ? a[3] == b[3] && shared_by(b[1], a[1]) : a == b && q.starts == k.starts, "keys have shape ", AsText(a),
          ", which does not fit the ", name(q.role), "'s ", AsText(b), ", or other starts");
}

}  // namespace

Quantized quantize(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options) {
  return with_own_errors([&] {
    check_call(x, role, recipe, options, Data::needed);
    if (x.device == Device::cuda) return cuda::quantize(x, role, recipe, options);
    require(!options.keys || role == Role::query, "keys are given, but this operand is the ", name(role));
    if (options.keys) check_keys(*options.keys, x, options.starts);
    return cpu::quantize_with(cpu::best_backend(), x, role, recipe, options);
  });
}

KeysAndValues quantize_keys_and_values(const Tensor& key, const Tensor& value, const Recipe& recipe, const QuantizeOptions& options) {
  return with_own_errors([&] {
    QuantizeOptions of_key = options, of_value = options;
    of_key.channels = {}, of_value.centre = {};
    check_call(key, Role::key, recipe, of_key, Data::needed);
    check_call(value, Role::value, recipe, of_value, Data::needed);
    require(!options.keys, "keys are given, but values come with their keys here");
    require(key.shape == value.shape, "value has shape ", AsText(value.shape), "; it must be the key's, ", AsText(key.shape));
    require(key.device == value.device && key.device_id == value.device_id, "value is on ", device_name(value), ", key on ",
            device_name(key), "; both must be on one device");
    if (key.device == Device::cuda) return cuda::quantize_keys_and_values(key, value, recipe, of_key, of_value);
    const cpu::Backend& backend = cpu::best_backend();
    return KeysAndValues{cpu::quantize_with(backend, key, Role::key, recipe, of_key),
                         cpu::quantize_with(backend, value, Role::value, recipe, of_value)};
  });
}

std::size_t quantized_bytes(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options) {
  return with_own_errors([&] {
    check_call(x, role, recipe, options, Data::unread);
    return x.device == Device::cpu ? 0 : cuda::quantized_bytes(x, role, recipe, options);
  });
}

std::size_t quantize_workspace_size(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options) {
  return with_own_errors([&] {
    check_call(x, role, recipe, options, Data::unread);
    return x.device == Device::cpu ? 0 : cuda::quantize_workspace_bytes(x, role, recipe, options);
  });
}

Quantized to_host(const Quantized& quantized, const ConvertOptions& options) {
  return with_own_errors([&] {
    check_conversion(quantized, options);
    require(quantized.values.device == Device::cuda, name(quantized.role), " is in CPU memory already");
    require(!options.memory && options.memory_bytes == 0, "memory is given, but to_host() allocates its result");
    return cuda::to_host(quantized, options);
  });
}

Quantized to_device(const Quantized& quantized, DType from, int device_id, const ConvertOptions& options) {
  return with_own_errors([&] {
    check_conversion(quantized, options);
    require(quantized.values.device == Device::cpu, name(quantized.role), " is on a GPU already");
    require(from == DType::f16 || from == DType::bf16, "from is ", name(from), "; it must be f16 or bf16");
    require(quantized.values.shape[3] % 8 == 0, name(quantized.role), " has dim ", quantized.values.shape[3],
            "; on a GPU it must be a multiple of 8");
    check_quantized(quantized, name(quantized.role));
    return cuda::to_device(quantized, from, device_id, options);
  });
}

}  // namespace chitu
