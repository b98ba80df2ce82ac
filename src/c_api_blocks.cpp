// SPDX-License-Identifier: Apache-2.0
// The C interface of operands in GPU memory.
#include <cstdint>
#include <utility>

#include "c_api.h"
#include "checks.h"

using chitu::require;
using chitu::c_api::guarded;

extern "C" {

chitu_status chitu_quantized_block(const chitu_quantized* quantized, void** memory, size_t* bytes) {
  return guarded([&] {
    require(quantized, "quantized is NULL");
    const chitu::Quantized& q = quantized->value;
    const bool block = q.values.device == chitu::Device::cuda && q.block_bytes > 0;
    if (memory) *memory = block ? q.values.data : nullptr;
    if (bytes) *bytes = block ? q.block_bytes : 0;
  });
}

chitu_status chitu_quantized_at(const chitu_quantized* like, void* memory, size_t bytes, int32_t device_id, chitu_quantized** quantized) {
  return guarded([&] {
    require(like, "like is NULL");
    require(quantized, "quantized is NULL");
    chitu::Quantized q = like->value;
    require(q.values.device == chitu::Device::cuda && q.block_bytes > 0, "like is not quantised in GPU memory");
    require(memory, "memory is NULL");
    require(reinterpret_cast<std::uintptr_t>(memory) % 256 == 0, "memory starts at no multiple of 256 bytes");
    require(bytes >= q.block_bytes, "memory has ", bytes, " bytes; this operand needs ", q.block_bytes);
    q.storage.clear();
    q.centre = {};  // a query in another place meets other keys
    q.values.data = memory;
    q.values.device_id = device_id;
    *quantized = new chitu_quantized(std::move(q));
  });
}

chitu_status chitu_quantized_to_host(const chitu_quantized* quantized, const chitu_quantized* keys, void* stream,
                                     chitu_quantized** result) {
  return guarded([&] {
    require(quantized, "quantized is NULL");
    require(result, "result is NULL");
    *result = new chitu_quantized(chitu::to_host(quantized->value, {.keys = keys ? &keys->value : nullptr, .stream = stream}));
  });
}

chitu_status chitu_quantized_to_device(const chitu_quantized* quantized, int32_t from, int32_t device_id, const chitu_quantized* keys,
                                       void* stream, void* memory, size_t memory_bytes, chitu_quantized** result) {
  return guarded([&] {
    require(quantized, "quantized is NULL");
    require(result, "result is NULL");
    require(from == CHITU_F16 || from == CHITU_BF16, "from is ", from, "; it must be ", int{CHITU_F16}, " (f16) or ", int{CHITU_BF16},
            " (bf16)");
    *result = new chitu_quantized(
        chitu::to_device(quantized->value, static_cast<chitu::DType>(from), device_id,
                         {.keys = keys ? &keys->value : nullptr, .stream = stream, .memory = memory, .memory_bytes = memory_bytes}));
  });
}

}  // extern "C"
