// SPDX-License-Identifier: Apache-2.0
// Between the two forms of a quantised operand: row by row, as the CPU has it, and in tiles, as a GPU's block has it (block.h). All of it
// is plain work on host memory.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/block.h"

namespace chitu::cuda {

// With Quant::sorted, the row at which each token stands in its tile: [key tiles x kv heads, 128]. Else empty.
using Rows = std::vector<std::uint8_t>;
Rows rows_by_ranks(const Quantized& key);                             // of keys in CPU memory
Rows rows_by_orders(const std::uint8_t* orders, std::int64_t tiles);  // of a block's

// Fills `block`, block_bytes() of q with `from` for the type that the tensor had. It must have the value of an operand that is not finite
// nowhere but in q.nonfinite.
void write_block(const Quantized& q, DType from, const Rows& rows, std::byte* block);

// What a block holds. like: its role, quant, starts and shape. centre: of the keys that a query's corrections were made with; null: it has
// none.
Quantized read_block(const Quantized& like, const Rows& rows, const Tensor* centre, std::byte* block);

}  // namespace chitu::cuda
