// SPDX-License-Identifier: Apache-2.0
// The GPU's attention against the double reference of its recipe: every method, over dims, masks, lengths, heads, types and layouts.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <ostream>
#include <string>

#include "../cases.h"
#include "../core/oracle.h"
#include "common/numbers.h"
#include "common/rotation.h"
#include "cuda/schedule.h"
#include "support.h"

namespace chitu::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

Case make_case(std::size_t i) {
  static const std::vector<DType> types{DType::bf16, DType::f16};
  static const CaseSpace space{
      .seed = 500,
      .dims = {64, 128, 256, 8, 40, 72, 96, 136, 192},
      .lengths = {1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 384, 385, 500, 576, 640, 1023, 1100, 4097},
      .inputs = types,
      .outputs = types,
      .most_work = 60'000'000};
  return test::make_case(space, i);
}

// How far a case may be off beyond rounding: the output, and the LSE where few keys have most of the weight.
struct Tolerance {
  double out = 2e-3, lse = 1e-2;
};

// How many keys each row of the LSE sees.
std::vector<std::int64_t> keys_seen(const Case& c) {
  const oracle::Call call{c.query, c.key, c.value, c.options};
  const Shape& s = c.query.shape();
  std::vector<std::int64_t> seen(static_cast<std::size_t>(s[0] * s[1] * s[2]));
  for (const oracle::Run& run : oracle::runs(call))
    for (std::int64_t i = run.query_begin; i < run.query_end; ++i) {
      std::int64_t count = 0;
      for (std::int64_t j = run.key_begin; j < run.key_end; ++j) count += oracle::sees(call, run, i, j);
      for (std::int64_t h = 0; h < s[1]; ++h) seen[static_cast<std::size_t>((run.batch * s[1] + h) * s[2] + i)] = count;
    }
  return seen;
}

// Holds the GPU to the reference of its own recipe.
void expect_recipe(Case& c, const Recipe& recipe, const Tolerance& tolerance = {}) {
  SCOPED_TRACE(c.text);
  c.options.recipe = recipe;
  Options reference = c.options;
  reference.kernel = "cpu.reference";
  const Result expected = attend(c.query.tensor(), c.key.tensor(), c.value.tensor(), reference);
  const GpuResult got = attend_on_gpu(c.query, c.key, c.value, c.options, c.type, c.in, c.out);
  EXPECT_LE(relative_l1(got.out, expected.out.numbers()), tolerance.out + gpu_rounding(recipe, c.query.tensor().type, c.type));

  // A weight, or an integer of a rotated query or key, may round the other way where it is nearly halfway. If few keys have most of the
  // weight, that one integer is seen.
  const bool exact = recipe == recipes::exact, fp8_scores = recipe.key.type == DType::e4m3;
  const double many_keys = fp8_scores ? 4e-3 : 2e-3;
  const auto lse = to_double(expected.lse.numbers());
  const auto seen = keys_seen(c);
  double sum = 0;
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (seen[i] == 0) {
      ASSERT_EQ(got.lse[i], -infinity) << i;
      continue;
    }
    const double error = std::fabs(got.lse[i] - lse[i]);
    ASSERT_LE(error, exact ? 3e-4 : seen[i] >= 64 && !c.peaky ? many_keys : tolerance.lse) << "lse " << i << " of " << seen[i] << " keys";
    sum += error;
  }
  const double mean = exact ? 3e-5 : !fp8_scores ? 2e-4 : c.peaky ? 1.5e-3 : 3e-4;
  EXPECT_LE(sum, mean * static_cast<double>(lse.size()) + (exact ? 0 : 1e-2));  // 1e-2: what one integer may change
}

class GpuMethods : public NeedsGpu<testing::TestWithParam<Method>> {
 protected:
  const Recipe& recipe() const { return GetParam().recipe; }
};

TEST_P(GpuMethods, DoWhatTheRecipeSays) {
  const auto which =
      std::find_if(methods.begin(), methods.end(), [](const Method& m) { return m.name == GetParam().name; }) - methods.begin();
  for (std::size_t i = 0; i < 70; ++i) {
    Case c = make_case(i * methods.size() + static_cast<std::size_t>(which));
    expect_recipe(c, recipe());
    if (HasFailure()) return;
  }
}

// Dims that are padded, whose rotation has blocks of any size.
TEST_P(GpuMethods, EveryDim) {
  for (std::int64_t dim = 8; dim <= 136; dim += 8)
    for (const DType type : {DType::f16, DType::bf16}) {
      Random random(static_cast<std::uint64_t>(dim));
      Case c = normal_case(random, type, {2, 4, 200, dim}, {2, 2, 300, dim});
      c.value.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t == 140 ? 0.01f : 1.f); });  // a flagged tile
      c.text = "dim " + std::to_string(dim) + ", " + name(type);
      expect_recipe(c, recipe());
      if (HasFailure()) return;
    }
}

// Tiles with a residual plane: a sink with small values that takes most of the weight, and spikes.
TEST_P(GpuMethods, WithSinkAndSpikes) {
  for (const std::int64_t dim : {64, 128, 256, 72})
    for (const Window& window : {everything, causal, Window{200, 0}}) {
      Random random(7);
      Case c;
      c.query = normal(random, DType::bf16, {1, 4, 400, dim});
      c.key = normal(random, DType::bf16, {1, 2, 700, dim});
      c.value = normal(random, DType::bf16, c.key.shape());
      c.query.fill([&](auto, auto, auto, std::int64_t x) { return random.normal() + (x == 3 ? 6.f : 0.f); });
      c.key.fill([&](auto, auto, std::int64_t t, std::int64_t x) { return random.normal() + (t == 0 && x == 3 ? 12.f : 0.f); });
      c.value.fill([&](auto, auto h, std::int64_t t, auto) { return random.normal() * (t == 0 ? 0.01f : t == 400 + h ? 60.f : 1.f); });
      c.options.window = window;
      c.type = DType::bf16;
      c.peaky = true;
      c.text = "dim " + std::to_string(dim) + ", window " + std::to_string(window.left) + ", " + std::to_string(window.right);
      expect_recipe(c, recipe());
    }
}

// Sizes of keys that fall and rise a thousandfold within a tile, some alike, so that a tile sorted by size has another order than its
// tokens; with masks whose edges lie within tiles, a last tile that is not full, and residual planes. Values differ from key to key: a
// value that is not where its key is, or a mask that takes a row for a key, is far off.
TEST_P(GpuMethods, WithKeysOfManySizes) {
  for (const std::int64_t dim : {64, 128, 256, 72})
    for (const Window& window : {everything, causal, Window{200, 0}, Window{37, 11}}) {
      Random random(11);
      Case c;
      c.query = normal(random, DType::bf16, {1, 4, 333, dim});
      c.key = normal(random, DType::bf16, {1, 2, 461, dim});
      c.value = normal(random, DType::bf16, c.key.shape());
      c.key.fill([&](auto b, auto h, std::int64_t t, std::int64_t x) {
        if (t % 5 == 4) return c.key.get(b, h, t - 1, x);
        const std::int64_t place = t % 128, slope = t / 128 % 3;
        const float steps = static_cast<float>(slope == 0 ? place : slope == 1 ? 127 - place : place * 37 % 128);
        return 2 * random.normal() * std::pow(1000.f, -steps / 127);
      });
      c.value.fill([&](auto, auto h, std::int64_t t, std::int64_t x) {
        return (t % 128 == 9 ? 0.02f : 1.f) * (random.normal() + static_cast<float>((t * 7 + x + h) % 5));
      });
      c.options.window = window;
      c.type = DType::bf16;
      c.text = "dim " + std::to_string(dim) + ", window " + std::to_string(window.left) + ", " + std::to_string(window.right);
      expect_recipe(c, recipe());
      if (HasFailure()) return;
    }
}

TEST_P(GpuMethods, LeaveRowsThatSeeNoKeyAtZeroWithoutWeight) {
  for (const std::int64_t dim : {64, 72, 256}) {
    Random random(3);
    const Array q = normal(random, DType::f16, {2, 4, 450, dim}), k = normal(random, DType::f16, {2, 2, 20, dim});
    const GpuArray gq(q), gk(k);
    // Bottom-right: the first 430 queries see nothing.
    const GpuResult r =
        attend_on_gpu(gq.tensor(), gk.tensor(), gk.tensor(), {.recipe = recipe(), .window = causal}, DType::bf16, Layout::padded);
    const auto channels = static_cast<std::size_t>(dim);
    for (std::size_t i = 0; i < r.lse.size(); ++i) {
      const bool none = i % 450 < 430;
      ASSERT_EQ(r.lse[i] == -infinity, none) << i;
      for (std::size_t c = 0; none && c < channels; ++c) ASSERT_EQ(r.out[i * channels + c], 0) << i;
    }
    const Tensor no_keys = tokens_of(gk, 0, 0);
    const GpuResult none = attend_on_gpu(gq.tensor(), no_keys, no_keys, {.recipe = recipe()}, DType::f16);
    for (const float x : none.out) ASSERT_EQ(x, 0);
    for (const float x : none.lse) ASSERT_EQ(x, -infinity);
  }
}

// A sequence of a packed batch gets the bits that it gets alone, if neither call splits it: its neighbours do not reach it, and tiles are
// counted from its start. `layout` has gaps, which attend_on_gpu() expects to be untouched.
TEST_P(GpuMethods, PackedSequencesAreAsAlone) {
  const std::vector<std::int64_t> query_starts{0, 1, 1, 301, 430, 494, 694, 695}, key_starts{0, 1, 6, 6, 306, 563, 763, 1163};
  for (const std::int64_t dim : {64, 128, 256, 72})
    for (const Window& window : {everything, causal, Window{100, 20}}) {
      Random random(12);
      SCOPED_TRACE("dim " + std::to_string(dim) + ", window " + std::to_string(window.left) + ", " + std::to_string(window.right));
      const GpuArray q(normal(random, DType::f16, {1, 4, query_starts.back(), dim}), Layout::padded),
          k(normal(random, DType::f16, {1, 2, key_starts.back(), dim}), Layout::bshd),
          v(normal(random, DType::f16, {1, 2, key_starts.back(), dim}), Layout::padded);
      const Options options{.recipe = recipe(), .window = window};
      Options packed = options;
      packed.query_starts = query_starts;
      packed.key_starts = key_starts;
      const GpuResult all = attend_on_gpu(q.tensor(), k.tensor(), v.tensor(), packed, DType::bf16, Layout::padded);
      for (std::size_t s = 0; s + 1 < query_starts.size(); ++s) {
        const std::int64_t begin = query_starts[s], count = query_starts[s + 1] - begin;
        if (count == 0) continue;
        const Tensor keys = tokens_of(k, key_starts[s], key_starts[s + 1]), values = tokens_of(v, key_starts[s], key_starts[s + 1]);
        const GpuResult alone = attend_on_gpu(tokens_of(q, begin, begin + count), keys, values, options, DType::bf16);
        for (std::int64_t h = 0; h < 4; ++h)
          for (std::int64_t i = 0; i < count; ++i) {
            const auto one = static_cast<std::size_t>(h * count + i), other = static_cast<std::size_t>(h * query_starts.back() + begin + i),
                       channels = static_cast<std::size_t>(dim);
            ASSERT_EQ(alone.lse[one], all.lse[other]) << "sequence " << s << ", head " << h << ", query " << i;
            for (std::size_t c = 0; c < channels; ++c)
              ASSERT_EQ(alone.out[one * channels + c], all.out[other * channels + c])
                  << "sequence " << s << ", head " << h << ", query " << i << ", channel " << c;
          }
      }
    }
}

// More sequences than one launch describes, empty ones among them.
TEST_P(GpuMethods, TakeManySequences) {
  Random random(13);
  Case c;
  c.query_starts = c.key_starts = {0};
  for (int i = 0; i < 200; ++i) {
    c.query_starts.push_back(c.query_starts.back() + random.below(9));
    c.key_starts.push_back(c.key_starts.back() + random.below(i % 50 == 7 ? 300 : 20));
  }
  c.query = normal(random, DType::bf16, {1, 4, c.query_starts.back(), 64});
  c.key = normal(random, DType::bf16, {1, 1, c.key_starts.back(), 64});
  c.value = normal(random, DType::bf16, c.key.shape());
  c.options = {.window = causal, .query_starts = c.query_starts, .key_starts = c.key_starts};
  c.text = "200 sequences";
  expect_recipe(c, recipe());
}

// Few queries and many keys: blocks with rows for one warpgroup, rows that see different tiles.
TEST_P(GpuMethods, FewQueriesOfManyKeys) {
  std::size_t n = 0;
  for (const std::int64_t dim : {64, 128, 256})
    for (const std::int64_t queries : {1, 3, 17, 64})
      for (const std::int64_t keys : {129, 640, 1300, 5000}) {
        Random random(600 + n);
        Case c;
        const DType in = random.below(2) ? DType::f16 : DType::bf16;
        const std::int64_t kv_heads = 1 + random.below(2), heads = kv_heads * random.pick(head_ratios);
        const bool sink = random.below(2), small = random.below(2);
        c.query = normal(random, in, {1, heads, queries, dim});
        c.key = normal(random, in, {1, kv_heads, keys, dim});
        c.value = normal(random, in, c.key.shape());
        if (sink) {  // has most of the weight of most rows
          c.query.fill([&](auto, auto, auto, std::int64_t x) { return random.normal() + (x == 3 ? 6.f : 0.f); });
          c.key.fill([&](auto, auto, std::int64_t t, std::int64_t x) { return random.normal() + (t == 0 && x == 3 ? 12.f : 0.f); });
        }
        if (small)  // flagged tiles
          c.value.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t % 301 == 0 ? 0.01f : 1.f); });
        // In the last two, rows are spread over all keys, the first one before any key, so that each row sees other keys.
        const Window windows[] = {everything, causal, {700, 0}, {60, 20}, causal};
        c.options.window = windows[n % 5];
        if (n % 5 >= 3) {
          const std::int64_t step = keys / queries;
          c.options.query_positions = Positions{queries == 1 ? keys / 3 : -2 * step, step};
        }
        c.type = random.below(2) ? DType::f16 : DType::bf16;
        c.in = random.pick(layouts);
        c.out = random.pick(layouts);
        c.peaky = sink;
        // With few rows, one weight that rounds differently is seen, the more so if a sink leaves few weights to the other keys.
        const Tolerance tolerance{.out = sink ? 1.5e-2 : 4e-3};
        c.text = "dim " + std::to_string(dim) + ", " + std::to_string(queries) + " queries, " + std::to_string(keys) + " keys, window " +
                 std::to_string(n % 5) + ", " + name(in) + (sink ? ", sink" : "") + (small ? ", flagged tiles" : "");
        expect_recipe(c, recipe(), tolerance);
        if (HasFailure()) return;
        ++n;
      }
}

TEST_P(GpuMethods, FewQueriesOfManyKeysPacked) {
  const std::vector<std::int64_t> query_starts{0, 1, 4, 4, 21, 85, 86, 88, 151, 156, 157},
      key_starts{0, 5000, 5129, 5169, 6469, 7169, 7170, 7298, 9298, 9298, 9938};
  for (const std::int64_t dim : {64, 128, 256})
    for (const Window& window : {everything, causal, Window{300, 10}}) {
      Random random(15);
      Case c;
      const DType in = window == causal ? DType::f16 : DType::bf16;
      c.query = normal(random, in, {1, 4, query_starts.back(), dim});
      c.key = normal(random, in, {1, 2, key_starts.back(), dim});
      c.value = normal(random, in, c.key.shape());
      c.value.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t % 301 == 5 ? 0.01f : 1.f); });
      c.options.window = window;
      c.options.query_starts = query_starts;
      c.options.key_starts = key_starts;
      c.type = in;
      c.text = "dim " + std::to_string(dim) + ", window " + std::to_string(window.left) + ", " + std::to_string(window.right);
      expect_recipe(c, recipe());
      if (HasFailure()) return;
    }
}

// Split items, by the methods that split. With one item more than multiprocessors only the last is split, with five items all are. The bits
// are the same, whichever piece is the last to be done.
TEST_P(GpuMethods, SplitItems) {
  int processors = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
  const std::int64_t keys = 1300, tiles = 11;
  for (const std::int64_t dim : {64, 128, 256})
    for (const std::int64_t heads : {processors + 1, 5}) {
      const auto split = cuda::split_items(heads, tiles, tiles, processors);
      ASSERT_EQ(split.whole, heads == 5 ? 0 : processors);
      ASSERT_GT(split.pieces, 2);
      Random random(21);
      Case c = normal_case(random, dim == 64 ? DType::f16 : DType::bf16, {1, heads, heads == 5 ? 120 : 9, dim}, {1, heads, keys, dim});
      // A sink in the first piece, flagged tiles in others.
      c.query.fill([&](auto, auto, auto, std::int64_t x) { return random.normal() + (x == 3 ? 4.f : 0.f); });
      c.key.fill([&](auto, auto, std::int64_t t, std::int64_t x) { return random.normal() + (t == 0 && x == 3 ? 8.f : 0.f); });
      c.value.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t % 301 == 0 ? 0.01f : 1.f); });
      c.peaky = true;
      c.text = "dim " + std::to_string(dim) + ", " + std::to_string(heads) + " heads";
      expect_recipe(c, recipe(), {.out = 4e-3});
      if (HasFailure()) return;
      const GpuResult once = attend_on_gpu(c.query, c.key, c.value, c.options, c.type);
      for (int run = 0; run < 5; ++run) {
        const GpuResult again = attend_on_gpu(c.query, c.key, c.value, c.options, c.type);
        ASSERT_EQ(again.out, once.out);
        ASSERT_EQ(again.lse, once.lse);
      }
    }
}

// More keys and values than the L2 cache holds: the heads are taken in several parts, whose sizes differ.
TEST_P(GpuMethods, HeadsInParts) {
  Random random(22);
  Case c = normal_case(random, DType::bf16, {1, 502, 400, 128}, {1, 251, 1030, 128});
  c.options.window = {30, 0};
  expect_recipe(c, recipe());
}

INSTANTIATE_TEST_SUITE_P(All, GpuMethods, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

// What tools/gpu.sh runs under compute-sanitizer: every kernel of a method once or twice, small.
class GpuSmall : public NeedsGpu<testing::TestWithParam<Method>> {};

TEST_P(GpuSmall, Calls) {
  const std::vector<std::int64_t> query_starts{0, 40, 200}, key_starts{0, 130, 300};
  for (const std::int64_t dim : {64, 128, 256, 72}) {
    Random random(14);
    Case c = normal_case(random, DType::bf16, {1, 2, 200, dim}, {1, 1, 300, dim});
    c.value.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t == 5 ? 0.01f : 1); });  // a flagged tile
    c.options.window = causal;
    c.text = "dim " + std::to_string(dim);
    expect_recipe(c, GetParam().recipe);
    c.query_starts = query_starts;
    c.key_starts = key_starts;
    c.options.query_starts = c.query_starts;
    c.options.key_starts = c.key_starts;
    // All of spoil_nonfinite(): a non-finite key that some rows weigh at nothing, and a non-finite value.
    c.key.set(0, 0, 10, 3, infinity);
    c.value.set(0, 0, 200, 5, -infinity);
    const GpuResult r = attend_on_gpu(c.query, c.key, c.value, c.options, DType::bf16);
    EXPECT_TRUE(std::any_of(r.out.begin(), r.out.end(), [](float x) { return std::isnan(x); }));
    EXPECT_EQ(std::count(r.out.begin(), r.out.end(), -infinity), 2 * 100) << "of 2 heads, the queries that see key 200";
  }
}

// So many blocks that a CTA has several: the second meets memory that the first has used.
TEST_P(GpuSmall, ManyBlocks) {
  for (const std::int64_t dim : {64, 128}) {
    Random random(20);
    Case c = normal_case(random, DType::bf16, {1, 200, 200, dim}, {1, 50, 40, dim});
    c.text = "dim " + std::to_string(dim);
    expect_recipe(c, GetParam().recipe);
  }
}

// Few queries of so many keys that the item is split.
TEST_P(GpuSmall, Split) {
  for (const std::int64_t dim : {64, 128, 256}) {
    Random random(23);
    Case c = normal_case(random, DType::bf16, {1, 1, 70, dim}, {1, 1, 2500, dim});
    c.text = "dim " + std::to_string(dim);
    expect_recipe(c, GetParam().recipe, {.out = 4e-3});
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuSmall, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

using Gpu = NeedsGpu<testing::Test>;

TEST_F(Gpu, WithoutLseAndWithoutQueries) {
  Random random(4);
  const Array q = normal(random, DType::f16, {1, 2, 300, 128});
  const GpuArray x(q), out(DType::f16, q.shape(), Layout::bhsd);
  for (const Method& method : methods) {
    const Options options{.recipe = method.recipe};
    const GpuResult with = attend_on_gpu(x.tensor(), x.tensor(), x.tensor(), options, DType::f16);
    attention(x.tensor(), x.tensor(), x.tensor(), out.tensor(), options);
    EXPECT_EQ(out.numbers(), with.out) << method.name;
    const Tensor no_queries = tokens_of(x, 0, 0);
    attention(no_queries, x.tensor(), x.tensor(), tokens_of(out, 0, 0), options);
  }
}

// A dimension whose steps are so far apart that offsets pass 2^31 and 2^32 elements, even between tokens of a tile.
struct Far {
  const char* name;
  Shape shape;
  std::size_t dimension;
  std::int64_t stride;
};
void PrintTo(const Far& far, std::ostream* out) { *out << far.name; }

class GpuFar : public NeedsGpu<testing::TestWithParam<Far>> {};

TEST_P(GpuFar, OffsetsHave64Bits) {
  const Far& far = GetParam();
  const auto [batch, heads, tokens, dim] = far.shape;
  const std::int64_t count = batch * heads * tokens * dim;
  const auto memory_bytes = static_cast<std::size_t>(((far.shape[far.dimension] - 1) * far.stride + 4 * count) * 2),
             row_bytes = static_cast<std::size_t>(dim * 2);
  void* memory = nullptr;
  if (cudaMalloc(&memory, memory_bytes) != cudaSuccess) {
    (void)cudaGetLastError();
    GTEST_SKIP() << "the GPU has no " << memory_bytes << " bytes free";
  }
  const std::shared_ptr<void> owner(memory, cudaFree);
  ASSERT_EQ(cudaMemset(memory, 0xff, memory_bytes), cudaSuccess);

  Random random(6);
  Array host[3] = {normal(random, DType::f16, far.shape), normal(random, DType::f16, far.shape), normal(random, DType::f16, far.shape)};
  host[2].set(batch - 1, heads - 1, tokens - 1, 3, infinity);  // for spoil_nonfinite(), too
  std::vector<Tensor> tensors;                                 // a row lies `count` elements behind the same row of the tensor before
  for (int i = 0; i < 4; ++i) {
    Tensor t{static_cast<std::byte*>(memory) + i * count * 2, DType::f16, Device::cuda, 0, far.shape, contiguous_strides(far.shape)};
    t.stride[far.dimension] = far.stride;
    tensors.push_back(t);
  }
  const auto copy = [&](const Tensor& to, const Tensor& from, cudaMemcpyKind kind) {
    cudaError_t error = cudaSuccess;
    for (std::int64_t b = 0; b < far.shape[0]; ++b)
      for (std::int64_t h = 0; h < far.shape[1]; ++h)
        for (std::int64_t t = 0; t < far.shape[2] && error == cudaSuccess; ++t)
          error = cudaMemcpy(row(to, b, h, t), row(from, b, h, t), row_bytes, kind);
    EXPECT_EQ(error, cudaSuccess);
  };
  for (std::size_t i = 0; i < 3; ++i) copy(tensors[i], host[i], cudaMemcpyHostToDevice);
  for (const Method& method : {find_method("chitu"), find_method("sage2"), find_method("exact")}) {
    const Options options{.recipe = method.recipe};
    const GpuResult near = attend_on_gpu(host[0], host[1], host[2], options, DType::f16);
    attention(tensors[0], tensors[1], tensors[2], tensors[3], options);
    const Array out(DType::f16, far.shape);
    copy(out, tensors[3], cudaMemcpyDeviceToHost);
    EXPECT_EQ(out.numbers(), near.out) << method.name;
  }
}

constexpr std::int64_t two_to_31 = std::int64_t{1} << 31;
INSTANTIATE_TEST_SUITE_P(All, GpuFar,
                         testing::Values(Far{"Batch", {3, 1, 200, 64}, 0, two_to_31 + 64}, Far{"Heads", {1, 3, 200, 64}, 1, two_to_31 + 64},
                                         Far{"Tokens", {1, 2, 200, 64}, 2, two_to_31 / 64 + 64}),
                         [](const auto& info) { return std::string(info.param.name); });

// Queries whose strides no tensor map can have, so that the any_recipe quantizer takes the call; and keys and values with such strides,
// which chitu's own quantizer takes.
TEST_F(Gpu, StridesThatNoTensorMapHas) {
  const auto reverse = [](Tensor& t, std::size_t dimension) {
    t.data = static_cast<std::byte*>(t.data) + (t.shape[dimension] - 1) * t.stride[dimension] * bytes(t.type);
    t.stride[dimension] = -t.stride[dimension];
  };
  const Options options{.window = causal};
  for (const std::int64_t dim : {64, 128})
    for (const std::int64_t stride : {-1, 0, 8})  // reversed, repeated, overlapping
      for (std::size_t dimension = 0; dimension < 3; ++dimension) {
        SCOPED_TRACE("dim " + std::to_string(dim) + ", dimension " + std::to_string(dimension) + ", stride " + std::to_string(stride));
        Random random(50);
        const Array memory[] = {normal(random, DType::bf16, {2, 4, 300, dim}), normal(random, DType::bf16, {2, 2, 450, dim}),
                                normal(random, DType::bf16, {2, 2, 450, dim})};
        std::vector<GpuArray> arrays, plain;  // the memory, and copies of its views
        std::vector<Tensor> views;
        for (const Array& x : memory) {
          const auto change = [&](Tensor t) {
            if (stride < 0)
              reverse(t, dimension);
            else
              t.stride[dimension] = stride;
            return t;
          };
          const Tensor view = change(x);
          Array copy(view.type, view.shape);
          copy.fill([&](auto b, auto h, auto t, auto c) { return load(row(view, b, h, t), view.type, c); });
          arrays.emplace_back(x);
          plain.emplace_back(copy);
          views.push_back(change(arrays.back()));
        }
        const GpuResult expected = attend_on_gpu(plain[0], plain[1], plain[2], options, DType::bf16);
        for (const GpuResult& got : {attend_on_gpu(views[0], plain[1], plain[2], options, DType::bf16),
                                     attend_on_gpu(views[0], views[1], views[2], options, DType::bf16)}) {
          EXPECT_LE(relative_l1(got.out, expected.out), 2e-3 + rounding_of(DType::bf16));
          EXPECT_LE(difference(got.lse, to_double(expected.lse)).largest, 2e-3);
        }
        const GpuResult same = attend_on_gpu(plain[0], views[1], views[2], options, DType::bf16);
        EXPECT_EQ(same.out, expected.out);
        EXPECT_EQ(same.lse, expected.lse);
      }
}

// ---- numbers near the largest of bf16

constexpr float tiny_scale = 0x1p-126f;  // the score of a huge token and one of usual size is then of usual size

// Some queries of head 0 and keys of head 1 would overflow fp32 in their rotation without rotation_headroom. Half of these have two large
// numbers. The other half have numbers of one size, with the signs that the rotation takes away, so that it sums them all.
TEST_F(Gpu, RowsOfHugeNumbers) {
  for (const std::int64_t dim : {64, 128, 72})
    for (const float scale : {tiny_scale, -tiny_scale}) {
      Random random(51);
      Case c;
      const auto number = [&](bool huge, std::int64_t token, std::int64_t channel) {
        const float usual = 0.5f * random.normal();
        if (!huge || token % 37 != 7) return usual;
        const std::int64_t i = token / 37;
        if (i % 2) return rotation_negates(static_cast<int>(channel)) ? -7e36f : 7e36f;
        return channel / 2 == i ? 3e38f : usual;
      };
      c.query = normal(random, DType::bf16, {1, 2, 300, dim});
      c.key = normal(random, DType::bf16, {1, 2, 300, dim});
      c.value = normal(random, DType::bf16, c.key.shape());
      c.query.fill([&](auto, auto h, auto t, auto x) { return number(h == 0, t, x); });
      c.key.fill([&](auto, auto h, auto t, auto x) { return number(h == 1, t, x); });
      c.options.scale = scale;
      c.type = DType::bf16;
      c.peaky = true;
      c.text = "dim " + std::to_string(dim) + (scale < 0 ? ", negative scale" : "");
      expect_recipe(c, recipes::chitu, {.lse = 3e-2});  // an integer of the largest query or key moves a score by 0.02
    }
}

// Keys with a common part so large that the sum of a few overflows fp32.
TEST_F(Gpu, KeysWithAHugeCommonPart) {
  for (const std::int64_t dim : {64, 128, 72}) {
    Random random(52);
    Case c = normal_case(random, DType::bf16, {1, 2, 300, dim}, {1, 2, 300, dim});
    c.query.fill([&](auto...) { return 0.5f * random.normal(); });
    c.key.fill([&](auto, auto, auto, auto x) { return x == 3 || x == 10 ? 1e38f : random.normal(); });
    c.options.scale = tiny_scale;
    c.text = "dim " + std::to_string(dim);
    expect_recipe(c, recipes::chitu);
  }
}

// ---- values near the ends of their types

// A weighted mean of finite values is finite: where rounded weights sum to more than 1, an output would leave FP16 otherwise.
TEST_P(GpuMethods, OutputsOfTheLargestValuesAreFinite) {
  for (const std::int64_t dim : {64, 128, 72})
    for (const float value : {64504.f, -65504.f}) {
      Random random(53);
      Array query = normal(random, DType::f16, {1, 2, 130, dim}), key = normal(random, DType::f16, {1, 2, 260, dim});
      Array values(DType::f16, key.shape());
      values.fill([&](auto...) { return value; });
      query.fill([&](auto...) { return 3 * random.normal(); });
      key.fill([&](auto...) { return 3 * random.normal(); });
      const GpuResult got = attend_on_gpu(query, key, values, {.recipe = GetParam().recipe, .scale = 1.f}, DType::f16);
      for (const float x : got.out) ASSERT_NEAR(x / value, 1, 0.06) << "dim " << dim;
    }
}

// ... and values near the smallest of bf16 do not become 0 on the way through FP16.
TEST_P(GpuMethods, SmallValuesKeepTheirPrecision) {
  for (const float size : {1e-30f, 1e-12f, 1e-5f}) {
    Random random(54);
    const Array query = normal(random, DType::bf16, {1, 2, 130, 64}), key = normal(random, DType::bf16, {1, 2, 260, 64});
    Array values = normal(random, DType::bf16, key.shape()), small(DType::bf16, key.shape());
    std::vector<float> numbers;
    values.fill([&](auto...) { return numbers.emplace_back(bf16_to_f32(f32_to_bf16(random.normal()))); });
    std::size_t i = 0;
    small.fill([&](auto...) { return size * numbers[i++]; });
    const Options options{.recipe = GetParam().recipe};
    const GpuResult usual = attend_on_gpu(query, key, values, options, DType::bf16),
                    got = attend_on_gpu(query, key, small, options, DType::bf16);
    std::vector<double> expected = to_double(usual.out);
    for (double& x : expected) x *= size;
    EXPECT_LE(relative_l1(got.out, expected), 0.015) << size;  // bf16 rounds twice
  }
}

// More batch entries than a limit that counted them twice would take: windowed attention of vision models. All are the same here.
TEST_F(Gpu, TakesManyShortSequences) {
  constexpr std::int64_t batch = 70000, tokens = 64, dim = 64;
  Random random(55);
  const Shape one{1, 1, tokens, dim};
  const GpuArray query(normal(random, DType::f16, one)), key(normal(random, DType::f16, one)), value(normal(random, DType::f16, one));
  for (const Recipe& recipe : {recipes::exact, recipes::sage2}) {
    const Options options{.recipe = recipe};
    const GpuResult expected = attend_on_gpu(query, key, value, options, DType::f16);
    const auto repeated = [&](const GpuArray& x) {
      Tensor t = x;
      t.shape[0] = batch;
      t.stride[0] = 0;
      return t;
    };
    const GpuArray out(DType::f16, {batch, 1, tokens, dim}, Layout::bhsd);
    attention(repeated(query), repeated(key), repeated(value), out.tensor(), options);
    for (const std::int64_t entry : {std::int64_t{0}, batch / 2, batch - 1}) {
      std::vector<std::uint16_t> bits(tokens * dim);
      const auto* from = static_cast<const std::uint16_t*>(out.tensor().data) + entry * tokens * dim;
      ASSERT_EQ(cudaMemcpy(bits.data(), from, bits.size() * 2, cudaMemcpyDeviceToHost), cudaSuccess);
      for (std::size_t i = 0; i < bits.size(); ++i) ASSERT_EQ(f16_to_f32(bits[i]), expected.out[i]) << entry;
    }
  }
}

}  // namespace
}  // namespace chitu::test
