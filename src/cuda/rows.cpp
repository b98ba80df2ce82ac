// SPDX-License-Identifier: Apache-2.0
// The GPU's rows of the kernel table.
#include "cuda/rows.h"

#include <array>

#include "cuda/device.h"
#include "cuda/sm90/row.h"

namespace chitu {

std::span<const Kernel> cuda::kernels() {
  using enum Arithmetic;
  using enum Need;
  // Types that differ and operands that came quantised are refused by its own function, which says what to give instead.
  constexpr Needs takes{window,    scale, negative_scale, query_positions, key_positions,   packed_sequences, stream,
                        workspace, lse,   grouped_heads,  mixed_types,     quantized_query, quantized_key,    quantized_value};
  // One function; which kernels it starts follows from the recipe.
  const auto sm90 = [takes](Arithmetic scores, Arithmetic weights) {
    return Kernel{"cuda.sm90",   Device::cuda,         [] { return any_device(9, 0); }, scores, weights, takes, sm90::run,
                  sm90::refusal, sm90::workspace_bytes};
  };
  static const std::array rows{sm90(int8, int8), sm90(int8, f16), sm90(int8, fp8), sm90(fp8, fp8), sm90(f16, f16), sm90(bf16, bf16)};
  return rows;
}

}  // namespace chitu
