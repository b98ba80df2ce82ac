// SPDX-License-Identifier: Apache-2.0
// Hopper's row of the kernel table: what it refuses, its workspace, its launches.
#include "cuda/sm90/row.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/sm90/params.h"

namespace chitu::cuda::sm90 {
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

// What can be said without a GPU.
std::string beyond_it(const Problem& p) {
  const Tensor &q = p.query.tensor(), &k = p.key.tensor(), &v = p.value.tensor(), &out = p.output.out;
  if (std::none_of(methods.begin(), methods.end(), [&](const Method& m) { return m.recipe == p.options.recipe; }))
    return "does the library's methods only, and this recipe is none of them";
  if (p.query.quantized() || p.key.quantized() || p.value.quantized())
    return "quantises itself, but an operand came quantised: give it as it was";
  if (p.dim() % 8) return "is for dims that are multiples of 8, not " + std::to_string(p.dim()) + ": pad with zeros and give the scale";
  if (!is_half(q.type) || k.type != q.type || v.type != q.type)
    return std::string("takes query, key and value in one type, f16 or bf16, but they are ") + name(q.type) + ", " + name(k.type) + ", " +
           name(v.type);
  if (!is_half(out.type)) return std::string("writes f16 or bf16, but out is ") + name(out.type);
  for (const auto& [t, what] : {std::pair{&q, "query"}, {&k, "key"}, {&v, "value"}, {&out, "out"}})
    if (std::string why = misaligned(*t, what); !why.empty()) return why;
  const std::int64_t tokens = std::max(q.shape[2], k.shape[2]),
                     tiles = tokens / tile_tokens + static_cast<std::int64_t>(p.sequences.size());
  if (tokens > most_tokens || q.shape[0] * q.shape[1] * tiles > most_tokens)
    return "is for up to 2^30 tokens and tiles of all heads: give fewer heads a call";
  return {};
}

View view(const Tensor& t) { return {t.data, t.stride[0], t.stride[1], t.stride[2]}; }

// Places for arrays in one block of memory, each at a multiple of 256 bytes. Without memory it only adds up.
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

// The quantiser that is tuned for chitu. Its queries are copied by a tensor map, which strides may be beyond: then pack() does it all.
bool has_own_quantiser(const Problem& p) {
  const Tensor& q = p.query.tensor();
  for (std::size_t i = 0; i < 3; ++i)
    if (q.shape[i] > 1 && (q.stride[i] < q.shape[3] || q.stride[i] >= std::int64_t{1} << 39)) return false;
  return p.options.recipe == recipes::chitu && (p.dim() == 64 || p.dim() == 128);
}

CUtensorMap tensor_map(const Tensor& t, const Form& form) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    if (!function) throw Error(ErrorCode::internal, "CUDA: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  cuuint64_t sizes[4], strides[3];  // innermost first; strides in bytes, of all but the innermost
  for (std::size_t i = 0; i < 4; ++i) sizes[i] = static_cast<cuuint64_t>(t.shape[3 - i]);
  for (std::size_t i = 0; i < 3; ++i) strides[i] = static_cast<cuuint64_t>(t.shape[2 - i] > 1 ? t.stride[2 - i] : t.shape[3]) * 2;
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(form.block_queries), 1, 1}, steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult r = encode(&map, t.type == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, t.data,
                            sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (r != CUDA_SUCCESS) throw Error(ErrorCode::internal, "CUDA: cuTensorMapEncodeTiled gives " + std::to_string(r));
  return map;
}

int narrow(std::int64_t x) { return static_cast<int>(x); }

// Where each sequence of a packed call lies.
std::vector<Place> places_of(const Problem& p, const Form& form) {
  std::vector<Place> all;
  Place at{};
  for (const Sequence& s : p.sequences) {
    at.query_begin = narrow(s.query_begin);
    at.queries = narrow(s.queries);
    at.key_begin = narrow(s.key_begin);
    at.keys = narrow(s.keys);
    at.query_positions = s.query_positions;
    at.key_positions = s.key_positions;
    all.push_back(at);
    at.query_tile += tiles_of(at.queries);
    at.key_tile += tiles_of(at.keys);
    at.block += (at.queries + form.block_queries - 1) / form.block_queries;
  }
  all.push_back(at);  // the end: its tiles and blocks are those of all
  return all;
}

// Tiles of keys that a block of queries sees, on average and at most; of some of the blocks of each sequence.
struct Tiles {
  double average = 0, most = 0;
};
Tiles tiles_of_blocks(const Problem& p, const Form& form) {
  constexpr std::int64_t looked_at = 32;
  Tiles found;
  double weight = 0;
  for (const Sequence& s : p.sequences) {
    const std::int64_t blocks = (s.queries + form.block_queries - 1) / form.block_queries, step = (blocks + looked_at - 1) / looked_at;
    for (std::int64_t block = blocks - 1; block >= 0; block -= step) {
      const std::int64_t first = block * form.block_queries, last = std::min(first + form.block_queries, s.queries) - 1;
      const Range top = s.visible(p.options.window, first), bottom = s.visible(p.options.window, last);
      const auto tiles = static_cast<double>(std::max<std::int64_t>(tiles_of(narrow(bottom.end)) - top.begin / tile_tokens, 0));
      found.average += tiles * static_cast<double>(step);
      weight += static_cast<double>(step);
      found.most = std::max(found.most, tiles);
    }
    if (!p.packed()) break;  // all are alike
  }
  if (weight > 0) found.average /= weight;
  return found;
}

Split split_of(const Problem& p, const Form& form, std::int64_t items) {
  const int processors = multiprocessors(p.query.tensor().device_id);
  // Many sequences are many items, and of several lengths.
  if (!form.splits || (p.packed() && items >= 2 * processors)) return {narrow(items), 1};
  const Tiles tiles = tiles_of_blocks(p, form);
  return split_items(items, tiles.average, tiles.most, processors);
}

// All heads in parts of one size, whose keys and values fill half of the L2 cache.
int heads_at_once(const Params& p, const Form& form, int device) {
  const std::int64_t heads = std::int64_t{p.sequences} * p.kv_heads, bytes = heads * tiles_of(p.same.keys) * form.tile_bytes();
  const std::int64_t parts = std::clamp<std::int64_t>(bytes / (cache_bytes(device) / 2), 1, heads);
  return narrow((heads + parts - 1) / parts) * (p.heads / p.kv_heads);
}

// All but the arrays.
Params params_of(const Problem& p, const Form& form, const std::vector<Place>& places) {
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
  r.own_quantiser = has_own_quantiser(p);
  r.out_bf16 = p.output.out.type == DType::bf16;
  r.scale = p.scale();
  r.window = p.options.window;
  r.same = places.front();
  if (!p.packed()) {
    r.query_tiles = r.sequences * tiles_of(r.same.queries);
    r.key_tiles = r.sequences * tiles_of(r.same.keys);
    r.blocks = r.sequences * ((r.same.queries + form.block_queries - 1) / form.block_queries);
  } else {
    r.query_tiles = places.back().query_tile;
    r.key_tiles = places.back().key_tile;
    r.blocks = places.back().block;
  }
  r.split = split_of(p, form, std::int64_t{r.blocks} * r.heads);
  r.heads_at_once = heads_at_once(r, form, q.device_id);
  return r;
}

// Gives the arrays their places; returns the bytes of all.
std::size_t lay_out(Params& r, const Problem& p, const Form& form, Place*& places, std::byte* memory) {
  const bool packed = p.packed();
  const std::int64_t query_tiles = std::int64_t{r.query_tiles} * r.heads, queries = r.own_quantiser ? 0 : query_tiles * tile_tokens,
                     key_tiles = std::int64_t{r.key_tiles} * r.kv_heads, kv_heads = std::int64_t{r.sequences} * r.kv_heads;
  Arena arena(memory);
  std::uint16_t* centre;
  arena.take(r.queries, queries * form.dim * form.score_bytes);
  arena.take(r.query_scale, queries / form.query_scale_rows);
  arena.take(r.correction, queries);
  arena.take(centre, kv_heads * r.dim);
  arena.take(r.channels, kv_heads * form.dim);
  arena.take(r.tiles, key_tiles * form.tile_bytes());
  arena.take(r.residuals, form.residuals ? key_tiles * tile_tokens * form.dim : 0);
  arena.take(r.passes, 2 * key_tiles);
  arena.take(r.key_scale, form.scale_each_key ? key_tiles * tile_tokens : 0);
  arena.take(r.ranges, std::int64_t{tile_tokens} * (packed ? r.query_tiles : tiles_of(r.same.queries)));
  arena.take(r.items_taken, 1);
  arena.take(r.pieces, std::int64_t{split_item_count(r)} * r.split.pieces * (form.block_queries / 16) * form.piece_vectors() * 32);
  arena.take(r.pieces_done, std::int64_t{split_item_count(r)} * most_warps);
  arena.take(r.spoilt, 1);
  arena.take(r.spoilt_queries, query_tiles);
  arena.take(r.spoilt_keys, key_tiles);
  arena.take(r.spoilt_values, key_tiles);
  arena.take(r.statistics, r.own_quantiser ? 0 : statistics_count(r));
  arena.take(places, packed ? r.sequences : 0);
  r.centre = centre;
  r.places = packed ? places : nullptr;
  return arena.bytes();
}

bool no_queries(const Problem& p) {
  const Shape& s = p.query.tensor().shape;
  return s[0] * s[1] * s[2] == 0;
}

}  // namespace

std::string refusal(const Problem& p) {
  if (std::string why = beyond_it(p); !why.empty()) return why;
  const int device = p.query.tensor().device_id;
  if (std::string why = trouble(device, 9, 0); !why.empty()) return why;
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

std::size_t workspace_bytes(const Problem& p) {
  if (no_queries(p)) return 0;
  const Form form = form_of(p.options.recipe, p.dim());
  Params r = params_of(p, form, places_of(p, form));
  Place* places = nullptr;
  return lay_out(r, p, form, places, nullptr);
}

Call::Call(const Problem& p)
    : recipe_(p.options.recipe),
      device_(p.query.tensor().device_id),
      bf16_(p.query.tensor().type == DType::bf16),
      stream_(static_cast<cudaStream_t>(p.options.stream)),
      guard_(device_) {
  const Form form = form_of(recipe_, p.dim());
  std::vector<Place> places = places_of(p, form);
  params_ = params_of(p, form, places);
  std::byte* memory = static_cast<std::byte*>(p.options.workspace);
  require(memory || !is_capturing(stream_), "the stream is being captured into a graph: give Options::workspace, workspace_size() bytes");
  if (!memory) memory = memory_.emplace(lay_out(params_, p, form, places_on_gpu_, nullptr), device_, stream_).data();
  lay_out(params_, p, form, places_on_gpu_, memory);
  if (params_.own_quantiser) params_.queries_as_given = tensor_map(p.query.tensor(), form);
  if (p.packed()) {
    places.pop_back();
    places_ = std::move(places);
  }
}

void Call::quantise() const {
  if (!places_.empty()) describe(places_.data(), params_.sequences, places_on_gpu_, stream_);
  if (params_.own_quantiser)
    sm90::quantise(params_, bf16_, stream_);
  else
    pack(params_, recipe_, bf16_, stream_);
}

void Call::attend() const {
  const int processors = multiprocessors(device_);
  sm90::attend(params_, recipe_, bf16_, processors, stream_);
  mend(params_, bf16_, processors, stream_);
}

void run(const Problem& p) {
  if (no_queries(p)) return;
  const Call call(p);
  call.quantise();
  call.attend();
}

}  // namespace chitu::cuda::sm90
