// SPDX-License-Identifier: Apache-2.0
// quantize(): checks its arguments and chooses the device's quantiser.
#include "checks.h"
#include "chitu/attention.h"
#include "cpu/backend.h"

namespace chitu {
namespace {

void check_vectors(const Tensor& x, const Quant& quant, const QuantizeOptions& options) {
  const Shape vector{sequence_count(x.shape, options.starts), x.shape[1], 1, x.shape[3]};
  if (given(options.centre)) {
    require(quant.centre != Centre::none, "centre is given, but the recipe does not centre this operand");
    check_part(options.centre, "centre", DType::f32, vector, Together::dense);
  }
  if (given(options.channels)) {
    require(quant.scaling == Scaling::tile, "channels are given, but the recipe has no channel vector for this operand");
    check_part(options.channels, "channels", DType::f32, vector, Together::dense);
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

}  // namespace

Quantized quantize(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options) {
  return with_own_errors([&] {
    const char* const name = chitu::name(role);
    check_tensor(x, name, false);
    if (x.device != Device::cpu)
      throw Error(ErrorCode::unsupported,
                  std::string(name) + " is on a GPU, but quantize() takes tensors in CPU memory only; attention() quantises there itself");
    check_starts(options.starts, x, name);
    require(!options.keys || role == Role::query, "keys are given, but this operand is the ", name);
    if (options.keys) check_keys(*options.keys, x, options.starts);
    check_threads(options.threads);
    check_quant(quant_of(recipe, role), role);
    check_vectors(x, quant_of(recipe, role), options);
    return cpu::quantize_with(cpu::best_backend(), x, role, recipe, options);
  });
}

}  // namespace chitu
