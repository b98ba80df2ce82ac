// SPDX-License-Identifier: Apache-2.0
// The checks of arguments that attention(), quantize() and merge() share. Each throws an Error that names the argument, unless it is
// right.
#pragma once

#include <iosfwd>
#include <new>
#include <span>
#include <stdexcept>
#include <string>

#include "chitu/attention.h"
#include "common/float_environment.h"

namespace chitu {

enum class Data : std::uint8_t { needed, unread };  // unread: the call is only planned, so its tensors may have none yet

void check_tensor(const Tensor& t, const std::string& name, bool quantized, Data data = Data::needed);  // one that the library can read
void check_strides(const Tensor& t, const std::string& name);
void check_lse(const Tensor& lse, const std::string& name, const Shape& out, Data data = Data::needed);
void check_written(const Tensor& t, const std::string& name);  // no two of its elements are one, as in a broadcast view
void check_starts(std::span<const std::int64_t> starts, const Tensor& t, const std::string& name);
void check_threads(int threads);
void check_quant(const Quant& quant, Role role);  // unsupported unless a quantiser and kernels exist for such an operand
void check_quantized(const Quantized& q, const std::string& name, Data data = Data::needed);  // its parts fit each other

// Dense: as a whole. Heads: the numbers of each head lie together.
enum class Together : std::uint8_t { dense, heads };

// t: what a call or a Quantized brings beside its operand's numbers. wanted: all zeros if it must bring none.
void check_part(const Tensor& t, const std::string& name, DType type, const Shape& wanted, Together together);

// Where a tensor lies, for a message: "cuda:1".
inline std::string device_name(const Tensor& t) { return (t.device == Device::cpu ? "cpu:" : "cuda:") + std::to_string(t.device_id); }

// The shape of an operand's scales; all zeros if it has none.
Shape scales_shape(const Quant& quant, const Shape& x, std::span<const std::int64_t> starts);

constexpr const char* name(Role role) { return role == Role::query ? "query" : role == Role::key ? "key" : "value"; }

constexpr const Quant& quant_of(const Recipe& recipe, Role role) {
  return role == Role::query ? recipe.query : role == Role::key ? recipe.key : recipe.value;
}

constexpr bool given(const Tensor& t) { return t.data || t.shape != Shape{}; }
constexpr bool empty(const Tensor& t) { return t.shape[0] == 0 || t.shape[1] == 0 || t.shape[2] == 0; }
constexpr bool shared_by(std::int64_t heads, std::int64_t kv_heads) { return kv_heads > 0 ? heads % kv_heads == 0 : heads == 0; }

// Batch entries, or the parts of a packed one.
inline std::int64_t sequence_count(const Shape& x, std::span<const std::int64_t> starts) {
  return starts.empty() ? x[0] : static_cast<std::int64_t>(starts.size()) - 1;
}

// A shape for a message, "[1, 2, 3, 4]": made into text only where there is a message.
struct AsText {
  explicit AsText(const Shape& s) : shape(s) {}
  const Shape& shape;
};
std::ostream& operator<<(std::ostream& out, const AsText& text);

// body(), where the standard library's want of memory is the library's Error, in the default floating-point environment.
template <class Body>
auto with_own_errors(const Body& body) {
  const DefaultFloatEnvironment floats;
  try {
    return body();
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {  // more elements than a vector can ever have
  }
  throw Error(ErrorCode::out_of_memory, "no memory for this call");
}

}  // namespace chitu
