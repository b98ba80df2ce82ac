// SPDX-License-Identifier: Apache-2.0
// A call on a GPU, of any architecture: what its rows refuse, its workspace, its launches.
#include "cuda/call.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/params.h"

namespace chitu::cuda {
namespace {

constexpr std::int64_t most_tokens = std::int64_t{1} << 30;

// Rows are read and written 16 bytes at a time.
std::string misaligned(const Tensor& t, const char* name) {
  const auto advice = "; rows must start at multiples of 16 bytes: give a copy with such strides";
  if (reinterpret_cast<std::uintptr_t>(t.data) % 16) return std::string(name) + "'s memory starts at no multiple of 16 bytes" + advice;
  constexpr const char* names[] = {"batch entries", "heads", "tokens"};
  for (std::size_t i = 0; i < 3; ++i)
    if (t.shape[i] > 1 && t.stride[i] % 8)
      return std::string(name) + " has stride " + std::to_string(t.stride[i]) + " between " + names[i] + advice;
  return {};
}

bool is_half(DType type) { return type == DType::f16 || type == DType::bf16; }

bool has_kernel_of(const Architecture& architecture, const Recipe& recipe) {
  return std::any_of(architecture.kernels.begin(), architecture.kernels.end(),
                     [&](const AttentionKernel& k) { return *k.recipe == recipe; });
}

// A tensor map takes strides that are positive and below 2^40 bytes.
bool fits_tensor_map(const Tensor& t) {
  for (std::size_t i = 0; i < 3; ++i)
    if (t.shape[i] > 1 && (t.stride[i] < t.shape[3] || t.stride[i] >= std::int64_t{1} << 39)) return false;
  return true;
}

// Finds the first kernel that takes the call; null if none does. Kernels that read the caller's tensors copy them by tensor maps, and some
// strides have none. Nor do direct kernels take a scale of 0 or below, for which the quantizer changes the queries' sign. A kernel that
// leaves all three operands to quantize_any_recipe() then takes the call.
const AttentionKernel* find_kernel(const Architecture& architecture, const Problem& p) {
  const Tensor& q = p.query.tensor();
  const bool maps = fits_tensor_map(q), all_maps = maps && fits_tensor_map(p.key.tensor()) && fits_tensor_map(p.value.tensor());
  const auto takes = [&](const AttentionKernel& k) {
    if (*k.recipe != p.options.recipe || k.input != q.type) return false;
    if (k.direct) return p.dim() <= k.dim && p.scale() > 0 && all_maps;
    return k.dim == padded_dim(p.dim()) && (!k.quantizes_queries || (k.dim == p.dim() && maps));
  };
  const auto found = std::find_if(architecture.kernels.begin(), architecture.kernels.end(), takes);
  return found == architecture.kernels.end() ? nullptr : &*found;
}

// Reasons to refuse that can be found without a GPU.
std::string beyond_it(const Architecture& architecture, const Problem& p) {
  const Tensor &q = p.query.tensor(), &k = p.key.tensor(), &v = p.value.tensor(), &out = p.output.out;
  if (!has_kernel_of(architecture, p.options.recipe)) {
    const auto method = std::find_if(methods.begin(), methods.end(), [&](const Method& m) { return m.recipe == p.options.recipe; });
    return method == methods.end() ? "runs the library's methods only, and this recipe is not one of them"
                                   : "has no kernel for the method " + std::string(method->name);
  }
  if (p.query.quantized() || p.key.quantized() || p.value.quantized())
    return "quantises itself, but an operand came quantised: give it as it was";
  if (p.dim() % 8) return "is for dims that are multiples of 8, not " + std::to_string(p.dim()) + ": pad with zeros and give the scale";
  if (!is_half(q.type) || k.type != q.type || v.type != q.type)
    return std::string("takes query, key and value in one type, f16 or bf16, but they are ") + name(q.type) + ", " + name(k.type) + ", " +
           name(v.type);
  if (!is_half(out.type)) return std::string("writes f16 or bf16, but out is ") + name(out.type);
  if (!find_kernel(architecture, p))
    return "has no kernel for this recipe in " + std::string(name(q.type)) + " at dim " + std::to_string(p.dim());
  for (const auto& [t, what] : {std::pair{&q, "query"}, {&k, "key"}, {&v, "value"}, {&out, "out"}})
    if (std::string why = misaligned(*t, what); !why.empty()) return why;
  // One 31-bit index counts the tiles of all heads and sequences, another one the tokens of a head, padded to whole tiles.
  const std::int64_t tokens = std::max(q.shape[2], k.shape[2]), sequences = static_cast<std::int64_t>(p.sequences.size()),
                     tiles = p.packed() ? tokens / tile_tokens + sequences : sequences * tiles_of(tokens);
  if (tokens > most_tokens || q.shape[1] * tiles > most_tokens)
    return "is for up to 2^30 tokens and tiles of all heads: give fewer heads a call";
  return {};
}

View view(const Tensor& t) { return {t.data, t.stride[0], t.stride[1], t.stride[2]}; }

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

int narrow(std::int64_t x) { return static_cast<int>(x); }

// Fills all fields but the arrays.
Params params_of(const Problem& p, const AttentionKernel& kernel, const std::vector<SequenceLayout>& layouts) {
  const Form& form = kernel.form;
  const Tensor &q = p.query.tensor(), &k = p.key.tensor();
  Params r{};
  r.query = view(q);
  r.key = view(k);
  r.value = view(p.value.tensor());
  r.out = view(p.output.out);
  r.lse = view(p.output.lse);
  r.dim = p.dim();
  r.heads = narrow(p.heads());
  r.kv_heads = narrow(p.kv_heads());
  r.sequences = narrow(static_cast<std::int64_t>(p.sequences.size()));
  r.tuned_quantizer = kernel.quantizes_queries;
  r.out_bf16 = p.output.out.type == DType::bf16;
  r.scale = p.scale();
  r.window = p.options.window;
  r.same = layouts.front();
  if (p.alike()) {
    r.query_tiles = r.sequences * tiles_of(r.same.queries);
    r.key_tiles = r.sequences * tiles_of(r.same.keys);
    r.blocks = r.sequences * ((r.same.queries + form.block_queries - 1) / form.block_queries);
  } else {
    r.query_tiles = layouts.back().query_tile;
    r.key_tiles = layouts.back().key_tile;
    r.blocks = layouts.back().block;
  }
  r.split = split_of(p, form, std::int64_t{r.blocks} * r.heads);
  r.heads_at_once =
      heads_at_once(r.sequences * r.kv_heads, r.heads / r.kv_heads, std::int64_t{tiles_of(r.same.keys)} * form.tile_bytes(), q.device_id);
  return r;
}

// Gives the arrays their places; returns the bytes of all.
std::size_t lay_out(Params& r, const Problem& p, const AttentionKernel& kernel, SequenceLayout*& layouts, std::byte* memory) {
  const Form& form = kernel.form;
  const bool table = !p.alike();
  const std::int64_t query_tiles = std::int64_t{r.query_tiles} * r.heads, queries = r.tuned_quantizer ? 0 : query_tiles * tile_tokens,
                     key_tiles = std::int64_t{r.key_tiles} * r.kv_heads, kv_heads = std::int64_t{r.sequences} * r.kv_heads;
  Arena arena(memory);
  arena.take(r.items_taken, table || !kernel.direct);
  arena.take(r.pieces, std::int64_t{split_item_count(r)} * r.split.pieces * (form.block_queries / 16) * piece_vectors(form.dim) * 32);
  arena.take(r.pieces_done, std::int64_t{split_item_count(r)} * most_warps);
  arena.take(layouts, table ? r.sequences : 0);
  r.layouts = table ? layouts : nullptr;
  if (kernel.direct) return arena.bytes();
  std::uint16_t* centre;
  arena.take(r.queries, queries * form.dim * form.score_bytes);
  arena.take(r.query_scale, queries / form.query_scale_rows);
  arena.take(r.correction, queries);
  arena.take(centre, kv_heads * r.dim);
  arena.take(r.channels, kv_heads * form.dim);
  arena.take(r.tiles, key_tiles * form.tile_bytes());
  arena.take(r.residuals, form.residuals ? key_tiles * tile_tokens * form.dim : 0);
  arena.take(r.passes, 2 * key_tiles);
  arena.take(r.orders, form.sorted ? key_tiles * tile_tokens : 0);
  arena.take(r.key_scale, form.scale_each_key ? key_tiles * tile_tokens : 0);
  arena.take(r.ranges, std::int64_t{tile_tokens} * (table ? r.query_tiles : tiles_of(r.same.queries)));
  arena.take(r.any_nonfinite, 1);
  arena.take(r.nonfinite_queries, query_tiles);
  arena.take(r.nonfinite_keys, key_tiles);
  arena.take(r.nonfinite_values, key_tiles);
  arena.take(r.statistics, r.tuned_quantizer ? 0 : statistics_count(r));
  r.centre = centre;
  return arena.bytes();
}

bool no_queries(const Problem& p) {
  const Shape& s = p.query.tensor().shape;
  return s[0] * s[1] * s[2] == 0;
}

// The architecture whose row select() takes for a problem.
const Architecture& architecture_of(const Problem& p) {
  for (const Architecture* a : architectures())
    if ((p.options.kernel.empty() || p.options.kernel == a->name) && refusal(*a, p).empty()) return *a;
  throw Error(ErrorCode::internal, "no GPU kernel takes this call");
}

}  // namespace

std::string refusal(const Architecture& architecture, const Problem& p) {
  if (std::string why = beyond_it(architecture, p); !why.empty()) return why;
  const int device = p.query.tensor().device_id;
  if (std::string why = trouble(device, architecture.major, architecture.minor); !why.empty()) return why;
  for (const auto& [data, what] : {std::pair{p.query.tensor().data, "query"},
                                   {p.key.tensor().data, "key"},
                                   {p.value.tensor().data, "value"},
                                   {p.output.out.data, "out"},
                                   {p.output.lse.data, "lse"},
                                   {p.options.workspace, "workspace"}})
    if (data && !on_device(data, device))
      return std::string(what) + "'s memory is not on GPU " + std::to_string(device) + ", as its tensor says";
  return {};
}

std::size_t workspace_bytes(const Architecture& architecture, const Problem& p) {
  if (no_queries(p)) return 0;
  const AttentionKernel& kernel = *find_kernel(architecture, p);
  Params r = params_of(p, kernel, layouts_of(p, kernel.form));
  SequenceLayout* layouts = nullptr;
  return lay_out(r, p, kernel, layouts, nullptr);
}

Call::Call(const Problem& p) : Call(architecture_of(p), p) {}

Call::Call(const Architecture& architecture, const Problem& p)
    : kernel_(*find_kernel(architecture, p)),
      operands_{p.query.tensor(), p.key.tensor(), p.value.tensor()},
      stream_(static_cast<cudaStream_t>(p.options.stream)),
      guard_(operands_.query.device_id) {
  std::vector<SequenceLayout> layouts = layouts_of(p, kernel_.form);
  params_ = params_of(p, kernel_, layouts);
  std::byte* memory = static_cast<std::byte*>(p.options.workspace);
  const std::size_t bytes = lay_out(params_, p, kernel_, layouts_on_gpu_, nullptr);
  require(memory || bytes == 0 || !is_capturing(stream_),
          "the stream is being captured into a graph: give Options::workspace, workspace_size() bytes");
  if (!memory && bytes > 0) memory = memory_.emplace(bytes, operands_.query.device_id, stream_).data();
  lay_out(params_, p, kernel_, layouts_on_gpu_, memory);
  if (!p.alike()) {
    layouts.pop_back();
    layouts_ = std::move(layouts);
  }
}

void Call::quantize() const {
  if (!layouts_.empty()) write_layouts(layouts_.data(), params_.sequences, layouts_on_gpu_, stream_);
  if (kernel_.direct) {
    if (params_.layouts || split_item_count(params_) > 0) clear_counters(params_, stream_);
  } else if (params_.tuned_quantizer)
    quantize_chitu(params_, is_bf16(), stream_);
  else
    quantize_any_recipe(params_, *kernel_.recipe, kernel_.form, is_bf16(), stream_);
}

void Call::attend() const {
  const int processors = multiprocessors(operands_.query.device_id);
  kernel_.start(params_, operands_, processors, stream_);
  if (kernel_.direct) return;
  spoil_nonfinite(params_, is_bf16(), processors, stream_);
}

void run(const Architecture& architecture, const Problem& p) {
  if (no_queries(p)) return;
  const Call call(architecture, p);
  call.quantize();
  call.attend();
}

}  // namespace chitu::cuda
