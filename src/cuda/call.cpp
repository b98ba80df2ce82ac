// SPDX-License-Identifier: Apache-2.0
// A call on a GPU, of any architecture: what its rows refuse, its workspace, its launches.
#include "cuda/call.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cuda/block.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/params.h"

namespace chitu::cuda {
namespace {

constexpr std::int64_t most_tokens = std::int64_t{1} << 30;

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

// The type of the tensors that operands came from.
DType input_of(const Operand& operand) { return is_block(operand) ? operand.quantized()->from : operand.tensor().type; }

// Whether a direct kernel takes the call. It copies all three operands by tensor maps. For a scale of 0 or below the quantizer changes the
// queries' sign.
bool takes_direct(const AttentionKernel& k, const Problem& p) {
  if (p.dim() <= k.above || p.dim() > k.dim || is_block(p.query) || is_block(p.key) || is_block(p.value)) return false;
  if (p.lengths_on_device() || p.scale() <= 0) return false;
  const auto shorter = [](const Sequence& a, const Sequence& b) { return a.keys < b.keys; };
  const Sequence& longest = p.alike() ? p.sequences.front() : *std::max_element(p.sequences.begin(), p.sequences.end(), shorter);
  return (longest.keys <= k.most_keys || longest.queries < many_queries) && fits_tensor_map(p.query.tensor()) &&
         fits_tensor_map(p.key.tensor()) && fits_tensor_map(p.value.tensor());
}

// Finds the first kernel that takes the call; null if none does. A kernel that quantises queries copies them by a tensor map, and some
// strides have none. Its keys and values come quantised both, or neither; both only if the dim is not padded, because their centre would
// be. A kernel that leaves operands to quantize_any_recipe() takes the other calls.
const AttentionKernel* find_kernel(const Architecture& architecture, const Problem& p) {
  const bool pads = p.dim() < padded_dim(p.dim()),
             leaves_queries = !is_block(p.query) && is_block(p.key) == is_block(p.value) && !(pads && is_block(p.key));
  const auto takes = [&](const AttentionKernel& k) {
    if (*k.recipe != p.options.recipe || k.input != input_of(p.query)) return false;
    if (k.direct) return takes_direct(k, p);
    return k.dim == padded_dim(p.dim()) &&
           (!k.quantizes_queries || (k.pads == pads && leaves_queries && fits_tensor_map(p.query.tensor())));
  };
  const auto found = std::find_if(architecture.kernels.begin(), architecture.kernels.end(), takes);
  return found == architecture.kernels.end() ? nullptr : &*found;
}

// Operands that came quantised: what does not fit the call.
std::string misfit(const Problem& p) {
  for (const auto& [operand, what] : {std::pair{&p.query, "query"}, {&p.key, "key"}, {&p.value, "value"}}) {
    if (!is_block(*operand)) continue;
    const Quantized& q = *operand->quantized();
    const std::string name = what;
    if (p.lengths_on_device())
      return "does not know where the tiles of a " + name + " that came quantised are, if lengths are in GPU memory";
    if (reinterpret_cast<std::uintptr_t>(q.values.data) % 256) return name + "'s block starts at no multiple of 256 bytes";
    if (const std::size_t needed = block_bytes(q); q.block_bytes != needed)
      return name + "'s block has " + std::to_string(q.block_bytes) + " bytes, but " + std::to_string(needed) + " are needed";
  }
  if (is_block(p.value) && p.options.recipe.key.sorted && !is_block(p.key))
    return "keeps values in the order of their keys' sizes: a value that came quantised needs its key, quantised";
  if (is_block(p.query) && p.scale() < 0) return "takes a query that came quantised with a scale of 0 or more only";
  if (is_block(p.query) && given(p.output.lse) && p.options.recipe.key.centre != Centre::none &&
      (!is_block(p.key) || p.query.quantized()->centre.data != p.key.tensor().data))
    return "makes an lse of a query that came quantised only if it was quantised with these keys (QuantizeOptions::keys)";
  return {};
}

// Reasons to refuse that can be found without a GPU.
std::string beyond_it(const Architecture& architecture, const Problem& p) {
  const Tensor &q = p.query.tensor(), &k = p.key.tensor(), &out = p.output.out;
  if (!has_kernel_of(architecture, p.options.recipe)) {
    const auto method = std::find_if(methods.begin(), methods.end(), [&](const Method& m) { return m.recipe == p.options.recipe; });
    return method == methods.end() ? "runs the library's methods only, and this recipe is not one of them"
                                   : "has no kernel for the method " + std::string(method->name);
  }
  if (std::string why = misfit(p); !why.empty()) return why;
  if (p.dim() % 8) return "is for dims that are multiples of 8, not " + std::to_string(p.dim()) + ": pad with zeros and give the scale";
  const DType input = input_of(p.query), of_key = input_of(p.key), of_value = input_of(p.value);
  if (!is_half(input) || of_key != input || of_value != input)
    return std::string("takes query, key and value in one type, f16 or bf16, but they are ") + name(input) + ", " + name(of_key) + ", " +
           name(of_value);
  if (!is_half(out.type)) return std::string("writes f16 or bf16, but out is ") + name(out.type);
  if (!find_kernel(architecture, p))
    return "has no kernel for this recipe in " + std::string(name(input)) + " at dim " + std::to_string(p.dim());
  for (const auto& [operand, what] : {std::pair{&p.query, "query"}, {&p.key, "key"}, {&p.value, "value"}})
    if (!is_block(*operand))
      if (std::string why = misaligned(operand->tensor(), what); !why.empty()) return why;
  if (std::string why = misaligned(out, "out"); !why.empty()) return why;
  // One 31-bit index counts the tiles of all heads and sequences, another one the tokens of a head, padded to whole tiles.
  const std::int64_t tokens = std::max(q.shape[2], k.shape[2]), sequences = static_cast<std::int64_t>(p.sequences.size()),
                     tiles = p.packed() ? tokens / tile_tokens + sequences : sequences * tiles_of(tokens);
  if (tokens > most_tokens || q.shape[1] * tiles > most_tokens)
    return "is for up to 2^30 tokens and tiles of all heads: give fewer heads a call";
  return {};
}

View view(const Tensor& t) { return {t.data, t.stride[0], t.stride[1], t.stride[2]}; }

int narrow(std::int64_t x) { return static_cast<int>(x); }

// Whether the GPU chooses which items are split, because the host does not know the lengths.
bool chooses_split(const Problem& p, const Form& form) { return p.lengths_on_device() && form.splittable; }

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
  r.split = split_of(p, form, layouts, std::int64_t{r.blocks} * r.heads);
  r.split_items = chooses_split(p, form) ? most_pieces_a_processor * multiprocessors(q.device_id) / 2 : r.blocks * r.heads - r.split.whole;
  r.heads_at_once =
      heads_at_once(r.sequences * r.kv_heads, r.heads / r.kv_heads, std::int64_t{tiles_of(r.same.keys)} * form.tile_bytes(), q.device_id);
  return r;
}

// Gives the arrays their places; returns the bytes of all.
std::size_t lay_out(Params& r, const Problem& p, const AttentionKernel& kernel, SequenceLayout*& layouts, std::byte* memory) {
  const Form& form = kernel.form;
  const bool table = !p.alike();
  const bool query_made = !is_block(p.query), key_made = !is_block(p.key), value_made = !is_block(p.value);
  const std::int64_t query_tiles = std::int64_t{r.query_tiles} * r.heads,
                     queries = r.tuned_quantizer || !query_made ? 0 : query_tiles * tile_tokens,
                     key_tiles = std::int64_t{r.key_tiles} * r.kv_heads, kv_heads = std::int64_t{r.sequences} * r.kv_heads,
                     keys = key_made ? key_tiles : 0, values = value_made ? key_tiles : 0;
  Arena arena(memory);
  arena.take(r.items_taken, table || !kernel.direct);
  const std::int64_t pieces = std::int64_t{r.split_items} * (chooses_split(p, form) ? 2 : r.split.pieces);
  arena.take(r.pieces, pieces * (form.block_queries / 16) * piece_vectors(form.dim) * 32);
  arena.take(r.pieces_done, std::int64_t{r.split_items} * most_warps);
  arena.take(layouts, table ? r.sequences + 1 : 0);
  r.layouts = table ? layouts : nullptr;
  if (kernel.direct) return arena.bytes();
  std::uint16_t* centre;
  arena.take(r.queries, queries * form.dim * form.score_bytes);
  arena.take(r.query_scale, queries / form.query_scale_rows);
  arena.take(r.correction, queries);
  arena.take(centre, kv_heads * form.dim);
  arena.take(r.channels, kv_heads * form.dim);
  arena.take(r.key_numbers, keys * form.key_bytes());
  arena.take(r.value_numbers, values * form.value_plane_bytes());
  arena.take(r.residuals, form.residuals ? values * tile_tokens * form.dim : 0);
  arena.take(r.passes, 2 * key_tiles);
  arena.take(r.orders, form.sorted ? keys * tile_tokens : 0);
  arena.take(r.key_scale, form.scale_each_key ? keys * tile_tokens : 0);
  arena.take(r.ranges, std::int64_t{tile_tokens} * (table ? r.query_tiles : tiles_of(r.same.queries)));
  arena.take(r.any_nonfinite, 1);
  arena.take(r.nonfinite_queries, query_made ? query_tiles : 0);
  arena.take(r.nonfinite_keys, keys);
  arena.take(r.nonfinite_values, values);
  arena.take(r.statistics, r.tuned_quantizer ? 0 : statistics_count(r));
  arena.take(r.split_on_gpu, chooses_split(p, form) ? 1 : 0);
  if (!chooses_split(p, form)) r.split_on_gpu = nullptr;
  r.centre = centre;
  return arena.bytes();
}

// Points the arrays of operands that came quantised into their blocks, and says what is to be joined.
Joined use_blocks(Params& r, const Problem& p, const Form& form) {
  Joined joined{};
  const Params own = r;
  const auto place = [&](const Operand& operand, Role role) {
    Params block = own;
    place_block(block, role, operand.quantized()->quant, static_cast<std::byte*>(operand.tensor().data));
    return block;
  };
  if (is_block(p.query)) {
    const Params b = place(p.query, Role::query);
    r.queries = b.queries, r.query_scale = b.query_scale, r.correction = b.correction;
    r.nonfinite_queries = b.nonfinite_queries, r.query_details = b.query_details;
    joined.query_any_nonfinite = b.any_nonfinite;
  }
  if (is_block(p.key)) {
    const Params b = place(p.key, Role::key);
    r.key_numbers = b.key_numbers, r.centre = b.centre, r.orders = b.orders, r.key_scale = b.key_scale;
    r.nonfinite_keys = b.nonfinite_keys, r.key_details = b.key_details;
    joined.key_any_nonfinite = b.any_nonfinite;
    if (!form.scale_each_key) joined.key_passes = b.passes;
  }
  if (is_block(p.value)) {
    const Params b = place(p.value, Role::value);
    r.value_numbers = b.value_numbers, r.residuals = b.residuals, r.channels = b.channels;
    r.nonfinite_values = b.nonfinite_values, r.value_details = b.value_details;
    joined.value_any_nonfinite = b.any_nonfinite;
    joined.value_passes = b.passes;
  }
  return joined;
}

Lengths lengths_of(const Problem& p, const Form& form, const Params& r, SequenceLayout* layouts) {
  const Options& o = p.options;
  return {.layouts = layouts,
          .split = const_cast<Split*>(r.split_on_gpu),
          .query_starts = o.device_query_starts.data(),
          .key_starts = o.device_key_starts.data(),
          .key_lengths = o.device_key_lengths.data(),
          .sequences = narrow(static_cast<std::int64_t>(p.sequences.size())),
          .queries = narrow(p.query.tensor().shape[2]),
          .keys = narrow(p.key.tensor().shape[2]),
          .max_queries = narrow(p.sequences.front().queries),
          .max_keys = narrow(p.sequences.front().keys),
          .block_queries = form.block_queries,
          .last_at_last_key = !o.query_positions && o.query_positions_of.empty(),
          .heads = r.heads,
          .processors = multiprocessors(p.query.tensor().device_id),
          .window = o.window};
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

std::string refusal(const Architecture& architecture, const Problem& p) {
  if (std::string why = beyond_it(architecture, p); !why.empty()) return why;
  const int device = p.query.tensor().device_id;
  if (std::string why = trouble(device, architecture.major, architecture.minor); !why.empty()) return why;
  for (const auto& [data, what] : {std::pair{p.query.tensor().data, "query"},
                                   {p.key.tensor().data, "key"},
                                   {p.value.tensor().data, "value"},
                                   {p.output.out.data, "out"},
                                   {p.output.lse.data, "lse"},
                                   {p.options.workspace, "workspace"},
                                   {const_cast<std::int32_t*>(p.options.device_query_starts.data()), "device_query_starts"},
                                   {const_cast<std::int32_t*>(p.options.device_key_starts.data()), "device_key_starts"},
                                   {const_cast<std::int32_t*>(p.options.device_key_lengths.data()), "device_key_lengths"}})
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
      input_(input_of(p.query)),
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
  if (!p.alike()) layouts_ = std::move(layouts);
  if (kernel_.direct) return;
  making_ = {.query = !is_block(p.query), .key = !is_block(p.key), .value = !is_block(p.value)};
  joined_ = use_blocks(params_, p, kernel_.form);
  if (p.lengths_on_device()) lengths_ = lengths_of(p, kernel_.form, params_, layouts_on_gpu_);
}

void Call::quantize() const {
  if (!layouts_.empty()) write_layouts(layouts_.data(), params_.sequences + 1, layouts_on_gpu_, stream_);
  if (kernel_.direct) {
    if (params_.layouts || params_.split_items > 0) clear_counters(params_, stream_);
    return;
  }
  if (lengths_.layouts) read_lengths(lengths_, stream_);
  const bool any_recipe = !params_.tuned_quantizer && (making_.query || making_.key || making_.value);
  if (any_recipe) quantize_any_recipe(params_, *kernel_.recipe, kernel_.form, making_, is_bf16(), stream_);
  if (making_.key && making_.value && params_.tuned_quantizer) return quantize_chitu(params_, is_bf16(), stream_);
  if (making_.query && making_.key && making_.value) return;
  Joined joined = joined_;
  joined.params = params_;
  joined.prepares = !any_recipe;
  join_operands(joined, stream_);
}

void Call::attend() const {
  const int processors = multiprocessors(operands_.query.device_id);
  kernel_.start(params_, operands_, processors, stream_);
  if (kernel_.direct) return;
  spoil_nonfinite(params_, is_bf16(), processors, stream_);
}

void run(const Architecture& architecture, const Problem& p) {
  if (no_queries(p)) return;
  if (p.options.check_device_lengths) check_device_lengths(p);
  const Call call(architecture, p);
  call.quantize();
  call.attend();
}

}  // namespace chitu::cuda
