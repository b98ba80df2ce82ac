// SPDX-License-Identifier: Apache-2.0
// Hopper's table of attention kernels.
#include "cuda/sm90/kernels.h"

#include <array>
#include <cstdint>
#include <limits>

#include "cuda/architecture.h"
#include "cuda/sm90/direct/kernels.h"

namespace chitu::cuda::sm90 {
namespace {

// The kernel of `recipe`. as: the recipe that it is compiled for. Two recipes share a kernel if they differ only in what the quantizer
// does.
template <const Recipe& recipe, DType input, int dim, bool quantizes_queries = false, bool padded = false, const Recipe& as = recipe>
constexpr AttentionKernel kernel() {
  static_assert(form_of(recipe, dim) == form_of(as, dim) && recipe.weights == as.weights);
  constexpr DType compiled = recipe.key.scaling == Scaling::none || quantizes_queries ? input : DType::f16;
  return {&recipe, input, dim, quantizes_queries, form_of(recipe, dim), start<Config<as, compiled, dim, quantizes_queries, padded>>,
          padded};
}

// The kernels of `recipe` for every padded dim and type of the tensors.
template <const Recipe& recipe, const Recipe& as = recipe>
constexpr std::array<AttentionKernel, 6> kernels_of() {
  using enum DType;
  return {kernel<recipe, f16, 64, false, false, as>(),  kernel<recipe, bf16, 64, false, false, as>(),
          kernel<recipe, f16, 128, false, false, as>(), kernel<recipe, bf16, 128, false, false, as>(),
          kernel<recipe, f16, 256, false, false, as>(), kernel<recipe, bf16, 256, false, false, as>()};
}

template <class... Arrays>
constexpr auto joined(const Arrays&... arrays) {
  std::array<AttentionKernel, (std::tuple_size_v<Arrays> + ...)> all{};
  std::size_t count = 0;
  const auto append = [&](const auto& array) {
    for (const AttentionKernel& k : array) all[count++] = k;
  };
  (append(arrays), ...);
  return all;
}

using namespace recipes;

// A kernel that takes 16-bit operands as they are, of dims above `above` up to `dim`.
template <DType input, int dim>
constexpr AttentionKernel direct_kernel(int above, std::int64_t most_keys) {
  return {.recipe = &exact,
          .input = input,
          .dim = dim,
          .quantizes_queries = false,
          .form = direct::form_of(dim),
          .start = direct::start<direct::Config<input, dim>>,
          .direct = true,
          .above = above,
          .most_keys = most_keys};
}
constexpr std::int64_t any_keys = std::numeric_limits<std::int64_t>::max();
template <DType input>
constexpr std::array direct_kernels{direct_kernel<input, 64>(0, 8192),        direct_kernel<input, 80>(64, 12288),
                                    direct_kernel<input, 96>(80, 12288),      direct_kernel<input, 128>(96, 12288),
                                    direct_kernel<input, 192>(128, any_keys), direct_kernel<input, 256>(192, any_keys)};

// chitu's tuned quantiser leaves the queries to the attention kernel.
template <bool padded>
constexpr std::array tuned{kernel<chitu, DType::f16, 64, true, padded>(), kernel<chitu, DType::bf16, 64, true, padded>(),
                           kernel<chitu, DType::f16, 128, true, padded>(), kernel<chitu, DType::bf16, 128, true, padded>()};
constexpr auto table = joined(tuned<false>, tuned<true>, direct_kernels<DType::f16>, direct_kernels<DType::bf16>,
                              kernels_of<recipes::chitu>(), kernels_of<int8>(), kernels_of<sage>(), kernels_of<int8_half, sage>(),
                              kernels_of<sage2>(), kernels_of<fp8>(), kernels_of<exact>());

}  // namespace

const Architecture architecture{.name = "cuda.sm90", .major = 9, .minor = 0, .kernels = table};

}  // namespace chitu::cuda::sm90
