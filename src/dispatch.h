// SPDX-License-Identifier: Apache-2.0
// From a call to a kernel: a Problem is a checked call, a Kernel a row of a table, select() takes the first row that fits.
#pragma once

#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "chitu/attention.h"
#include "common/tiles.h"
#include "common/visible.h"

namespace chitu {

// One sequence of a batch: a batch entry, or a part of a packed one.
struct Sequence {
  std::int64_t batch = 0;
  std::int64_t query_begin = 0, queries = 0;
  std::int64_t key_begin = 0, keys = 0;
  Positions query_positions{}, key_positions{};

  Range visible(const Window& window, std::int64_t query) const {
    return chitu::visible(window, query_positions.first + query * query_positions.step, key_positions, keys);
  }
};

struct Problem {
  Operand query, key, value;
  Output output;
  Recipe recipe;
  Window window;
  float scale = 0;
  std::vector<Sequence> sequences;
  std::vector<std::int64_t> query_starts, key_starts;  // as given, for quantize()
  int threads = 1;
  void* stream = nullptr;
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
  std::string_view kernel;

  Device device() const { return query.tensor().device; }
  std::int64_t heads() const { return query.tensor().shape[1]; }
  std::int64_t kv_heads() const { return key.tensor().shape[1]; }
  std::int64_t group() const { return heads() / kv_heads(); }  // query heads that share a kv head
  int dim() const { return static_cast<int>(query.tensor().shape[3]); }
};

// What a kernel computes a product in.
enum class Arithmetic : std::uint8_t { any, f32, f16, bf16, fp8, int8 };
constexpr const char* name(Arithmetic a) {
  constexpr const char* names[] = {"any", "f32", "f16", "bf16", "fp8", "int8"};
  return names[static_cast<int>(a)];
}

struct Kernel {
  const char* name;
  Device device;
  bool (*available)();  // does this machine have the instructions?
  Arithmetic scores;    // query . key
  Arithmetic weights;   // weights . values
  void (*run)(const Problem&);
  std::string (*refuses)(const Problem&) = nullptr;    // what else it does not take, and why; empty: takes it
  std::size_t (*workspace)(const Problem&) = nullptr;  // bytes; null: none
};

enum class Data : std::uint8_t { needed, unread };  // unread: the call is only planned, so its tensors may have none yet

Problem describe(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options,
                 Data data = Data::needed);
std::string refusal(const Kernel& kernel, const Problem& problem);  // empty: takes it
const Kernel& select(const Problem& problem);
std::span<const Kernel> kernel_table();  // the GPU's rows, then the CPU's; of each best first

constexpr const char* name(Role role) { return role == Role::query ? "query" : role == Role::key ? "key" : "value"; }

// A shape for a message, "[1, 2, 3, 4]": made into text only where there is a message.
struct AsText {
  explicit AsText(const Shape& s) : shape(s) {}
  const Shape& shape;
};
std::ostream& operator<<(std::ostream& out, const AsText& text);

constexpr bool given(const Tensor& t) { return t.data || t.shape != Shape{}; }
constexpr bool empty(const Tensor& t) { return t.shape[0] == 0 || t.shape[1] == 0 || t.shape[2] == 0; }

// These throw Error that names the argument, unless it is right.
void check_tensor(const Tensor& t, const std::string& name, bool quantized, Data data = Data::needed);  // one that the library can read
void check_strides(const Tensor& t, const std::string& name);
void check_lse(const Tensor& lse, const std::string& name, const Shape& out, Data data = Data::needed);
void check_written(const Tensor& t, const std::string& name);  // no two of its elements are one, as in a broadcast view
void check_starts(std::span<const std::int64_t> starts, const Tensor& t, const std::string& name);
void check_threads(int threads);
void check_quant(const Quant& quant, Role role);  // unsupported unless a quantiser and kernels exist for such an operand
void check_quantized(const Quantized& q, const std::string& name, Data data = Data::needed);  // its parts fit each other

// body(), where the standard library's want of memory is the library's Error.
template <class Body>
auto with_own_errors(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {  // more elements than a vector can ever have
  }
  throw Error(ErrorCode::out_of_memory, "no memory for this call");
}

}  // namespace chitu
