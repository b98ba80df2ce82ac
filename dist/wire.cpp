// SPDX-License-Identifier: Apache-2.0
#include "wire.h"

#include <array>
#include <cstring>
#include <iterator>

namespace chitu::dist {
namespace {

constexpr std::size_t part_count = std::size(quantized_parts);

struct Header {
  std::array<Shape, part_count> shapes{};  // all zeros: absent
  std::array<DType, part_count> types{};
  std::int64_t residual_of = 0, nonfinite = 0, dim = 0;  // how many
};

struct NonFiniteHead {
  std::int64_t sequence, head, token;
};

bool present(const Tensor& t) { return t.data || t.shape != Shape{}; }

std::size_t size_of(const Tensor& t) { return static_cast<std::size_t>(elements(t.shape) * bytes(t.type)); }

// Room for so many bytes at the end.
std::byte* grow(Bytes& to, std::size_t size) {
  const std::size_t start = to.size();
  to.resize(start + aligned(size));
  return to.data() + start;
}

std::byte* take(std::span<std::byte>& from, std::size_t size) {
  require(aligned(size) <= from.size(), "a message is shorter than its header says");
  std::byte* const start = from.data();
  from = from.subspan(aligned(size));
  return start;
}

template <class T>
void copy_bytes(void* to, const T* from, std::size_t count) {
  if (count > 0) std::memcpy(to, from, count * sizeof(T));
}

}  // namespace

std::int64_t elements(const Shape& s) { return s[0] * s[1] * s[2] * s[3]; }

Tensor heads_of(Tensor t, std::int64_t first, std::int64_t count) {
  t.data = static_cast<std::byte*>(t.data) + first * t.stride[1] * bytes(t.type);
  t.shape[1] = count;
  return t;
}

Tensor tokens_of(Tensor t, std::int64_t first, std::int64_t count) {
  t.data = static_cast<std::byte*>(t.data) + first * t.stride[2] * bytes(t.type);
  t.shape[2] = count;
  return t;
}

void copy(const Tensor& from, const Tensor& to) {
  const auto [batches, heads, tokens, dim] = from.shape;
  const auto row = [](const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t i) {
    return static_cast<std::byte*>(t.data) + (b * t.stride[0] + h * t.stride[1] + i * t.stride[2]) * bytes(t.type);
  };
  if (elements(from.shape) == 0) return;
  const bool together = tokens == 1 || (from.stride[2] == dim && to.stride[2] == dim);
  const auto size = static_cast<std::size_t>((together ? tokens : 1) * dim * bytes(from.type));
  for (std::int64_t b = 0; b < batches; ++b)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < (together ? 1 : tokens); ++i) std::memcpy(row(to, b, h, i), row(from, b, h, i), size);
}

bool is_dense(const Tensor& t) {
  const auto& [batches, heads, tokens, dim] = t.shape;
  const auto fits = [](std::int64_t size, std::int64_t stride, std::int64_t wanted) { return size <= 1 || stride == wanted; };
  return elements(t.shape) == 0 ||
         (fits(batches, t.stride[0], heads * tokens * dim) && fits(heads, t.stride[1], tokens * dim) && fits(tokens, t.stride[2], dim));
}

std::span<std::byte> bytes_of(const Tensor& t) { return {static_cast<std::byte*>(t.data), size_of(t)}; }

void write_rest(const Quantized& quantized, Bytes& to) {
  Header header{.residual_of = static_cast<std::int64_t>(quantized.residual_of.size()),
                .nonfinite = static_cast<std::int64_t>(quantized.nonfinite.size()),
                .dim = quantized.values.shape[3]};
  static_assert(quantized_parts[0] == &Quantized::values);
  for (std::size_t i = 1; i < part_count; ++i)
    if (const Tensor& part = quantized.*quantized_parts[i]; present(part)) header.shapes[i] = part.shape, header.types[i] = part.type;
  copy_bytes(grow(to, sizeof header), &header, 1);
  for (std::size_t i = 1; i < part_count; ++i)
    if (const Tensor& part = quantized.*quantized_parts[i]; present(part))
      copy(part, dense(grow(to, size_of(part)), part.type, part.shape));
  copy_bytes(grow(to, quantized.residual_of.size() * sizeof(std::int32_t)), quantized.residual_of.data(), quantized.residual_of.size());
  for (const NonFinite& token : quantized.nonfinite) {
    const NonFiniteHead head{token.sequence, token.head, token.token};
    std::byte* const room = grow(to, sizeof head + token.values.size() * sizeof(float));
    copy_bytes(room, &head, 1);
    copy_bytes(room + sizeof head, token.values.data(), token.values.size());
  }
}

Quantized read_rest(std::span<std::byte>& from, const Tensor& values, Role role, const Quant& quant) {
  Header header;
  std::memcpy(&header, take(from, sizeof header), sizeof header);
  Quantized quantized;
  quantized.role = role;
  quantized.quant = quant;
  quantized.values = values;
  for (std::size_t i = 1; i < part_count; ++i) {
    if (header.shapes[i] == Shape{}) continue;
    Tensor& part = quantized.*quantized_parts[i];
    part = dense(nullptr, header.types[i], header.shapes[i]);
    part.data = take(from, size_of(part));
  }
  const auto count = static_cast<std::size_t>(header.residual_of);
  quantized.residual_of.resize(count);
  copy_bytes(quantized.residual_of.data(), take(from, count * sizeof(std::int32_t)), count * sizeof(std::int32_t));
  for (std::int64_t i = 0; i < header.nonfinite; ++i) {
    NonFiniteHead head;
    std::vector<float> values(static_cast<std::size_t>(header.dim));
    const std::byte* const room = take(from, sizeof head + values.size() * sizeof(float));
    std::memcpy(&head, room, sizeof head);
    copy_bytes(values.data(), room + sizeof head, values.size() * sizeof(float));
    quantized.nonfinite.push_back({head.sequence, head.head, head.token, std::move(values)});
  }
  return quantized;
}

}  // namespace chitu::dist
