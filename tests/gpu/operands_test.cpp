// SPDX-License-Identifier: Apache-2.0
// The operands that quantize_any_recipe() and quantize_chitu() make, number by number against quantize(). They are read as
// src/cuda/params.h describes them, by code of this file's own.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/limits.h"
#include "common/numbers.h"
#include "common/visible.h"
#include "cuda/params.h"
#include "support.h"

namespace chitu::test {
namespace {

using namespace cuda;

void check(cudaError_t e) {
  if (e != cudaSuccess) throw std::runtime_error(cudaGetErrorString(e));
}

// An array on the GPU, all bytes 0xff at first, and its copy here.
template <class T>
class OnGpu {
 public:
  explicit OnGpu(std::int64_t count) : numbers_(static_cast<std::size_t>(count)) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes() + 1));
    memory_ = std::shared_ptr<void>(memory, cudaFree);
    check(cudaMemset(memory, 0xff, bytes() + 1));
  }
  explicit OnGpu(const std::vector<T>& numbers) : OnGpu(static_cast<std::int64_t>(numbers.size())) {
    check(cudaMemcpy(memory_.get(), numbers.data(), bytes(), cudaMemcpyHostToDevice));
  }
  T* data() const { return static_cast<T*>(memory_.get()); }
  void fetch() { check(cudaMemcpy(numbers_.data(), memory_.get(), bytes(), cudaMemcpyDeviceToHost)); }
  const T& operator[](std::int64_t i) const { return numbers_.at(static_cast<std::size_t>(i)); }
  T& operator[](std::int64_t i) { return numbers_.at(static_cast<std::size_t>(i)); }
  const std::vector<T>& numbers() const { return numbers_; }

 private:
  std::size_t bytes() const { return numbers_.size() * sizeof(T); }
  std::vector<T> numbers_;
  std::shared_ptr<void> memory_;
};

View view(const Tensor& t) { return {t.data, t.stride[0], t.stride[1], t.stride[2]}; }

std::vector<SequenceLayout> layouts_of(const Shape& q, const Shape& k, const std::vector<std::int64_t>& query_starts,
                                       const std::vector<std::int64_t>& key_starts) {
  std::vector<SequenceLayout> all;
  SequenceLayout at{};
  const std::size_t count = query_starts.empty() ? static_cast<std::size_t>(q[0]) : query_starts.size() - 1;
  for (std::size_t i = 0; i < count; ++i) {
    const bool packed = !query_starts.empty();
    at.batch = packed ? 0 : static_cast<int>(i);
    at.query_begin = packed ? static_cast<int>(query_starts[i]) : 0;
    at.queries = static_cast<int>(packed ? query_starts[i + 1] - query_starts[i] : q[2]);
    at.key_begin = packed ? static_cast<int>(key_starts[i]) : 0;
    at.keys = static_cast<int>(packed ? key_starts[i + 1] - key_starts[i] : k[2]);
    at.query_positions = {at.keys - at.queries, 1};
    at.key_positions = {0, 1};
    all.push_back(at);
    at.query_tile += tiles_of(at.queries);
    at.key_tile += tiles_of(at.keys);
  }
  all.push_back(at);
  return all;
}

enum class Quantizer { any_recipe, chitu };  // chitu: for keys and values

// Three tensors as an attention kernel wants them, copied back from the GPU.
struct GpuOperands {
  Form form;
  std::vector<SequenceLayout> layouts;
  Params p{};
  OnGpu<std::uint8_t> queries{0}, key_numbers{0}, value_numbers{0}, orders{0}, nonfinite_queries{0}, nonfinite_keys{0}, nonfinite_values{0};
  OnGpu<float> query_scale{0}, correction{0}, channels{0}, key_scale{0};
  OnGpu<std::uint16_t> centre{0};
  OnGpu<std::int8_t> residuals{0};
  OnGpu<PassScales> passes{0};
  OnGpu<int2> ranges{0};
  OnGpu<int> counters{2};
  OnGpu<double> statistics{0};
  OnGpu<SequenceLayout> layouts_on_gpu{0};

  GpuOperands(Quantizer quantizer, const Recipe& recipe, const Tensor& q, const Tensor& k, const Tensor& v,
              const std::vector<std::int64_t>& query_starts, const std::vector<std::int64_t>& key_starts, float scale)
      : form(form_of(recipe, static_cast<int>(q.shape[3]))), layouts(layouts_of(q.shape, k.shape, query_starts, key_starts)) {
    p.query = view(q);
    p.key = view(k);
    p.value = view(v);
    p.dim = static_cast<int>(q.shape[3]);
    p.heads = static_cast<int>(q.shape[1]);
    p.kv_heads = static_cast<int>(k.shape[1]);
    p.sequences = static_cast<int>(layouts.size()) - 1;
    p.query_tiles = layouts.back().query_tile;
    p.key_tiles = layouts.back().key_tile;
    p.tuned_quantizer = quantizer == Quantizer::chitu;
    p.scale = scale;
    p.window = causal;
    p.same = layouts.front();
    const bool packed = !query_starts.empty();
    if (packed) {
      layouts_on_gpu = OnGpu<SequenceLayout>(layouts);
      p.layouts = layouts_on_gpu.data();
    }
    layouts.pop_back();  // the end, which has the totals
    const std::int64_t query_tiles = std::int64_t{p.query_tiles} * p.heads, query_rows = p.tuned_quantizer ? 0 : query_tiles * tile_tokens,
                       key_tiles = std::int64_t{p.key_tiles} * p.kv_heads, heads = std::int64_t{p.sequences} * p.kv_heads;
    const auto make = [](auto& array, auto& pointer, std::int64_t count) {
      array = std::decay_t<decltype(array)>(count);
      pointer = array.data();
    };
    make(queries, p.queries, query_rows * form.dim * form.score_bytes);
    make(query_scale, p.query_scale, query_rows / form.query_scale_rows);
    make(correction, p.correction, query_rows);
    make(centre, p.centre, heads * form.dim);
    make(channels, p.channels, heads * form.dim);
    make(key_numbers, p.key_numbers, key_tiles * form.key_bytes());
    make(value_numbers, p.value_numbers, key_tiles * form.value_plane_bytes());
    make(orders, p.orders, form.sorted ? key_tiles * tile_tokens : 0);
    make(residuals, p.residuals, form.residuals ? key_tiles * tile_tokens * form.dim : 0);
    make(passes, p.passes, 2 * key_tiles);
    make(key_scale, p.key_scale, form.scale_each_key ? key_tiles * tile_tokens : 0);
    make(ranges, p.ranges, std::int64_t{tile_tokens} * (packed ? p.query_tiles : tiles_of(p.same.queries)));
    make(nonfinite_queries, p.nonfinite_queries, query_tiles);
    make(nonfinite_keys, p.nonfinite_keys, key_tiles);
    make(nonfinite_values, p.nonfinite_values, key_tiles);
    make(statistics, p.statistics, p.tuned_quantizer ? 0 : statistics_count(p));
    p.items_taken = counters.data();
    p.any_nonfinite = counters.data() + 1;
    if (quantizer == Quantizer::chitu)
      quantize_chitu(p, q.type == DType::bf16, nullptr);
    else
      quantize_any_recipe(p, recipe, form, {}, q.type == DType::bf16, nullptr);
    check(cudaDeviceSynchronize());
    queries.fetch(), query_scale.fetch(), correction.fetch(), centre.fetch(), channels.fetch(), key_numbers.fetch(), value_numbers.fetch(),
        residuals.fetch();
    passes.fetch(), key_scale.fetch(), ranges.fetch(), nonfinite_queries.fetch(), nonfinite_keys.fetch(), nonfinite_values.fetch();
    counters.fetch(), orders.fetch();
    if (recipe.value.type != DType::i8) return;
    // Remove the offset: quantize() has none.
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(value_numbers.numbers().size()); ++i) value_numbers[i] ^= value_offset;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(residuals.numbers().size()); ++i)
      residuals[i] = static_cast<std::int8_t>(residuals[i] ^ value_offset);
  }

  // The byte at which a number begins in an operand of 16- or 8-bit rows; the operand has `rows` rows.
  std::int64_t in_panels(int bytes, std::int64_t rows, std::int64_t row, std::int64_t channel) const {
    const std::int64_t row_bytes = std::int64_t{form.dim} * bytes, panel = std::min<std::int64_t>(row_bytes, 128), at = channel * bytes;
    const std::int64_t chunk = at % panel / 16, stands = panel == 128 ? chunk ^ (row % 8) : chunk ^ (row / 2 % 4);
    return at / panel * rows * panel + row * panel + stands * 16 + at % 16;
  }
  const std::uint8_t* query(std::int64_t first_tile, std::int64_t tokens, std::int64_t token, std::int64_t channel) const {
    const std::int64_t rows = (tokens + 127) / 128 * 128;
    return &queries[first_tile * tile_tokens * form.dim * form.score_bytes + in_panels(form.score_bytes, rows, token, channel)];
  }
  // The key of its tile that stands at a row of it, and its rank there: keys 32 g + 2 i, 32 g + 2 i + 1 by size are at rows 8 i + 2 g and
  // the next.
  std::int64_t key_at(std::int64_t tile, std::int64_t row) const { return form.sorted ? orders[tile * tile_tokens + row] : row; }
  static std::int64_t rank_at(std::int64_t row) { return row % 8 / 2 * 32 + row / 8 * 2 + row % 2; }
  const std::uint8_t* key(std::int64_t tile, std::int64_t row, std::int64_t channel) const {
    return &key_numbers[tile * form.key_bytes() + in_panels(form.score_bytes, tile_tokens, row, channel)];
  }
  // The byte of a key's number in a plane of 8-bit values.
  static std::int64_t in_columns(std::int64_t row, std::int64_t channel) {
    constexpr int order[] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
    const std::int64_t at = std::find(std::begin(order), std::end(order), row % 16) - order;
    return channel * 128 + ((row / 16) ^ (channel % 8)) * 16 + at;
  }
  const std::uint8_t* value(std::int64_t tile, std::int64_t row, std::int64_t channel) const {
    const std::int64_t plane = tile * form.value_plane_bytes();
    if (form.value_bytes == 1) return &value_numbers[plane + in_columns(row, channel)];
    return &value_numbers[plane + in_panels(2, tile_tokens, row, channel)];
  }
};

// The index of a number among those of its type, so that neighbours differ by one.
std::int64_t step_of(DType type, const std::uint8_t* number) {
  if (type == DType::i8) return static_cast<std::int8_t>(*number);
  std::uint16_t bits = *number;
  const int magnitude_bits = bytes(type) * 8 - 1;
  if (bytes(type) == 2) std::memcpy(&bits, number, 2);
  const int magnitude = bits & ((1 << magnitude_bits) - 1);
  return bits >> magnitude_bits ? -magnitude : magnitude;
}

struct Tally {
  std::int64_t numbers = 0, different = 0, largest = 0;
  void add(std::int64_t got, std::int64_t want) {
    ++numbers;
    different += got != want;
    largest = std::max(largest, std::abs(got - want));
  }
};

bool near(float got, float want, float tolerance = 1e-6f) { return std::fabs(got - want) <= tolerance * std::fabs(want); }

bool has_nonfinite(const Quantized& x, std::int64_t sequence, std::int64_t head, std::int64_t token) {
  return std::any_of(x.nonfinite.begin(), x.nonfinite.end(),
                     [&](const NonFinite& n) { return n.sequence == sequence && n.head == head && n.token == token; });
}

// Compares everything that was written with what quantize() makes of the same tensors.
void expect_same(const Recipe& recipe, const GpuOperands& got, const Tensor& q, const Tensor& k, const Tensor& v,
                 const std::vector<std::int64_t>& query_starts, const std::vector<std::int64_t>& key_starts) {
  const Quantized key = quantize(k, Role::key, recipe, {.starts = key_starts}),
                  value = quantize(v, Role::value, recipe, {.starts = key_starts}),
                  query = quantize(q, Role::query, recipe, {.starts = query_starts, .keys = &key});
  const bool inexact = recipe.key.rotated || recipe.value.scaling == Scaling::tile;
  const std::int64_t dim = got.p.dim, padded = got.form.dim;
  const float sign = got.p.scale < 0 ? -1.f : 1.f;
  std::int64_t query_group = 0, key_group = 0;
  bool any_nonfinite = false;

  const auto rank_of = [](const Quantized& x, std::int64_t batch, std::int64_t head, std::int64_t row_of_tensor) {
    return std::to_integer<std::int64_t>(*row(x.ranks, batch, head, row_of_tensor));
  };
  const auto scale_of = [&](const Quantized& x, std::int64_t sequence, std::int64_t batch, std::int64_t head, std::int64_t first_group,
                            std::int64_t token, std::int64_t begin = 0) {
    if (x.quant.sorted)
      return load(row(x.scales, batch, head, first_group + token / 128 * 4 + rank_of(x, batch, head, begin + token) / 32), DType::f32, 0);
    if (x.quant.scaling == Scaling::tokens) return load(row(x.scales, batch, head, first_group + x.quant.groups.of(token)), DType::f32, 0);
    if (x.quant.scaling == Scaling::head) return load(row(x.scales, sequence, head, 0), DType::f32, 0);
    return 1.f;
  };
  // Compares what is stored for a number. Where there is no number, a zero must be stored.
  const auto expect_number = [&](Tally& tally, const Quantized& x, const std::uint8_t* stored, float factor, std::int64_t sequence,
                                 std::int64_t batch, std::int64_t head, std::int64_t begin, std::int64_t tokens, std::int64_t token,
                                 std::int64_t channel) {
    const DType type = x.quant.scaling == Scaling::none ? x.values.type : x.quant.type;
    float want = 0;
    if (token < tokens && channel < dim) {
      want = factor * load(row(x.values, batch, head, begin + token), type, channel);
      if (x.quant.scaling == Scaling::none && (x.role == Role::value ? !is_finite(want) : has_nonfinite(x, sequence, head, token)))
        want = 0;
    }
    alignas(float) std::uint8_t bytes_of_it[4] = {};
    store(bytes_of_it, type, 0, want);
    tally.add(step_of(type, stored), step_of(type, bytes_of_it));
  };
  Tally queries, keys, values, residuals, ranks;
  std::int64_t moved = 0;  // keys that have another scale, because ranks are inexact

  for (std::int64_t i = 0; i < got.p.sequences; ++i) {
    const SequenceLayout& s = got.layouts[static_cast<std::size_t>(i)];
    const std::int64_t query_tiles = (s.queries + 127) / 128, key_tiles = (s.keys + 127) / 128;
    const std::int64_t query_tile0 = std::int64_t{s.query_tile} * got.p.heads, key_tile0 = std::int64_t{s.key_tile} * got.p.kv_heads;

    for (std::int64_t t = 0; t < query_tiles * 128; ++t) {  // what each sees
      const Range seen = t < s.queries ? visible(got.p.window, s.query_positions.first + t, s.key_positions, s.keys) : Range{0, 0};
      const int2& range = got.ranges[(got.p.layouts ? std::int64_t{s.query_tile} * 128 : 0) + t];
      ASSERT_TRUE(range.x == seen.begin && range.y == seen.end) << "range of query " << t << " of sequence " << i;
    }

    for (std::int64_t h = 0; h < got.p.heads && !got.p.tuned_quantizer; ++h) {
      const std::int64_t kv_head = h / (got.p.heads / got.p.kv_heads);
      for (std::int64_t t = 0; t < query_tiles * 128; ++t) {
        const std::int64_t first_tile = query_tile0 + h * query_tiles, token = first_tile * 128 + t;
        for (std::int64_t c = 0; c < padded; ++c)
          expect_number(queries, query, got.query(first_tile, s.queries, t, c), sign, i, s.batch, h, s.query_begin, s.queries, t, c);
        const float scale = got.query_scale[got.form.query_scale_rows == 2 ? token / 16 * 8 + token % 8 : token];
        double dot = 0, size = 0;
        if (t < s.queries) {
          const float want = scale_of(query, i, s.batch, h, query_group, t);
          ASSERT_TRUE(near(scale, want)) << "query scale " << scale << ", not " << want << ", of token " << t << " of head " << h;
          if (key.centre.data && !has_nonfinite(query, i, h, t))
            for (std::int64_t c = 0; c < dim; ++c) {
              const double product = load(row(q, s.batch, h, s.query_begin + t), q.type, c) *
                                     static_cast<double>(load(row(key.centre, i, kv_head, 0), DType::f32, c));
              dot += product;
              size += std::fabs(product);
            }
        } else
          ASSERT_TRUE(is_finite(scale));
        ASSERT_LE(std::fabs(got.correction[token] - dot), 1e-5 * size) << "correction of token " << t << " of head " << h;
      }
      for (std::int64_t tile = 0; tile < query_tiles; ++tile) {
        bool nonfinite = false;
        for (std::int64_t t = tile * 128; t < std::min<std::int64_t>(s.queries, tile * 128 + 128); ++t)
          nonfinite |= has_nonfinite(query, i, h, t);
        ASSERT_EQ(got.nonfinite_queries[query_tile0 + h * query_tiles + tile], nonfinite) << "query tile " << tile << " of head " << h;
        any_nonfinite |= nonfinite;
      }
    }

    for (std::int64_t h = 0; h < got.p.kv_heads; ++h) {
      for (std::int64_t c = 0; c < padded; ++c) {
        const float channel = got.channels[(i * got.p.kv_heads + h) * padded + c];
        if (c >= dim) {
          ASSERT_TRUE(is_finite(channel));
          continue;
        }
        float want = 1;
        if (value.quant.scaling == Scaling::head) want = load(row(value.scales, i, h, 0), DType::f32, 0);
        if (value.quant.scaling == Scaling::channel) want = load(row(value.scales, i, h, 0), DType::f32, c);
        if (value.quant.scaling == Scaling::tile) want = load(row(value.channels, i, h, 0), DType::f32, c);
        ASSERT_TRUE(near(channel, want)) << "channel " << c << ": " << channel << ", not " << want;
        if (key.centre.data) {
          ASSERT_EQ(load(&got.centre[(i * got.p.kv_heads + h) * (got.p.tuned_quantizer ? padded : dim)], k.type, c),
                    load(row(key.centre, i, h, 0), DType::f32, c))
              << "centre of channel " << c << " of head " << h << " of sequence " << i;
        }
      }
      for (std::int64_t tile = 0; tile < key_tiles; ++tile) {
        const std::int64_t at = key_tile0 + h * key_tiles + tile;
        const PassScales &last = got.passes[2 * at], &residual = got.passes[2 * at + 1];
        const std::int64_t tiles = value.scales.data ? value.scales.shape[2] : 0, tiles_before = got.p.layouts ? s.key_tile : 0;
        const std::int32_t plane =
            got.form.residuals ? value.residual_of[static_cast<std::size_t>((s.batch * got.p.kv_heads + h) * tiles + tiles_before + tile)]
                               : -1;
        const float value_scale = got.form.residuals ? load(row(value.scales, s.batch, h, tiles_before + tile), DType::f32, 0) : 1;
        ASSERT_TRUE(near(last.value, value_scale)) << "tile " << tile << ": scale " << last.value << ", not " << value_scale;
        ASSERT_TRUE(near(residual.value, value_scale / residual_parts));
        ASSERT_TRUE(last.last == 1 && residual.last == 0);
        ASSERT_TRUE(last.flagged == (plane >= 0) && residual.flagged == last.flagged) << "tile " << tile << " of head " << h;
        bool nonfinite_keys = false, nonfinite_values = false;
        // Each row has a key of its own. Ranks compare 16 bits of fraction, so rounding can exchange two keys of nearly the same size.
        // Where one of them has another scale then, its integers are not compared, and the tile's scales may differ in these bits.
        std::vector<bool> stands(128), other_scale(128);
        for (std::int64_t r = 0; r < 128; ++r) {
          const std::int64_t place = got.key_at(at, r), t = tile * 128 + place;
          ASSERT_TRUE(place < 128 && !stands[static_cast<std::size_t>(place)]) << "row " << r << " of tile " << tile << " of head " << h;
          stands[static_cast<std::size_t>(place)] = true;
          if (!got.form.sorted || t >= s.keys) continue;
          const std::int64_t rank = rank_of(key, s.batch, h, s.key_begin + t);
          ranks.add(got.rank_at(r), rank);
          other_scale[static_cast<std::size_t>(r)] = got.rank_at(r) / 32 != rank / 32;
        }
        const auto moved_here = std::count(other_scale.begin(), other_scale.end(), true);
        moved += moved_here;
        for (std::int64_t r = 0; r < 128; ++r) {
          const std::int64_t place = got.key_at(at, r), t = tile * 128 + place;
          const bool has_other_scale = other_scale[static_cast<std::size_t>(r)];
          if (t < s.keys) {
            nonfinite_keys |= has_nonfinite(key, i, h, t);
            nonfinite_values |= has_nonfinite(value, i, h, t);
            const float scale = got.form.scale_each_key ? got.key_scale[at * 128 + r] : last.key[r % 8 / 2],
                        want = scale_of(key, i, s.batch, h, key_group, t, s.key_begin);
            ASSERT_TRUE(has_other_scale || near(scale, want, moved_here ? 0x1p-15f : 1e-6f))
                << "key scale " << scale << ", not " << want << ", of token " << t << " of head " << h;
            ASSERT_TRUE(got.form.scale_each_key || last.key[r % 8 / 2] == residual.key[r % 8 / 2]);
          }
          for (std::int64_t c = 0; c < padded; ++c) {
            if (!has_other_scale) expect_number(keys, key, got.key(at, r, c), 1, i, s.batch, h, s.key_begin, s.keys, t, c);
            const std::int64_t before = values.different;
            expect_number(values, value, got.value(at, r, c), 1, i, s.batch, h, s.key_begin, s.keys, t, c);
            if (plane >= 0 && values.different == before) {
              const auto stored = got.residuals[at * 128 * padded + GpuOperands::in_columns(r, c)];
              residuals.add(stored, c < dim ? static_cast<std::int64_t>(load(row(value.residuals, 0, plane, place), DType::i8, c)) : 0);
            }
          }
        }
        ASSERT_EQ(got.nonfinite_keys[at], nonfinite_keys);
        ASSERT_EQ(got.nonfinite_values[at], nonfinite_values);
        any_nonfinite |= nonfinite_keys || nonfinite_values;
      }
    }
    if (got.p.layouts) {
      query_group += recipe.query.groups.count(s.queries);
      key_group += recipe.key.groups.count(s.keys);
    }
  }
  const auto& query_flags = got.nonfinite_queries.numbers();
  const bool any_query = std::count(query_flags.begin(), query_flags.end(), 0) < std::ssize(query_flags);
  EXPECT_FALSE(got.p.tuned_quantizer && any_query) << "flags of queries are the attention kernel's to set";
  EXPECT_EQ(got.counters[0], 0);
  EXPECT_EQ(got.counters[1] != 0, any_nonfinite);
  // The GPU may round the sums of a rotation and of a sample differently; a channel's λ then differs.
  // Where one differs in its last bit, a few numbers may follow.
  const auto expect_tally = [&](const Tally& t, const char* what, double part) {
    if (t.different == 0) return;
    std::printf("  %s: %lld of %lld numbers differ, by %lld at most\n", what, static_cast<long long>(t.different),
                static_cast<long long>(t.numbers), static_cast<long long>(t.largest));
    EXPECT_TRUE(inexact && t.largest <= 1 && static_cast<double>(t.different) <= 24 + part * static_cast<double>(t.numbers)) << what;
  };
  if (got.form.sorted) {
    if (ranks.different)
      std::printf("  ranks: %lld of %lld differ\n", static_cast<long long>(ranks.different), static_cast<long long>(ranks.numbers));
    EXPECT_LE(static_cast<double>(ranks.different), 1e-2 * static_cast<double>(ranks.numbers));
    EXPECT_LE(ranks.largest, 2);
    EXPECT_LE(static_cast<double>(moved), 2 + 1e-4 * static_cast<double>(ranks.numbers));
  }
  expect_tally(queries, "queries", 1e-5);
  expect_tally(keys, "keys", moved ? 1e-4 : 1e-5);
  expect_tally(values, "values", 1e-4);
  expect_tally(residuals, "residuals", 1e-4);
}

struct Case {
  const char* name;
  DType type;
  Layout layout;
  std::int64_t batch, heads, kv_heads, queries, keys;
  std::vector<std::int64_t> query_starts, key_starts;
  float scale;
  bool nonfinite;
  bool uneven = false;  // sizes of keys fall and rise a thousandfold within a tile; some are alike
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"grouped heads", DType::bf16, Layout::bhsd, 2, 4, 2, 300, 385, {}, {}, 0.1f, false},
      {"few queries, negative scale", DType::f16, Layout::bshd, 1, 3, 3, 1, 129, {}, {}, -0.3f, false},
      {"packed", DType::bf16, Layout::padded, 1, 2, 1, 336, 581, {0, 5, 205, 205, 335, 336}, {0, 200, 200, 264, 564, 581}, 0.1f, false},
      {"not finite", DType::bf16, Layout::padded, 2, 2, 2, 260, 200, {}, {}, -0.1f, true},
      {"packed, not finite",
       DType::f16,
       Layout::bshd,
       1,
       2,
       2,
       336,
       581,
       {0, 5, 205, 205, 335, 336},
       {0, 200, 200, 264, 564, 581},
       0.1f,
       true},
      {"uneven", DType::bf16, Layout::bshd, 1, 4, 2, 130, 450, {}, {}, 0.1f, false, true},
      {"uneven, packed, not finite",
       DType::f16,
       Layout::padded,
       1,
       2,
       2,
       336,
       581,
       {0, 5, 205, 205, 335, 336},
       {0, 200, 200, 264, 564, 581},
       0.1f,
       true,
       true},
  };
  return all;
}

void run(Quantizer quantizer, const Method& method, std::int64_t dim, const Case& c) {
  SCOPED_TRACE(std::string(method.name) + ", dim " + std::to_string(dim) + ", " + c.name);
  Random random(static_cast<std::uint64_t>(dim) * 131 + static_cast<std::uint64_t>(c.keys));
  Array q = normal(random, c.type, {c.batch, c.heads, c.queries, dim}), k = normal(random, c.type, {c.batch, c.kv_heads, c.keys, dim}),
        v = normal(random, c.type, k.shape());
  // Keys share an offset. In each tile of values one key is smaller than the others, by about the ratio that flags a tile, and one key is
  // larger.
  k.fill([&](auto, auto h, auto, std::int64_t channel) { return random.normal() + static_cast<float>(channel * (h + 1) % 7); });
  if (c.uneven)
    k.fill([&](auto b, auto h, std::int64_t t, std::int64_t channel) {
      if (t % 5 == 4) return k.get(b, h, t - 1, channel);  // the same size as the key before
      const std::int64_t slope = t / 128 % 3, place = t % 128;
      const float steps = static_cast<float>(slope == 0 ? place : slope == 1 ? 127 - place : place * 37 % 128);
      return random.normal() * std::pow(1000.f, -steps / 127);
    });
  v.fill([&](auto, auto h, std::int64_t t, auto) {
    const float small = 0.12f + 0.02f * static_cast<float>((t / 131 + 3 * h + dim / 8) % 10);
    return random.normal() * (t % 131 == 5 ? small : t == 200 ? 9.f : 1.f);
  });
  if (c.nonfinite) {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
    q.set(0, 0, 17, dim / 2, nan);
    q.set(0, c.heads - 1, c.queries - 1, 0, -infinity);
    for (std::int64_t t = 0; t < 3; ++t) k.set(0, 0, t * 61, dim - 1, infinity);
    for (std::int64_t t = 130; t < 150; ++t) k.set(c.batch - 1, c.kv_heads - 1, t, t % dim, nan);
    for (std::int64_t t = 0; t < c.keys; t += 37) v.set(0, 0, t, t % dim, t % 2 ? nan : infinity);
    if (c.type == DType::bf16) v.set(c.batch - 1, 0, 3, 1, 1e5f);  // more than f16 can hold
  }
  const GpuArray on_gpu[] = {GpuArray(q, c.layout), GpuArray(k, c.layout), GpuArray(v, c.layout)};
  const GpuOperands got(quantizer, method.recipe, on_gpu[0], on_gpu[1], on_gpu[2], c.query_starts, c.key_starts, c.scale);
  expect_same(method.recipe, got, q, k, v, c.query_starts, c.key_starts);
}

using AnyRecipeQuantizer = NeedsGpu<testing::TestWithParam<Method>>;

TEST_P(AnyRecipeQuantizer, MakesWhatQuantizeMakes) {
  for (const std::int64_t dim : {64, 128, 256, 8, 72, 80, 96, 160, 192, 248})
    for (const Case& c : cases()) {
      run(Quantizer::any_recipe, GetParam(), dim, c);
      if (HasFailure()) return;
    }
}

// So many tiles that a span of the statistics has several, and a head has many spans.
Case long_case(DType type) { return {"long", type, Layout::bhsd, 1, 4, 4, 100, 40000, {}, {}, 0.1f, true}; }
Case long_packed() {
  return {"long, packed", DType::bf16, Layout::bshd, 1, 4, 4, 300, 40000, {0, 100, 200, 300}, {0, 30000, 30003, 40000}, 0.1f, false};
}

TEST_P(AnyRecipeQuantizer, LongSequences) {
  for (const DType type : {DType::bf16, DType::f16}) {
    run(Quantizer::any_recipe, GetParam(), 40, long_case(type));
    if (HasFailure()) return;
  }
  run(Quantizer::any_recipe, GetParam(), 64, long_packed());
}

INSTANTIATE_TEST_SUITE_P(Methods, AnyRecipeQuantizer, testing::ValuesIn(methods),
                         [](const auto& info) { return test_name(info.param.name); });

using ChituQuantizer = NeedsGpu<testing::TestWithParam<std::int64_t>>;  // dim

TEST_P(ChituQuantizer, MakesWhatQuantizeMakes) {
  for (const Case& c : cases()) {
    run(Quantizer::chitu, find_method("chitu"), GetParam(), c);
    if (HasFailure()) return;
  }
}

TEST_P(ChituQuantizer, LongSequences) {
  for (const Case& c : {long_case(DType::bf16), long_case(DType::f16), long_packed()}) {
    run(Quantizer::chitu, find_method("chitu"), GetParam(), c);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Dims, ChituQuantizer, testing::Values(64, 128, 8, 16, 32, 40, 48, 56, 72, 80, 96, 104, 112, 120));

}  // namespace
}  // namespace chitu::test
