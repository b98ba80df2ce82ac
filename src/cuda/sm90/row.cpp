// SPDX-License-Identifier: Apache-2.0
// Hopper's row of the kernel table: what it refuses, its workspace, its launches.
#include "cuda/sm90/row.h"

#include <cstdint>
#include <utility>

#include "cuda/device.h"
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
  if (!(p.recipe == recipes::chitu)) return "does the method chitu only";
  if (p.query.quantized() || p.key.quantized() || p.value.quantized())
    return "quantises itself, but an operand came quantised: give it as it was";
  if (!p.query_starts.empty()) return "takes no packed sequences: give each sequence its own call, or pad to one length";
  if (p.dim() != 64 && p.dim() != 128)
    return "is for dim 64 and 128, not " + std::to_string(p.dim()) + ": pad with zeros and give the scale";
  if (!is_half(q.type) || k.type != q.type || v.type != q.type)
    return std::string("takes query, key and value in one type, f16 or bf16, but they are ") + name(q.type) + ", " + name(k.type) + ", " +
           name(v.type);
  if (!is_half(out.type)) return std::string("writes f16 or bf16, but out is ") + name(out.type);
  for (const auto& [t, what] : {std::pair{&q, "query"}, {&k, "key"}, {&v, "value"}, {&out, "out"}})
    if (std::string why = misaligned(*t, what); !why.empty()) return why;
  const std::int64_t heads = q.shape[0] * q.shape[1], tiles = (std::max(q.shape[2], k.shape[2]) + tile_tokens - 1) / tile_tokens;
  if (std::max(q.shape[2], k.shape[2]) > most_tokens || heads * tiles > most_tokens)
    return "is for up to 2^30 tokens and tiles of all heads: give fewer heads a call";
  return {};
}

View view(const Tensor& t) { return {t.data, t.stride[0], t.stride[1], t.stride[2]}; }

// Places for arrays in one block of memory, each at a multiple of 256 bytes.
struct Layout {
  std::size_t bytes = 0;
  std::size_t add(std::int64_t count, std::size_t size) {
    const std::size_t at = bytes;
    bytes += (static_cast<std::size_t>(count) * size + 255) / 256 * 256;
    return at;
  }
};

Params params_of(const Problem& p) {
  const Tensor &q = p.query.tensor(), &k = p.key.tensor();
  const Sequence& s = p.sequences.front();  // all are alike: the call is not packed
  const auto count = [](std::int64_t x) { return static_cast<int>(x); };
  const auto tiles = [&](std::int64_t tokens) { return count((tokens + tile_tokens - 1) / tile_tokens); };
  Params r{};
  r.query = view(q);
  r.key = view(k);
  r.value = view(p.value.tensor());
  r.out = view(p.output.out);
  r.lse = view(p.output.lse);
  r.batch = count(q.shape[0]);
  r.heads = count(q.shape[1]);
  r.kv_heads = count(k.shape[1]);
  r.queries = count(q.shape[2]);
  r.keys = count(k.shape[2]);
  r.query_tiles = tiles(q.shape[2]);
  r.key_tiles = tiles(k.shape[2]);
  r.out_bf16 = p.output.out.type == DType::bf16;
  r.scale = p.scale;
  r.sample = Sample(k.shape[2]);
  r.window = p.window;
  r.query_positions = s.query_positions;
  r.key_positions = s.key_positions;
  return r;
}

}  // namespace

std::string refusal(const Problem& p) {
  if (std::string why = beyond_it(p); !why.empty()) return why;
  const int device = p.query.tensor().device_id;
  if (std::string why = trouble(device, 9, 0); !why.empty()) return why;
  for (const auto& [t, what] : {std::pair{&p.query.tensor(), "query"},
                                {&p.key.tensor(), "key"},
                                {&p.value.tensor(), "value"},
                                {&p.output.out, "out"},
                                {&p.output.lse, "lse"}})
    if (t->data && !on_device(t->data, device))
      return std::string(what) + "'s memory is not on GPU " + std::to_string(device) + ", as its tensor says";
  return {};
}

Call::Call(const Problem& p)
    : params_(params_of(p)),
      dim_(p.dim()),
      device_(p.query.tensor().device_id),
      bf16_(p.query.tensor().type == DType::bf16),
      stream_(static_cast<cudaStream_t>(p.stream)),
      guard_(device_) {
  Params& r = params_;
  const std::int64_t heads = std::int64_t{r.batch} * r.heads, kv_heads = std::int64_t{r.batch} * r.kv_heads,
                     tile = std::int64_t{tile_tokens} * dim_, tokens = std::int64_t{r.query_tiles} * tile_tokens,
                     tiles = kv_heads * r.key_tiles;
  Layout layout;
  const std::size_t query8 = layout.add(heads * tokens * dim_, 1), query_scale = layout.add(heads * tokens / 2, 4),
                    correction = layout.add(heads * tokens, 4), centre = layout.add(kv_heads * dim_, 2),
                    channels = layout.add(kv_heads * dim_, 4), operands = layout.add(tiles * 2 * tile, 1),
                    residuals = layout.add(tiles * tile, 1), passes = layout.add(2 * tiles, sizeof(PassScales)),
                    ranges = layout.add(tokens, sizeof(int2)), taken = layout.add(1, sizeof(int));
  memory_.emplace(layout.bytes, device_, stream_);
  const auto at = [&]<class T>(T*& pointer, std::size_t offset) { pointer = reinterpret_cast<T*>(memory_->data() + offset); };
  at(r.query8, query8);
  at(r.query_scale, query_scale);
  at(r.correction, correction);
  r.centre = memory_->data() + centre;
  at(r.channels, channels);
  at(r.tiles, operands);
  at(r.residuals, residuals);
  at(r.passes, passes);
  at(r.ranges, ranges);
  at(r.items_taken, taken);
}

void Call::quantise() const { sm90::quantise(params_, dim_, bf16_, stream_); }

void Call::attend() const { sm90::attend(params_, dim_, multiprocessors(device_), stream_); }

void run(const Problem& p) {
  const Shape& s = p.query.tensor().shape;
  if (s[0] * s[1] * s[2] == 0) return;
  const Call call(p);
  call.quantise();
  call.attend();
}

}  // namespace chitu::cuda::sm90
