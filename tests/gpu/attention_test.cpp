// SPDX-License-Identifier: Apache-2.0
// The GPU's attention against the double reference of its recipe and against exact attention.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>

#include "support.h"

namespace chitu::test {
namespace {

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "there is no GPU that this build has kernels for";
  }
};

std::vector<double> to_double(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// Holds the GPU to the reference of its own recipe.
void expect_recipe(const Array& q, const Array& k, const Array& v, const Options& options, DType type, GpuLayout in = GpuLayout::bhsd,
                   GpuLayout out = GpuLayout::bhsd) {
  Options reference = options;
  reference.kernel = "cpu.reference";
  const Result expected = attend(q.tensor(), k.tensor(), v.tensor(), reference);
  const GpuResult got = attend_on_gpu(GpuArray(q, in).tensor(), GpuArray(k, in).tensor(), GpuArray(v, in).tensor(), options, type, out);
  EXPECT_LE(relative_l1(got.out, expected.out.numbers()), 2e-3 + rounding_of(type));
  const Difference lse = difference(got.lse, to_double(expected.lse.numbers()));
  // In a row of few keys one integer that rounds the other way is seen: a weight's, or one of a query or key, whose rotation sums in
  // another order than the CPU's.
  EXPECT_LE(lse.largest, 1e-2);
  EXPECT_LE(lse.mean, 2e-4);
}

TEST_F(Gpu, DoesWhatTheRecipeSays) {
  const std::vector<std::int64_t> lengths{1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 384, 385, 500, 576, 1023, 1100};
  const std::vector<std::int64_t> ratios{1, 4, 8};
  const std::vector<GpuLayout> layouts{GpuLayout::bhsd, GpuLayout::bshd, GpuLayout::gaps};
  for (std::size_t i = 0; i < 160; ++i) {
    Random random(500 + i);
    const std::int64_t dim = i % 2 ? 128 : 64, keys = lengths[i % lengths.size()], kv_heads = 1 + random.below(2),
                       ratio = ratios[i / 2 % 3];
    std::int64_t queries = random.below(2) ? keys : random.pick(lengths), batch = 1 + random.below(2);
    while (batch * kv_heads * ratio * queries * keys * dim > 200'000'000) queries = queries * 2 / 3;
    const DType type = random.below(2) ? DType::f16 : DType::bf16, out = random.below(2) ? DType::f16 : DType::bf16;
    Array q = normal(random, type, {batch, kv_heads * ratio, queries, dim}), k = normal(random, type, {batch, kv_heads, keys, dim}),
          v = normal(random, type, k.shape());
    if (random.below(3) == 0) k.fill([&](auto, auto, auto, std::int64_t c) { return random.normal() + (c % 7 == 0 ? 4.f : 0.f); });
    if (random.below(3) == 0)  // keys far smaller than others: flagged tiles
      v.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t % 301 == 5 ? 0.01f : 1); });
    Options o;
    const auto mask = i % 4;
    if (mask == 1) o.window = causal;
    if (mask == 2) o.window = {random.below(300), random.below(3) ? random.below(60) : 0};
    if (mask == 3) {
      o.window = {random.below(2) ? unbounded : random.below(300), random.below(2) ? 0 : random.below(100)};
      o.key_positions = Positions{random.below(200) - 100, 1 + random.below(4)};
      if (random.below(3)) o.query_positions = Positions{o.key_positions->first - 5 + random.below(keys + 10), 1 + random.below(3)};
    }
    const float scales[] = {0.3f, -0.2f, 0.f};
    if (random.below(3) == 0) o.scale = scales[random.below(3)];
    SCOPED_TRACE("case " + std::to_string(i) + ": batch " + std::to_string(batch) + ", heads " + std::to_string(kv_heads) + " x " +
                 std::to_string(ratio) + ", queries " + std::to_string(queries) + ", keys " + std::to_string(keys) + ", dim " +
                 std::to_string(dim) + ", mask " + std::to_string(mask) + ", " + name(type) + " to " + name(out) + ", scale " +
                 std::to_string(o.scale.value_or(-1)));
    expect_recipe(q, k, v, o, out, random.pick(layouts), random.pick(layouts));
    if (HasFailure()) return;
  }
}

// Tiles with a residual plane: a sink with small values that takes most of the weight, and spikes.
TEST_F(Gpu, FlaggedTiles) {
  for (const std::int64_t dim : {64, 128})
    for (const Window& window : {everything, causal, Window{200, 0}}) {
      Random random(7);
      Array q = normal(random, DType::bf16, {1, 4, 700, dim}), k = normal(random, DType::bf16, {1, 2, 700, dim}),
            v = normal(random, DType::bf16, k.shape());
      q.fill([&](auto, auto, auto, std::int64_t c) { return random.normal() + (c == 3 ? 6.f : 0.f); });
      k.fill([&](auto, auto, std::int64_t t, std::int64_t c) { return random.normal() + (t == 0 && c == 3 ? 12.f : 0.f); });
      v.fill([&](auto, auto h, std::int64_t t, auto) { return random.normal() * (t == 0 ? 0.01f : t == 400 + h ? 60.f : 1.f); });
      SCOPED_TRACE("dim " + std::to_string(dim) + ", window " + std::to_string(window.left) + ", " + std::to_string(window.right));
      expect_recipe(q, k, v, {.window = window}, DType::bf16);
    }
}

TEST_F(Gpu, StaysNearTheTruth) {
  for (const std::int64_t dim : {64, 128})
    for (const Window& window : {everything, causal}) {
      Random random(8);
      const Array q = normal(random, DType::bf16, {1, 2, 2048, dim}), k = normal(random, DType::bf16, q.shape()),
                  v = normal(random, DType::bf16, q.shape());
      const Result truth = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipes::exact, .window = window});
      const GpuResult got = attend_on_gpu(GpuArray(q, GpuLayout::bhsd).tensor(), GpuArray(k, GpuLayout::bhsd).tensor(),
                                          GpuArray(v, GpuLayout::bhsd).tensor(), {.window = window}, DType::f16);
      EXPECT_LE(relative_l1(got.out, truth.out.numbers()), .019) << "dim " << dim;
      const Difference lse = difference(got.lse, to_double(truth.lse.numbers()));
      if (window == everything) {  // a causal mask has rows of few keys, whose errors do not cancel
        EXPECT_LE(lse.largest, 1e-2);
      }
      EXPECT_LE(lse.mean, 1.2e-3);
      RecordProperty("relative_l1_dim" + std::to_string(dim) + (window == causal ? "_causal" : ""),
                     std::to_string(relative_l1(got.out, truth.out.numbers())));
    }
}

TEST_F(Gpu, RowsThatSeeNoKeyAreZeroWithoutWeight) {
  Random random(3);
  const Array q = normal(random, DType::f16, {2, 4, 450, 64}), k = normal(random, DType::f16, {2, 2, 20, 64});
  const GpuArray gq(q, GpuLayout::bhsd), gk(k, GpuLayout::bhsd);
  // Bottom-right: the first 430 queries see nothing.
  const GpuResult r = attend_on_gpu(gq.tensor(), gk.tensor(), gk.tensor(), {.window = causal}, DType::bf16);
  for (std::size_t i = 0; i < r.lse.size(); ++i) {
    const bool none = i % 450 < 430;
    ASSERT_EQ(r.lse[i] == -std::numeric_limits<float>::infinity(), none) << i;
    for (std::size_t c = 0; none && c < 64; ++c) ASSERT_EQ(r.out[i * 64 + c], 0) << i;
  }
  const Tensor no_keys = tokens_of(gk, 0, 0);
  const GpuResult none = attend_on_gpu(gq.tensor(), no_keys, no_keys, {}, DType::f16);
  for (const float x : none.out) ASSERT_EQ(x, 0);
  for (const float x : none.lse) ASSERT_EQ(x, -std::numeric_limits<float>::infinity());
}

TEST_F(Gpu, WithoutLseAndWithoutQueries) {
  Random random(4);
  const Array q = normal(random, DType::f16, {1, 2, 300, 128});
  const GpuArray x(q, GpuLayout::bhsd), out(DType::f16, q.shape(), GpuLayout::bhsd);
  const GpuResult with = attend_on_gpu(x.tensor(), x.tensor(), x.tensor(), {}, DType::f16);
  attention(x.tensor(), x.tensor(), x.tensor(), out.tensor(), {});
  EXPECT_EQ(out.numbers(), with.out);
  const Tensor no_queries = tokens_of(x, 0, 0);
  attention(no_queries, x.tensor(), x.tensor(), tokens_of(out, 0, 0), {});
}

TEST_F(Gpu, SameBitsEveryRunAndOnTwoStreams) {
  Random random(5);
  std::vector<GpuArray> inputs;
  for (int i = 0; i < 6; ++i) inputs.emplace_back(normal(random, DType::bf16, {2, 8, 1100, 128}), GpuLayout::bhsd);
  std::vector<GpuResult> alone;
  for (std::size_t i = 0; i < 6; i += 3)
    alone.push_back(attend_on_gpu(inputs[i].tensor(), inputs[i + 1].tensor(), inputs[i + 2].tensor(), {.window = causal}, DType::bf16));
  cudaStream_t streams[2];
  for (auto& s : streams) ASSERT_EQ(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), cudaSuccess);
  std::vector<GpuArray> outs;
  for (int run = 0; run < 20; ++run) outs.emplace_back(DType::bf16, inputs[0].tensor().shape, GpuLayout::bhsd);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (std::size_t run = 0; run < outs.size(); ++run) {
    const std::size_t s = run % 2;
    attention(inputs[3 * s].tensor(), inputs[3 * s + 1].tensor(), inputs[3 * s + 2].tensor(), outs[run].tensor(),
              {.window = causal, .stream = streams[s]});
  }
  for (std::size_t run = 0; run < outs.size(); ++run) EXPECT_EQ(outs[run].numbers(), alone[run % 2].out) << "run " << run;
  for (auto& s : streams) ASSERT_EQ(cudaStreamDestroy(s), cudaSuccess);
}

TEST_F(Gpu, AMillionKeys) {
  Random random(9);
  const Array q = normal(random, DType::f16, {1, 1, 300, 64}), k = normal(random, DType::f16, {1, 1, 1 << 20, 64}),
              v = normal(random, DType::f16, k.shape());
  const Result truth = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipes::exact, .window = causal});
  const GpuResult got = attend_on_gpu(GpuArray(q, GpuLayout::bhsd).tensor(), GpuArray(k, GpuLayout::bhsd).tensor(),
                                      GpuArray(v, GpuLayout::bhsd).tensor(), {.window = causal}, DType::f16);
  EXPECT_LE(relative_l1(got.out, truth.out.numbers()), .019);
  EXPECT_LE(difference(got.lse, to_double(truth.lse.numbers())).largest, 1e-2);
}

// Batch entries more than 2^31 elements apart.
TEST_F(Gpu, OffsetsHave64Bits) {
  Random random(6);
  const Shape shape{2, 1, 200, 64};
  const std::int64_t entry = shape[2] * shape[3], far = (std::int64_t{1} << 31) + 64;
  const auto memory_bytes = static_cast<std::size_t>((far + 4 * entry) * 2);
  void* memory = nullptr;
  if (cudaMalloc(&memory, memory_bytes) != cudaSuccess) GTEST_SKIP() << "the GPU has no " << memory_bytes << " bytes free";
  const Array host[3] = {normal(random, DType::f16, shape), normal(random, DType::f16, shape), normal(random, DType::f16, shape)};
  std::vector<Tensor> tensors;
  for (int i = 0; i < 4; ++i) {
    Tensor t{static_cast<std::byte*>(memory) + i * entry * 2, DType::f16, Device::cuda, 0, shape, contiguous_strides(shape)};
    t.stride[0] = far;
    for (int b = 0; i < 3 && b < 2; ++b)
      ASSERT_EQ(cudaMemcpy(static_cast<std::byte*>(t.data) + b * far * 2, host[i].raw().data() + b * entry * 2,
                           static_cast<std::size_t>(entry) * 2, cudaMemcpyHostToDevice),
                cudaSuccess);
    tensors.push_back(t);
  }
  const GpuResult near = attend_on_gpu(GpuArray(host[0], GpuLayout::bhsd).tensor(), GpuArray(host[1], GpuLayout::bhsd).tensor(),
                                       GpuArray(host[2], GpuLayout::bhsd).tensor(), {}, DType::f16);
  attention(tensors[0], tensors[1], tensors[2], tensors[3], {});
  Array out(DType::f16, shape);
  for (int b = 0; b < 2; ++b)
    ASSERT_EQ(cudaMemcpy(static_cast<std::byte*>(out.tensor().data) + b * entry * 2, static_cast<std::byte*>(tensors[3].data) + b * far * 2,
                         static_cast<std::size_t>(entry) * 2, cudaMemcpyDeviceToHost),
              cudaSuccess);
  EXPECT_EQ(out.numbers(), near.out);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

}  // namespace
}  // namespace chitu::test
