// SPDX-License-Identifier: Apache-2.0
// Operands that came quantised. On a GPU a Quantized is one block of memory: the arrays that a call would otherwise make in its workspace,
// in the order of place_block(). docs/numerics.md, "Tiles", is the specification.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/params.h"

namespace chitu::cuda {

// Gives arrays their places in one block of memory, each at a multiple of 256 bytes. Without memory it only adds up the sizes.
class Arena {
 public:
  explicit Arena(std::byte* memory) : memory_(memory) {}
  template <class T>
  void take(T*& array, std::int64_t count) {
    array = memory_ ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  std::size_t bytes_ = 0;
};

// Whether an operand lies in such a block. One of a recipe that leaves it as it came is a tensor, quantised or not.
inline bool is_block(const Operand& operand) { return operand.quantized() && operand.quantized()->quant.scaling != Scaling::none; }

// The part of a recipe that says how an operand is stored.
Recipe recipe_of(Role role, const Quant& quant);

// Where one operand's tokens and tiles are, without the rest of a call. The end of a table of layouts follows, as in layouts_of(). Only a
// packed operand has one.
struct OperandPlan {
  Params params;
  std::vector<SequenceLayout> layouts;
};
OperandPlan plan_of(const Tensor& x, Role role, std::span<const std::int64_t> starts);

// The bytes of a block. With memory it also points the arrays of `params` that this operand has there.
std::size_t place_block(Params& params, Role role, const Quant& quant, std::byte* memory);
std::size_t block_bytes(const Quantized& quantized);

}  // namespace chitu::cuda
