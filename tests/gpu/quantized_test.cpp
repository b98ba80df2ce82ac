// SPDX-License-Identifier: Apache-2.0
// Operands in GPU memory: quantize() there makes what quantize() on the CPU makes, both forms convert to each other bit for bit, and
// attention from them is attention from the tensors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "checks.h"
#include "common/numbers.h"
#include "cuda/convert.h"
#include "support.h"

namespace chitu::test {
namespace {

using Starts = std::vector<std::int64_t>;

constexpr Role roles[] = {Role::query, Role::key, Role::value};

// What is stored of two operands in CPU memory, part by part. Ranks and integers may differ in at most `share` of the numbers.
// Numbers in fp32 may differ by `tolerance` of themselves and `absolute`.
void expect_parts(const Quantized& got, const Quantized& want, double share, float tolerance, float absolute = 0) {
  ASSERT_EQ(got.values.shape, want.values.shape);
  for (const auto part : quantized_parts) {
    const Tensor &x = got.*part, &y = want.*part;
    if (part == &Quantized::residuals && share > 0) continue;  // flags may differ by rounding
    ASSERT_EQ(given(x), given(y));
    if (!given(y)) continue;
    ASSERT_EQ(x.shape, y.shape);
    ASSERT_EQ(x.type, y.type);
    std::int64_t different = 0, numbers = 0;
    for (std::int64_t b = 0; b < y.shape[0]; ++b)
      for (std::int64_t h = 0; h < y.shape[1]; ++h)
        for (std::int64_t t = 0; t < y.shape[2]; ++t)
          for (std::int64_t c = 0; c < y.shape[3]; ++c) {
            ++numbers;
            const std::byte *from = row(x, b, h, t), *to = row(y, b, h, t);
            if (y.type == DType::f32) {
              const float a = reinterpret_cast<const float*>(from)[c], e = reinterpret_cast<const float*>(to)[c];
              const auto index = std::find(std::begin(quantized_parts), std::end(quantized_parts), part) - std::begin(quantized_parts);
              ASSERT_LE(std::fabs(a - e), tolerance * std::fabs(e) + absolute)
                  << a << ", not " << e << ": number " << b << " " << h << " " << t << " " << c << " of part " << index;
            } else {
              const auto size = static_cast<std::size_t>(bytes(y.type));
              different += std::memcmp(from + static_cast<std::size_t>(c) * size, to + static_cast<std::size_t>(c) * size, size) != 0;
            }
          }
    EXPECT_LE(static_cast<double>(different), share * static_cast<double>(numbers));
  }
  if (share == 0) {
    EXPECT_EQ(got.residual_of, want.residual_of);
  }
}

class GpuForm : public testing::TestWithParam<Method> {};  // needs no GPU

TEST_P(GpuForm, HoldsWhatTheRowsHold) {
  const Recipe& recipe = GetParam().recipe;
  const Starts cases[] = {{}, {0, 1, 130, 130, 400}};
  for (const std::int64_t dim : {8, 64, 72, 128, 256})
    for (const Starts& starts : cases)
      for (const Role role : roles) {
        const Quant& quant = quant_of(recipe, role);
        if (quant.scaling == Scaling::none) continue;
        SCOPED_TRACE("dim " + std::to_string(dim) + ", role " + name(role) + (starts.empty() ? "" : ", packed"));
        Random random(60);
        const std::int64_t batch = starts.empty() ? 2 : 1;
        Array x = normal(random, DType::bf16, {batch, 4, 400, dim}), k = normal(random, DType::bf16, {batch, 2, 400, dim});
        x.set(0, 1, 150, 3, 100);  // a key that needs a residual plane
        const Quantized keys = quantize(role == Role::query ? k.tensor() : x.tensor(), Role::key, recipe, {.starts = starts});
        const Quantized q = quantize(x, role, recipe, {.starts = starts, .keys = role == Role::query ? &keys : nullptr});
        const cuda::Rows rows = role == Role::query || !keys.quant.sorted ? cuda::Rows{} : cuda::rows_by_ranks(keys);
        const std::vector<std::byte> unset(cuda::block_bytes(q), std::byte{0xff});
        std::vector<std::byte> block = unset;
        cuda::write_block(q, DType::bf16, rows, block.data());
        Quantized like;
        like.role = q.role, like.quant = q.quant, like.starts = q.starts, like.from = DType::bf16;
        like.values = q.values;
        expect_parts(cuda::read_block(like, rows, given(q.correction) ? &q.centre : nullptr, block.data()), q, 0, 0);
      }
}

INSTANTIATE_TEST_SUITE_P(All, GpuForm, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

TEST(GpuForm, ACentreThatTheTypeDoesNotHoldIsRefused) {
  Random random(61);
  const Array x = normal(random, DType::f32, {1, 1, 200, 64});
  const Quantized key = quantize(x, Role::key, recipes::chitu);
  std::vector<std::byte> block(cuda::block_bytes(key));
  expect_error([&] { cuda::write_block(key, DType::bf16, cuda::rows_by_ranks(key), block.data()); }, ErrorCode::bad_argument,
               {"centre", "bf16 does not hold"});
}

// ---- with a GPU

struct Case {
  GpuArray query, key, value;
  Starts query_starts, key_starts;

  Case(Random& random, DType type, std::int64_t batch, std::int64_t queries, std::int64_t keys, std::int64_t dim,
       const Starts& query_starts = {}, const Starts& key_starts = {})
      : query(normal(random, type, {batch, 4, queries, dim})),
        key(normal(random, type, {batch, 2, keys, dim}), Layout::bshd),
        value(normal(random, type, {batch, 2, keys, dim})),
        query_starts(query_starts),
        key_starts(key_starts) {}
  Quantized keys(const Recipe& recipe, QuantizeOptions o = {}) const {
    o.starts = key_starts;
    return quantize(key.tensor(), Role::key, recipe, o);
  }
  Quantized values(const Recipe& recipe, const Quantized& of, QuantizeOptions o = {}) const {
    o.starts = key_starts;
    if (recipe.key.sorted) o.keys = &of;
    return quantize(value.tensor(), Role::value, recipe, o);
  }
  KeysAndValues both(const Recipe& recipe, QuantizeOptions o = {}) const {
    o.starts = key_starts;
    return quantize_keys_and_values(key.tensor(), value.tensor(), recipe, o);
  }
  Quantized queries(const Recipe& recipe, const Quantized& of, QuantizeOptions o = {}) const {
    o.starts = query_starts;
    if (recipe.key.scaling != Scaling::none) o.keys = &of;
    return quantize(query.tensor(), Role::query, recipe, o);
  }
  GpuResult attend(const Operand& q, const Operand& k, const Operand& v, Options o) const {
    o.query_starts = query_starts, o.key_starts = key_starts, o.kernel = gpu_kernel();
    const Shape& s = query.tensor().shape;
    const GpuArray out(DType::bf16, s, Layout::bhsd), lse(DType::f32, {s[0], s[1], s[2], 1}, Layout::bhsd);
    attention(q, k, v, {out.tensor(), lse.tensor()}, o);
    return {out.numbers(), lse.numbers()};
  }
};

class GpuQuantized : public NeedsGpu<testing::TestWithParam<Method>> {};

TEST_P(GpuQuantized, IsWhatTheCpuMakes) {
  const Recipe& recipe = GetParam().recipe;
  const bool inexact = recipe.key.rotated || recipe.value.scaling == Scaling::tile;
  for (const DType type : {DType::f16, DType::bf16})
    for (const std::int64_t dim : {64, 72, 128, 256})
      for (const Starts& starts : {Starts{}, Starts{0, 1, 130, 130, 500}}) {
        SCOPED_TRACE(std::string(name(type)) + ", dim " + std::to_string(dim) + (starts.empty() ? "" : ", packed"));
        Random random(62);
        const std::int64_t batch = starts.empty() ? 2 : 1;
        const Array q = normal(random, type, {batch, 4, 500, dim}), k = normal(random, type, {batch, 2, 500, dim}),
                    v = normal(random, type, {batch, 2, 500, dim});
        const GpuArray gpu_q(q), gpu_k(k), gpu_v(v);
        const Quantized key = quantize(gpu_k.tensor(), Role::key, recipe, {.starts = starts});
        for (const Role role : roles) {
          if (quant_of(recipe, role).scaling == Scaling::none) continue;
          SCOPED_TRACE(name(role));
          const bool meets_keys = role == Role::query || (role == Role::value && recipe.key.sorted);
          const Array& x = role == Role::query ? q : role == Role::key ? k : v;
          const GpuArray& gpu_x = role == Role::query ? gpu_q : role == Role::key ? gpu_k : gpu_v;
          const Quantized own =
              role == Role::key ? key : quantize(gpu_x.tensor(), role, recipe, {.starts = starts, .keys = meets_keys ? &key : nullptr});
          const Quantized cpu_key = quantize(k, Role::key, recipe, {.starts = starts});
          const Quantized want = quantize(x, role, recipe, {.starts = starts, .keys = role == Role::query ? &cpu_key : nullptr});
          // The order in which queries' corrections are added up is the GPU's own.
          expect_parts(to_host(own, {.keys = meets_keys ? &key : nullptr}), want, inexact ? 0.01 : 0, inexact ? 1e-4f : 1e-6f,
                       role == Role::query ? 1e-3f : 0);
        }
      }
}

TEST_P(GpuQuantized, ComesBackFromTheHost) {
  const Recipe& recipe = GetParam().recipe;
  if (recipe.key.scaling == Scaling::none) return;
  Random random(63);
  const Case c(random, DType::bf16, 1, 300, 500, 128, {0, 100, 300}, {0, 200, 500});
  const Quantized key = c.keys(recipe), value = c.values(recipe, key);
  const Quantized key_there = to_host(key), value_there = to_host(value, {.keys = recipe.key.sorted ? &key : nullptr});
  const Quantized key_again = to_device(key_there, DType::bf16),
                  value_again = to_device(value_there, DType::bf16, 0, {.keys = recipe.key.sorted ? &key_there : nullptr});
  const Options o{.recipe = recipe, .window = causal};
  const GpuResult got = c.attend(c.query.tensor(), key_again, value_again, o), want = c.attend(c.query.tensor(), key, value, o);
  EXPECT_EQ(got.out, want.out);
  EXPECT_EQ(got.lse, want.lse);
}

// From keys and values that came quantised, from all three, from keys alone.
TEST_P(GpuQuantized, AttentionIsThatOfTheTensors) {
  const Recipe& recipe = GetParam().recipe;
  for (const DType type : {DType::bf16, DType::f16})
    for (const std::int64_t dim : {64, 72, 128, 256})
      for (const bool packed : {false, true})
        for (const Window& window : {everything, causal}) {
          SCOPED_TRACE(std::string(name(type)) + ", dim " + std::to_string(dim) + (packed ? ", packed" : "") +
                       (window == causal ? ", causal" : ""));
          Random random(64);
          const Case c(random, type, packed ? 1 : 2, 700, 900, dim, packed ? Starts{0, 1, 300, 300, 700} : Starts{},
                       packed ? Starts{0, 77, 77, 300, 900} : Starts{});
          const Options o{.recipe = recipe, .window = window};
          const GpuResult want = c.attend(c.query.tensor(), c.key.tensor(), c.value.tensor(), o);
          const Quantized key = c.keys(recipe), value = c.values(recipe, key), query = c.queries(recipe, key);
          const auto expect = [&](const GpuResult& got, const char* what) {
            EXPECT_LE(relative_l1(got.out, want.out), 6e-3) << what;
            EXPECT_LE(difference(got.lse, to_double(want.lse)).largest, 3e-3) << what;
          };
          expect(c.attend(c.query.tensor(), key, value, o), "keys and values");
          expect(c.attend(query, key, value, o), "all three");
          expect(c.attend(c.query.tensor(), key, c.value.tensor(), o), "keys");
          if (!recipe.key.sorted) expect(c.attend(c.query.tensor(), c.key.tensor(), value, o), "values");
        }
}

// Keys and values that were quantised together are what a call makes of the tensors: the result is the same to the bit. At padded dims a
// call has another quantizer for chitu.
TEST_P(GpuQuantized, KeysAndValuesTogetherAreThoseOfACall) {
  const Recipe& recipe = GetParam().recipe;
  for (const DType type : {DType::bf16, DType::f16})
    for (const std::int64_t dim : {64, 72, 128, 256})
      for (const bool packed : {false, true}) {
        SCOPED_TRACE(std::string(name(type)) + ", dim " + std::to_string(dim) + (packed ? ", packed" : ""));
        Random random(71);
        const Case c(random, type, packed ? 1 : 2, 700, 900, dim, packed ? Starts{0, 1, 300, 300, 700} : Starts{},
                     packed ? Starts{0, 77, 77, 300, 900} : Starts{});
        const KeysAndValues both = c.both(recipe);
        for (const Window& window : {everything, causal}) {
          const Options o{.recipe = recipe, .window = window};
          const GpuResult want = c.attend(c.query.tensor(), c.key.tensor(), c.value.tensor(), o),
                          got = c.attend(c.query.tensor(), both.key, both.value, o);
          if (recipe == recipes::chitu && dim == 72) {
            EXPECT_LE(relative_l1(got.out, want.out), 6e-3);
            EXPECT_LE(difference(got.lse, to_double(want.lse)).largest, 3e-3);
          } else {
            EXPECT_EQ(got.out, want.out);
            EXPECT_EQ(got.lse, want.lse);
          }
        }
        if (recipe.key.scaling == Scaling::none) continue;
        const Quantized query = c.queries(recipe, both.key);
        const GpuResult want = c.attend(c.query.tensor(), both.key, both.value, {.recipe = recipe}),
                        got = c.attend(query, both.key, both.value, {.recipe = recipe});
        EXPECT_LE(relative_l1(got.out, want.out), 6e-3);
        EXPECT_LE(difference(got.lse, to_double(want.lse)).largest, 3e-3);
      }
}

// The same numbers as on the CPU, but for rounding; with given vectors too, and one head's residual planes.
TEST_P(GpuQuantized, KeysAndValuesTogetherAreWhatTheCpuMakes) {
  const Recipe& recipe = GetParam().recipe;
  if (recipe.key.scaling == Scaling::none || recipe.value.scaling == Scaling::none) return;
  const bool inexact = recipe.key.rotated || recipe.value.scaling == Scaling::tile, vectors = recipe.value.scaling == Scaling::tile;
  for (const std::int64_t dim : {64, 72, 128})
    for (const Starts& starts : {Starts{}, Starts{0, 1, 130, 130, 500}})
      for (const bool given : {false, true}) {
        if (given && !vectors) continue;
        SCOPED_TRACE("dim " + std::to_string(dim) + (starts.empty() ? "" : ", packed") + (given ? ", vectors given" : ""));
        Random random(72);
        const std::int64_t sequences = starts.empty() ? 2 : 4;
        const Array k = normal(random, DType::bf16, {starts.empty() ? 2 : 1, 2, 500, dim});
        Array v = normal(random, DType::bf16, k.tensor().shape), centre(DType::f32, {sequences, 2, 1, dim}),
              channels(DType::f32, {sequences, 2, 1, dim});
        v.set(0, 1, 200, 3, 100);
        centre.fill([&](auto, auto h, auto, auto x) { return static_cast<float>(h) - static_cast<float>(x % 4) / 4; });
        channels.fill([&](auto...) { return 0.5f + std::fabs(random.normal()); });
        const GpuArray gpu_k(k), gpu_v(v), gpu_centre(centre), gpu_channels(channels);
        QuantizeOptions here{.starts = starts}, there{.starts = starts};
        if (given) {
          here.centre = centre.tensor(), here.channels = channels.tensor();
          there.centre = gpu_centre.tensor(), there.channels = gpu_channels.tensor();
        }
        const KeysAndValues got = quantize_keys_and_values(gpu_k.tensor(), gpu_v.tensor(), recipe, there),
                            want = quantize_keys_and_values(k, v, recipe, here);
        expect_parts(to_host(got.key), want.key, inexact ? 0.01 : 0, inexact ? 1e-4f : 1e-6f);
        expect_parts(to_host(got.value, {.keys = recipe.key.sorted ? &got.key : nullptr}), want.value, inexact ? 0.01 : 0,
                     inexact ? 1e-4f : 1e-6f);
      }
}

// Few queries and many keys are split along the keys; one text's keys serve many queries.
TEST_P(GpuQuantized, LongAndShortKeys) {
  for (const auto& [queries, keys] : {std::pair{3, 9000}, {1000, 77}}) {
    Random random(65);
    const Case c(random, DType::bf16, 1, queries, keys, 128);
    const Options o{.recipe = GetParam().recipe};
    const Quantized key = c.keys(o.recipe), value = c.values(o.recipe, key);
    const GpuResult want = c.attend(c.query.tensor(), c.key.tensor(), c.value.tensor(), o), got = c.attend(c.query.tensor(), key, value, o);
    EXPECT_LE(relative_l1(got.out, want.out), 6e-3);
    EXPECT_LE(difference(got.lse, to_double(want.lse)).largest, 3e-3);
  }
}

// NaN and infinity reach the rows that they reach from tensors. In keys a row becomes NaN, whatever its score would have been.
TEST_P(GpuQuantized, NaNAndInfinityReachTheirRows) {
  const Recipe& recipe = GetParam().recipe;
  if (recipe.key.scaling == Scaling::none) return;
  Random random(66);
  const float infinity = std::numeric_limits<float>::infinity();
  Array q = normal(random, DType::bf16, {1, 4, 600, 128}), k = normal(random, DType::bf16, {1, 2, 600, 128}),
        v = normal(random, DType::bf16, {1, 2, 600, 128});
  k.set(0, 1, 500, 7, std::nanf(""));
  v.set(0, 0, 300, 5, infinity), v.set(0, 0, 310, 6, std::nanf("")), v.set(0, 0, 450, 100, -infinity);
  q.set(0, 0, 20, 1, std::nanf(""));
  const GpuArray gpu_q(q), gpu_k(k), gpu_v(v);
  const auto attend = [&](const Operand& a, const Operand& b, const Operand& c, const Window& window) {
    const GpuArray out(DType::bf16, {1, 4, 600, 128}, Layout::bhsd);
    attention(a, b, c, Output(out.tensor()), {.recipe = recipe, .window = window, .kernel = gpu_kernel()});
    return out.numbers();
  };
  const Quantized key = quantize(gpu_k.tensor(), Role::key, recipe), query = quantize(gpu_q.tensor(), Role::query, recipe, {.keys = &key}),
                  value = quantize(gpu_v.tensor(), Role::value, recipe, {.keys = recipe.key.sorted ? &key : nullptr});
  const KeysAndValues both = quantize_keys_and_values(gpu_k.tensor(), gpu_v.tensor(), recipe);
  for (const Window& window : {everything, causal}) {
    const std::vector<float> want = attend(gpu_q.tensor(), gpu_k.tensor(), gpu_v.tensor(), window);
    for (const std::vector<float>& got : {attend(gpu_q.tensor(), key, value, window), attend(query, key, value, window),
                                          attend(gpu_q.tensor(), both.key, both.value, window)})
      for (std::size_t i = 0; i < want.size(); ++i) {
        const std::size_t row = i / 128 % 600, channel = i % 128;
        const bool edge = window == causal && row >= 300 && row < 384 && i / 128 / 600 < 2;  // of the tile with two such values
        if (edge && (channel == 5 || channel == 6)) continue;
        ASSERT_EQ(std::isnan(got[i]), std::isnan(want[i])) << "row " << row << ", channel " << channel;
        if (!std::isnan(want[i])) {
          ASSERT_EQ(std::isinf(got[i]), std::isinf(want[i])) << "row " << row << ", channel " << channel;
        }
        if (std::isinf(want[i])) {
          ASSERT_EQ(got[i], want[i]);
        }
      }
  }
  expect_error([&] { (void)to_host(key); }, ErrorCode::bad_argument, {"NaN or infinity"});
  expect_error([&] { (void)to_host(both.key); }, ErrorCode::bad_argument, {"NaN or infinity"});
  // Each says it of itself, not of what was made together with it.
  const Array finite = normal(random, DType::bf16, {1, 2, 600, 128});
  const GpuArray gpu_finite(finite);
  if (recipe.value.scaling == Scaling::none) return;
  const KeysAndValues bad_keys = quantize_keys_and_values(gpu_k.tensor(), gpu_finite.tensor(), recipe),
                      bad_values = quantize_keys_and_values(gpu_finite.tensor(), gpu_v.tensor(), recipe);
  (void)to_host(bad_keys.value, {.keys = recipe.key.sorted ? &bad_keys.key : nullptr});
  (void)to_host(bad_values.key);
  expect_error([&] { (void)to_host(bad_keys.key); }, ErrorCode::bad_argument, {"NaN or infinity"});
  expect_error([&] { (void)to_host(bad_values.value); }, ErrorCode::bad_argument, {"NaN or infinity"});
}

// Captured once with the caller's memory, replayed with other numbers.
TEST_P(GpuQuantized, GraphsReplayWithNewData) {
  const Recipe& recipe = GetParam().recipe;
  if (recipe.key.scaling == Scaling::none) return;
  Random random(67);
  const Stream stream;
  const Array first = normal(random, DType::bf16, {1, 2, 500, 64}), second = normal(random, DType::bf16, {1, 2, 500, 64});
  GpuArray x(first);
  QuantizeOptions o{.stream = stream};
  o.memory_bytes = quantized_bytes(x.tensor(), Role::key, recipe, o);
  o.workspace_bytes = quantize_workspace_size(x.tensor(), Role::key, recipe, o);
  ASSERT_EQ(cudaMalloc(&o.memory, o.memory_bytes), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&o.workspace, o.workspace_bytes), cudaSuccess);
  ASSERT_EQ(cudaMemset(o.memory, 0xff, o.memory_bytes), cudaSuccess);
  ASSERT_EQ(cudaMemset(o.workspace, 0xff, o.workspace_bytes), cudaSuccess);
  cudaGraph_t graph{};
  cudaGraphExec_t run{};
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  const Quantized key = quantize(x.tensor(), Role::key, recipe, o);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
  for (const Array* numbers : {&first, &second}) {
    x.assign(*numbers);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
    expect_parts(to_host(key, {.stream = stream}), to_host(quantize(x.tensor(), Role::key, recipe)), 0, 0);
  }
  EXPECT_EQ(cudaGraphExecDestroy(run), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaFree(o.memory), cudaSuccess);
  EXPECT_EQ(cudaFree(o.workspace), cudaSuccess);
}

INSTANTIATE_TEST_SUITE_P(All, GpuQuantized, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

using Gpu = NeedsGpu<testing::Test>;
using GpuSmall = NeedsGpu<testing::Test>;

// Given vectors take the place of sampled ones: those of other numbers, here.
TEST_F(Gpu, QuantizeWithGivenVectors) {
  Random random(68);
  const Recipe& recipe = recipes::chitu;
  const Array k = normal(random, DType::bf16, {1, 2, 300, 128}), v = normal(random, DType::bf16, {1, 2, 300, 128});
  Array centre = normal(random, DType::bf16, {1, 2, 1, 128}), channels(DType::f32, {1, 2, 1, 128}), wide(DType::f32, {1, 2, 1, 128});
  wide.fill([&](auto b, auto h, auto t, auto c) { return centre.get(b, h, t, c); });
  channels.fill([&](auto...) { return 0.5f + std::fabs(random.normal()); });
  const GpuArray gpu_k(k), gpu_v(v), gpu_centre(wide), gpu_channels(channels);
  const Quantized key = quantize(gpu_k.tensor(), Role::key, recipe, {.centre = gpu_centre.tensor()}),
                  value = quantize(gpu_v.tensor(), Role::value, recipe, {.keys = &key, .channels = gpu_channels.tensor()});
  expect_parts(to_host(key), quantize(k, Role::key, recipe, {.centre = wide.tensor()}), 0.01, 1e-4f);
  expect_parts(to_host(value, {.keys = &key}), quantize(v, Role::value, recipe, {.channels = channels.tensor()}), 0.01, 1e-4f);
}

TEST_F(Gpu, QuantizedOperandsThatDoNotFitAreRefused) {
  Random random(69);
  const Case c(random, DType::bf16, 1, 300, 500, 128);
  const Recipe& recipe = recipes::chitu;
  const Quantized key = c.keys(recipe), value = c.values(recipe, key);
  const GpuArray out(DType::bf16, {1, 4, 300, 128}, Layout::bhsd), lse(DType::f32, {1, 4, 300, 1}, Layout::bhsd);
  const auto refused = [&](const Operand& q, const Operand& k, const Operand& v, const Recipe& r, ErrorCode code, const std::string& text,
                           bool with_lse = false) {
    SCOPED_TRACE(text);
    expect_error(
        [&] {
          attention(q, k, v, {out.tensor(), with_lse ? lse.tensor() : Tensor{}}, {.recipe = r, .kernel = gpu_kernel()});
        },
        code, {text});
  };
  const Operand q = c.query.tensor();
  refused(q, value, value, recipe, ErrorCode::bad_argument, "key was quantised as another operand");
  refused(q, key, value, recipes::sage2, ErrorCode::bad_argument, "key was quantised for another recipe");
  refused(q, c.key.tensor(), value, recipe, ErrorCode::unsupported, "needs its key, quantised");
  refused(quantize(c.query.tensor(), Role::query, recipe), key, value, recipe, ErrorCode::unsupported, "quantised with these keys", true);
  Quantized bad = key;
  bad.version = quantized_version - 1;
  refused(q, bad, value, recipe, ErrorCode::bad_argument, "format version");
  bad = key;
  bad.block_bytes -= 1;
  refused(q, bad, value, recipe, ErrorCode::unsupported, "bytes");
  bad = key;
  bad.values.data = static_cast<std::byte*>(bad.values.data) + 16;
  refused(q, bad, value, recipe, ErrorCode::unsupported, "no multiple of 256 bytes");
  bad = key;
  bad.from = DType::f16;
  refused(q, bad, value, recipe, ErrorCode::unsupported, "in one type");
  bad = key;
  bad.starts = {0, 500};
  refused(q, bad, value, recipe, ErrorCode::bad_argument, "other sequence starts");

  const auto quantize_refused = [&](Role role, const QuantizeOptions& o, const std::string& text) {
    expect_error([&] { (void)quantize(c.value.tensor(), role, recipe, o); }, ErrorCode::bad_argument, {text});
  };
  void* const memory = key.values.data;  // never written
  quantize_refused(Role::value, {}, "keys are missing");
  quantize_refused(Role::value, {.keys = &value}, "keys are given, but were quantised as another operand");
  quantize_refused(Role::key, {.keys = &key}, "keys are given, but this operand is the key");
  quantize_refused(Role::key, {.memory = memory, .memory_bytes = 256}, "memory has 256 bytes; this call needs");
  quantize_refused(Role::key, {.memory = static_cast<std::byte*>(memory) + 8, .memory_bytes = 1 << 30}, "no multiple of 256");
  quantize_refused(Role::key, {.workspace = memory, .workspace_bytes = 1}, "workspace has 1 bytes");

  const auto both_refused = [&](const Tensor& v, const QuantizeOptions& o, ErrorCode code, const std::string& text) {
    expect_error([&] { (void)quantize_keys_and_values(c.key.tensor(), v, recipe, o); }, code, {text});
  };
  const std::size_t bytes = quantized_bytes(c.key.tensor(), Role::key, recipe) + quantized_bytes(c.value.tensor(), Role::value, recipe);
  const GpuArray f16(normal(random, DType::f16, {1, 2, 500, 128}));
  both_refused(c.query.tensor(), {}, ErrorCode::bad_argument, "it must be the key's");
  both_refused(f16.tensor(), {}, ErrorCode::unsupported, "in one type");
  both_refused(c.value.tensor(), {.keys = &key}, ErrorCode::bad_argument, "keys are given");
  both_refused(c.value.tensor(), {.memory = memory, .memory_bytes = bytes - 1}, ErrorCode::bad_argument, "quantized_bytes() of both");
}

TEST_F(GpuSmall, QuantizedOperands) {
  for (const Recipe& recipe : {recipes::chitu, recipes::sage2, recipes::int8})
    for (const std::int64_t dim : {64, 72}) {
      Random random(70);
      const Case c(random, DType::bf16, 1, 150, 200, dim, {0, 50, 150}, {0, 60, 200});
      const Quantized key = c.keys(recipe), value = c.values(recipe, key), query = c.queries(recipe, key);
      const KeysAndValues both = c.both(recipe);
      const Options o{.recipe = recipe, .window = causal};
      const GpuResult want = c.attend(c.query.tensor(), c.key.tensor(), c.value.tensor(), o);
      for (const GpuResult& got :
           {c.attend(c.query.tensor(), key, value, o), c.attend(query, key, value, o), c.attend(c.query.tensor(), both.key, both.value, o)})
        EXPECT_LE(relative_l1(got.out, want.out), 6e-3);
    }
}

}  // namespace
}  // namespace chitu::test
