// SPDX-License-Identifier: Apache-2.0
// Attention with quantised operands: attention(), quantize(), merge(), explain().
// All functions may be called from several threads at once, also with the same inputs and the same Quantized: inputs are never written.
// They may be called after fork() too, for tensors on the CPU: in the child of a process in which the library has started threads they
// compute on one thread, with the same result. A child of a process in which it has not starts its own.
// The calling program's floating-point environment (rounding direction, denormals as zeros, traps) does not matter to tensors on the CPU.
// Outputs must not overlap inputs or each other; merge() says where it allows that. This is not checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "chitu/error.h"
#include "chitu/method.h"
#include "chitu/tensor.h"

namespace chitu {

inline constexpr std::int64_t unbounded = std::numeric_limits<std::int64_t>::max() / 4;
inline constexpr int max_dim = 256;
inline constexpr int max_threads = 4096;
// These limits keep every size that the library computes within 64 bits.
inline constexpr std::int64_t max_heads = std::int64_t{1} << 22;         // and batch entries, and packed sequences
inline constexpr std::int64_t max_tokens = (std::int64_t{1} << 31) - 1;  // of a batch entry
inline constexpr std::int64_t max_elements = std::int64_t{1} << 42;      // of a tensor, an empty dimension counted as 1
inline constexpr std::int64_t max_reach = std::int64_t{1} << 58;         // elements between the first and the last along one dimension

// A query at position p sees the keys at positions p - left ... p + right. Causal is {unbounded, 0}, a causal sliding window
// of w earlier tokens {w, 0}; both bounds are at least 0.
struct Window {
  std::int64_t left = unbounded, right = unbounded;
  friend constexpr bool operator==(const Window&, const Window&) = default;
};
inline constexpr Window everything{};
inline constexpr Window causal{unbounded, 0};

// The positions of a run of tokens in the whole sequence: first, first + step, ... A shard of a ring, a stripe.
struct Positions {
  std::int64_t first = 0, step = 1;  // |first| < 2^59 - 1, 1 <= step < 2^31
};

struct Options {
  Recipe recipe = recipes::chitu;
  Window window = everything;
  std::optional<float> scale{};  // of the scores; 1 / sqrt(dim) unless given; any finite number

  // Where the tokens of this call stand. Keys start at 0 unless given; the last query stands at the last key (bottom-right
  // alignment, FlashAttention's) unless given.
  std::optional<Positions> query_positions{};
  std::optional<Positions> key_positions{};
  // The same for each sequence of a packed call, or for each batch entry, instead of one for all: as many as there are, or none. The chunks
  // of a ring's zigzag shard, prompts that go on from a cache.
  std::span<const Positions> query_positions_of{};
  std::span<const Positions> key_positions_of{};

  // Packed sequences of unequal length: tensors have batch 1, sequence i holds tokens [starts[i], starts[i + 1]). Both empty
  // (each batch entry is one sequence) or both of the same size, first 0, never falling, last the number of tokens.
  std::span<const std::int64_t> query_starts{};
  std::span<const std::int64_t> key_starts{};

  // A padded batch, not packed: how many keys each batch entry has, 0 ... those of the tensor, or empty: all. What lies behind them is
  // never read, so it may be anything. The last query stands at the last of these keys.
  std::span<const std::int64_t> key_lengths{};

  // The same starts, or the same lengths, in GPU memory, for tensors there: what lies behind them is read by the GPU when the call runs,
  // and never copied to the host. So a captured graph can be replayed with other lengths. max_queries and max_keys are bounds of the
  // sequences' lengths, with which the host plans; tokens of a sequence beyond its bound are left out. Starts need both, lengths may have
  // max_keys, which is the tensor's unless given. A start that is smaller than one before it, or past the end, counts as the largest start
  // before it, or as the end; a length below 0 or beyond its bound as 0 or as the bound. Tokens behind the last start belong to no
  // sequence, and their outputs are not written. check_device_lengths, for debugging, waits for the stream and refuses such numbers by
  // name.
  std::span<const std::int32_t> device_query_starts{};
  std::span<const std::int32_t> device_key_starts{};
  std::span<const std::int32_t> device_key_lengths{};
  std::int64_t max_queries = 0, max_keys = 0;
  bool check_device_lengths = false;

  int threads = 0;         // for tensors on the CPU; 0: OpenMP's default, fewer where a call is too short for them. On a GPU it must be 0
  void* stream = nullptr;  // a cudaStream_t, for tensors on a GPU. On the CPU it must be null
  // For tensors on a GPU: memory there, in which a kernel leaves results for the next one. It starts at a multiple of 256 bytes and has at
  // least workspace_size() bytes. The call uses it until the stream has done the call. Without it the library allocates in the stream's
  // order, which is not possible while the stream is being captured into a graph.
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
  std::string_view kernel{};  // run this row of the kernel table or refuse; empty: the first that takes the call
};

enum class Role : std::uint8_t { query, key, value };

// A token with a NaN or an infinity. It is left out of scales and sums; afterwards NaN and infinity are put into just the outputs that
// they would reach in exact attention (docs/numerics.md, "NaN and infinity").
struct NonFinite {
  std::int64_t sequence, head, token;  // token within its sequence
  std::vector<float> values;           // [dim], as they came
};

// What the parts of a Quantized mean. It rises when a stored operand would be read wrongly. 1 had no ranks.
inline constexpr int quantized_version = 2;

// An operand as quantize() made it, or as it was stored and put together again. Copies share the storage. Integers and scales are
// defined bit for bit. attention() and quantize() refuse one whose parts do not fit each other. In CPU memory those in f32
// and ranks may have any strides between sequences (or batch entries) and heads, but each head's numbers lie together; centre and residuals
// are dense. A part that `quant` and `role` do not call for is absent: a Tensor{}, an empty vector.
// On a GPU all of it is one block of memory, in tiles as the kernels read them (docs/numerics.md, "Tiles"), and the same for all GPUs:
// values.data is the block, block_bytes its size, and no stride of `values` counts. All other parts are absent, but for the centre of a
// query with corrections: it is the `values` of the keys that it was quantised with. The block may be copied as it is, to another GPU too;
// a copy of this struct with values.data and values.device_id changed describes it there.
struct Quantized {
  int version = quantized_version;  // one of another version is refused
  Role role = Role::query;
  Quant quant{};
  std::vector<std::int64_t> starts;  // of the sequences, for a packed batch; else empty

  Tensor values{};      // [batch, heads, tokens, dim] in quant.type; the caller's own tensor with Scaling::none
  Tensor scales{};      // f32; tokens: [batch, heads, groups, 1], head: [sequences, heads, 1, 1], channel: [sequences, heads, 1, dim],
                        // tile: [batch, heads, tiles, 1]; groups and tiles of packed sequences follow each other
  Tensor ranks{};       // u8 [batch, heads, tokens, 1], if quant.sorted: each token's rank in its tile, which tells its scale
  Tensor centre{};      // f32 [sequences, heads, 1, dim]: what was subtracted from the keys; for queries: the centre that
                        // `correction` was made with
  Tensor channels{};    // f32 [sequences, heads, 1, dim]: with Scaling::tile, what the values were divided by
  Tensor correction{};  // f32 [batch, heads, tokens, 1]: q . centre of each query, without the softmax scale
  std::vector<std::int32_t> residual_of;  // with Scaling::tile: [batch, heads, tiles]; -1, or the tile's index in `residuals`
  Tensor residuals{};                     // i8 [1, flagged tiles, tile_tokens, dim], in units of 1/254 of the tile's scale
  std::vector<NonFinite> nonfinite;       // in the order of sequence, head, token; each token once

  DType from = DType::f32;      // on a GPU: the type of the tensor, f16 or bf16
  std::size_t block_bytes = 0;  // on a GPU

  std::vector<std::shared_ptr<std::byte[]>> storage;

  std::int64_t sequences() const { return starts.empty() ? values.shape[0] : static_cast<std::int64_t>(starts.size()) - 1; }
};

// Its parts that are tensors, in the order of CHITU_VALUES ... in c.h.
inline constexpr Tensor Quantized::*quantized_parts[] = {&Quantized::values,   &Quantized::scales,     &Quantized::centre,
                                                         &Quantized::channels, &Quantized::correction, &Quantized::residuals,
                                                         &Quantized::ranks};

// A query, key or value: a tensor as it came (f32, f16, bf16), or one that quantize() made.
class Operand {
 public:
  Operand(const Tensor& tensor) : tensor_(tensor) {}
  Operand(const Quantized& quantized) : tensor_(quantized.values), quantized_(&quantized) {}
  const Tensor& tensor() const { return tensor_; }           // for shape and device
  const Quantized* quantized() const { return quantized_; }  // null: as it came

 private:
  Tensor tensor_;
  const Quantized* quantized_ = nullptr;
};

// Where the result goes. out: the shape of the query; f32, f16 or bf16. lse: absent (Tensor{}), or f32 [batch, heads, queries, 1]:
// natural log of the sum of exp(scale * q . k) over the keys a query sees. A query that sees none gets 0 and -inf.
struct Output {
  Output(const Tensor& out, const Tensor& lse = {}) : out(out), lse(lse) {}
  Tensor out, lse;
};

// out = softmax(scale * query . key^T within the window) value.
// query [batch, heads, queries, dim], key and value [batch, kv heads, keys, dim]; heads is a multiple of kv heads, query head h
// reads kv head h / (heads / kv heads); dim 1 ... max_dim; any length from 0 to max_tokens; any strides with the last 1; that of a size of
// 1 is not looked at. Operands may differ in type. docs/kernels/sm90.md has what the GPU's kernels take. Throws Error: bad_argument,
// unsupported (with explain()'s text), out_of_memory.
void attention(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options = {});

// The bytes that Options::workspace must have for this call; 0 on the CPU. It looks at no data, so tensors may have none yet; shapes and
// strides count. An lse that the call will ask for must have its shape here. Throws like attention().
std::size_t workspace_size(const Operand& query, const Operand& key, const Operand& value, const Output& output,
                           const Options& options = {});

struct QuantizeOptions {
  std::span<const std::int64_t> starts{};  // packed sequences, as in Options
  // For queries: the keys they will meet, whose centre the LSE correction needs. For values on a GPU, if the recipe sorts keys: their keys,
  // because values stand in the order of these.
  const Quantized* keys = nullptr;
  Tensor centre{};    // for keys: this f32 [sequences, heads, 1, dim] instead of their mean (a frozen cache, a ring)
  Tensor channels{};  // for values with Scaling::tile: this positive f32 [sequences, heads, 1, dim] instead of a sampled one
  int threads = 0;    // for a tensor on the CPU, as in Options. On a GPU it must be 0

  // For a tensor on a GPU; on the CPU they must be null and 0. Both blocks of memory start at multiples of 256 bytes. Without `memory` the
  // library allocates the result, without `workspace` it allocates in the stream's order; neither is possible while the stream is being
  // captured into a graph.
  void* stream = nullptr;  // a cudaStream_t
  void* memory = nullptr;  // where the result goes: quantized_bytes(). It stays the caller's, and must outlive the result
  std::size_t memory_bytes = 0;
  void* workspace = nullptr;  // used until the stream has done the call: quantize_workspace_size()
  std::size_t workspace_bytes = 0;
};

// Quantises one operand as `recipe` says, once, for many calls of attention(): a KV cache, a ring.
// x: f32, f16 or bf16 [batch, heads, tokens, dim]; on a GPU f16 or bf16, a dim that is a multiple of 8, rows at multiples of 16 bytes.
// With Scaling::none the result views x, which must outlive it. On a GPU the call does not wait; a given centre is rounded to x's type.
Quantized quantize(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options = {});

// Keys and values of the same shape, at once: the numbers that a call of attention() makes of these tensors, so that its result from these
// two is the same to the bit; on a GPU not for chitu at dims below 128 other than 64, whose numbers are rounded in another order there. On
// a GPU this takes much less time than two calls of quantize(), and no QuantizeOptions::keys. There `memory` is for both blocks, the key's
// first: quantized_bytes() of the key, then those of the value; `workspace` as for the key.
struct KeysAndValues {
  Quantized key, value;
};
KeysAndValues quantize_keys_and_values(const Tensor& key, const Tensor& value, const Recipe& recipe, const QuantizeOptions& options = {});

// The bytes of the result's block on a GPU, and those of QuantizeOptions::workspace. 0 for a tensor on the CPU. They look at no data.
std::size_t quantized_bytes(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options = {});
std::size_t quantize_workspace_size(const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options = {});

struct ConvertOptions {
  // For values of a recipe that sorts keys, and for queries with corrections: their keys, on either device.
  const Quantized* keys = nullptr;
  void* stream = nullptr;  // a cudaStream_t; both functions wait for it
  void* memory = nullptr;  // for to_device(): where the block goes, as in QuantizeOptions
  std::size_t memory_bytes = 0;
};

// A quantised operand from a GPU to CPU memory and back, bit for bit: for tests and storage. to_host() refuses one with NaN or infinity,
// of which a GPU's form keeps the places only. from: the type, f16 or bf16, that the tensor had or the call's other operands will have.
Quantized to_host(const Quantized& quantized, const ConvertOptions& options = {});
Quantized to_device(const Quantized& quantized, DType from, int device_id = 0, const ConvertOptions& options = {});

struct MergeOptions {
  int threads = 0;         // for tensors on the CPU, as in Options. On a GPU it must be 0
  void* stream = nullptr;  // a cudaStream_t, for tensors on a GPU. On the CPU it must be null
};

// Joins the attention of the same queries over disjoint sets of keys: result = softmax-weighted mean of the parts, of which there is at
// least one. All are on one device, in CPU memory or on one GPU, each with out and lse as in Output, of equal shapes. Types of out may
// differ. result may be any of the parts. A part counts nothing in rows where its lse is -inf. A learned sink is a part with output 0 and
// the sink as lse (docs/numerics.md, "Merging" and "Learned sinks"). On a GPU the call does not wait. Where the stream is being captured
// into a graph, there may be at most max_captured_parts parts: more need memory for sums.
inline constexpr std::size_t max_captured_parts = 32;
void merge(std::span<const Output> parts, const Output& result, const MergeOptions& options = {});
void merge(const Output& a, const Output& b, const Output& result, const MergeOptions& options = {});  // of two

// The kernels in the order they are tried, up to the first that takes the call, and why each is refused or taken, a line each. Then, a line
// each, how the operands that came quantised lie in memory. Looks at no data, like workspace_size().
std::string explain(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options = {});

// A kernel of this build: a row of the table that attention() goes through.
struct KernelInfo {
  std::string_view name;     // "cpu.avx512"
  std::string_view scores;   // what it computes query . key in
  std::string_view weights;  // what it computes weights . values in
  bool available;            // this machine can run it
  Device device;             // of the tensors it takes
};
std::vector<KernelInfo> kernels();

}  // namespace chitu
