// SPDX-License-Identifier: Apache-2.0
// merge() on a GPU: what the CPU's merge() gives, of the same parts.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "common/numbers.h"
#include "support.h"

namespace chitu::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

Shape lse_shape(const Shape& s) { return {s[0], s[1], s[2], 1}; }

// The same parts in CPU and in GPU memory.
struct Parts {
  std::vector<Result> host;
  struct OnGpu {
    GpuArray out, lse;
    operator Output() const { return {out, lse}; }
  };
  std::vector<OnGpu> gpu;

  // Rows of lse -inf hold NaN, which must not come through. strange: also numbers and LSEs that are not finite.
  Parts(Random& random, std::size_t count, const Shape& shape, const std::vector<DType>& types, bool strange = false) {
    const std::vector<Layout> layouts{Layout::bhsd, Layout::bshd, Layout::padded};
    const std::vector<float> odd{infinity, -infinity, nan, 1e38f};
    for (std::size_t i = 0; i < count; ++i) {
      const DType type = types[i % types.size()];
      Result part{normal(random, type, shape), Array(DType::f32, lse_shape(shape))};
      if (strange)
        for (int k = 0; k < 20; ++k)
          part.out.set(random.below(shape[0]), random.below(shape[1]), random.below(shape[2]), random.below(shape[3]), random.pick(odd));
      part.lse.fill([&](std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t) {
        const std::int64_t kind = random.below(12);
        if (strange && kind == 1) return nan;
        if (strange && kind == 2) return infinity;
        if (strange && kind == 3) return -500.f;  // a weight that fp32 does not have
        if (kind > 0) return 5 * random.normal();
        for (std::int64_t c = 0; c < shape[3]; ++c) part.out.set(b, h, t, c, nan);
        return -infinity;
      });
      gpu.push_back({GpuArray(part.out, random.pick(layouts)), GpuArray(part.lse, random.pick(layouts))});
      host.push_back(std::move(part));
    }
  }
  std::vector<Output> on_cpu() const {
    std::vector<Output> views;
    for (const Result& part : host) views.push_back({part.out, part.lse});
    return views;
  }
  std::vector<Output> on_gpu() const { return {gpu.begin(), gpu.end()}; }

  Result expected(DType type) const {
    const Shape& shape = host.front().out.shape();
    Result r{Array(type, shape), Array(DType::f32, lse_shape(shape))};
    merge(on_cpu(), {r.out, r.lse});
    return r;
  }
  void assign(Random& random) {
    for (std::size_t i = 0; i < host.size(); ++i) {
      const auto& [out, lse] = host[i];
      host[i] = {normal(random, out.tensor().type, out.shape()), normal(random, DType::f32, lse.shape())};
      gpu[i].out.assign(host[i].out);
      gpu[i].lse.assign(host[i].lse);
    }
  }
};

bool agree(float got, float want, double relative, double absolute) {
  if (std::isnan(want) || std::isinf(want)) return std::isnan(want) ? std::isnan(got) : got == want;
  return std::abs(static_cast<double>(got) - want) <= relative * std::abs(static_cast<double>(want)) + absolute;
}

// fp32 against double: beside that, results in 16 bits may be rounded to the other neighbour.
void expect_near(const std::vector<float>& out, const std::vector<float>& lse, const Result& want) {
  const DType type = want.out.tensor().type;
  const double relative = type == DType::f32 ? 1e-6 : type == DType::f16 ? 0x1p-10 : 0x1p-7;
  const std::vector<float> out_wanted = want.out.numbers(), lse_wanted = want.lse.numbers();
  ASSERT_EQ(out.size(), out_wanted.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    ASSERT_TRUE(agree(out[i], out_wanted[i], relative, 1e-5)) << i << ": " << out[i] << ", not " << out_wanted[i];
  for (std::size_t i = 0; i < lse.size(); ++i)
    ASSERT_TRUE(agree(lse[i], lse_wanted[i], 2e-6, 2e-6)) << i << ": " << lse[i] << ", not " << lse_wanted[i];
}

using Gpu = NeedsGpu<testing::Test>;
using GpuSmall = NeedsGpu<testing::Test>;

TEST_F(Gpu, MergeIsTheCpus) {
  Random random(1);
  for (const std::int64_t dim : {1, 8, 13, 64, 72, 100, 128, 256})
    for (const DType type : {DType::bf16, DType::f16, DType::f32})
      for (const std::vector<DType>& types : {std::vector{type}, std::vector{DType::f32, DType::bf16, DType::f16}})
        for (const std::size_t count : {1u, 2u, 5u, 8u, 32u, 70u}) {
          SCOPED_TRACE("dim " + std::to_string(dim) + ", " + std::to_string(count) + " parts, into " + name(type));
          const Shape shape{2, 3, 37, dim};
          const Parts parts(random, count, shape, types);
          const GpuArray out(type, shape, Layout::padded), lse(DType::f32, lse_shape(shape), Layout::padded);
          merge(parts.on_gpu(), {out, lse});
          expect_near(out.numbers(), lse.numbers(), parts.expected(type));
        }
}

TEST_F(GpuSmall, Merge) {
  Random random(2);
  for (const std::int64_t dim : {64, 100})
    for (const DType type : {DType::bf16, DType::f32})
      for (const std::size_t count : {2u, 8u, 33u}) {
        const Shape shape{1, 2, 20, dim};
        const Parts parts(random, count, shape, {type});
        const GpuArray out(type, shape, Layout::bshd), lse(DType::f32, lse_shape(shape), Layout::bhsd);
        merge(parts.on_gpu(), {out, lse});
        expect_near(out.numbers(), lse.numbers(), parts.expected(type));
        merge(parts.on_gpu(), parts.gpu[1]);
        expect_near(parts.gpu[1].out.numbers(), parts.gpu[1].lse.numbers(), parts.expected(type));
      }
}

// NaN and infinity: those of a part that counts come through, as on the CPU, whatever the weight.
TEST_F(Gpu, MergePassesOnWhatIsNotFinite) {
  Random random(3);
  for (const DType type : {DType::bf16, DType::f16, DType::f32})
    for (const std::size_t count : {2u, 3u, 40u}) {
      const Shape shape{1, 4, 50, 64};
      const Parts parts(random, count, shape, {type}, true);
      const GpuArray out(type, shape, Layout::bhsd), lse(DType::f32, lse_shape(shape), Layout::bhsd);
      merge(parts.on_gpu(), {out, lse});
      const Result want = parts.expected(type);
      const std::vector<float> got = out.numbers(), wanted = want.out.numbers();
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_TRUE(agree(got[i], wanted[i], 0x1p-7, 1e-5)) << i << ": " << got[i] << ", not " << wanted[i];
      const std::vector<float> got_lse = lse.numbers(), wanted_lse = want.lse.numbers();
      for (std::size_t i = 0; i < got_lse.size(); ++i) ASSERT_TRUE(agree(got_lse[i], wanted_lse[i], 2e-6, 2e-6)) << i;
    }
}

TEST_F(Gpu, MergeWorksInPlaceOfAnyPart) {
  Random random(4);
  for (const std::int64_t dim : {64, 128, 13})
    for (const std::size_t count : {2u, 8u, 40u})
      for (const std::size_t at : {std::size_t{0}, count / 2, count - 1}) {
        const Shape shape{2, 3, 300, dim};
        const Parts parts(random, count, shape, {DType::bf16, DType::f32});
        const DType type = parts.host[at].out.tensor().type;
        const GpuArray out(type, shape, Layout::bhsd), lse(DType::f32, lse_shape(shape), Layout::bhsd);
        merge(parts.on_gpu(), {out, lse});
        merge(parts.on_gpu(), parts.gpu[at]);
        EXPECT_EQ(parts.gpu[at].out.numbers(), out.numbers());
        EXPECT_EQ(parts.gpu[at].lse.numbers(), lse.numbers());
      }
}

// Rows that begin at no multiple of 16 bytes, and the number before each row, which must stay.
TEST_F(Gpu, MergeTakesOddStrides) {
  Random random(5);
  for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
    const Shape shape{2, 2, 33, 65}, inner{2, 2, 33, 64};
    const auto without_first = [&](Tensor t) {
      t.data = static_cast<std::byte*>(t.data) + bytes(type);
      t.shape = inner;
      return t;
    };
    const Parts parts(random, 3, shape, {type});
    const GpuArray out(type, shape, Layout::padded), lse(DType::f32, lse_shape(shape), Layout::bshd);
    std::vector<Output> on_cpu = parts.on_cpu(), on_gpu = parts.on_gpu();
    for (std::size_t i = 0; i < 3; ++i) on_cpu[i].out = without_first(on_cpu[i].out), on_gpu[i].out = without_first(on_gpu[i].out);
    Result want{Array(type, inner), Array(DType::f32, lse_shape(inner))};
    merge(on_cpu, {want.out, want.lse});
    merge(on_gpu, {without_first(out), lse});
    std::vector<float> got;
    const std::vector<float> all = out.numbers();
    for (std::size_t i = 0; i < all.size(); ++i)
      if (i % 65 > 0)
        got.push_back(all[i]);
      else
        ASSERT_TRUE(std::isnan(all[i])) << "a number before a row was written";
    expect_near(got, lse.numbers(), want);
  }
}

// Finite parts, near the end of their type, give a mean between them.
TEST_F(Gpu, MergeNeverLeavesItsParts) {
  Random random(6);
  const Shape shape{1, 1, 500, 64};
  for (const DType from : {DType::f32, DType::f16, DType::bf16})
    for (const DType to : {DType::f32, DType::f16, DType::bf16}) {
      Parts parts(random, 7, shape, {from});
      for (std::size_t i = 0; i < 7; ++i) {
        parts.host[i].out.fill([&](std::int64_t, std::int64_t, std::int64_t t, std::int64_t) { return t % 2 ? largest(from) : -0.1f; });
        parts.gpu[i].out.assign(parts.host[i].out);
        parts.host[i].lse.fill([&](auto...) { return random.normal(); });
        parts.gpu[i].lse.assign(parts.host[i].lse);
      }
      const GpuArray out(to, shape, Layout::bhsd), lse(DType::f32, lse_shape(shape), Layout::bhsd);
      merge(parts.on_gpu(), {out, lse});
      EXPECT_EQ(out.numbers(), parts.expected(to).out.numbers()) << name(from) << " to " << name(to);
    }
}

// Captured into a graph, behind a copy that it must wait for. The graph holds nothing but the copy and one kernel.
TEST_F(Gpu, MergeIsReplayedWithNewData) {
  Random random(7);
  const Stream stream;
  const Shape shape{2, 4, 1000, 128};
  Parts parts(random, 32, shape, {DType::bf16, DType::f32});
  GpuArray late(parts.host[0].out);
  const GpuArray out(DType::bf16, shape, Layout::bshd), lse(DType::f32, lse_shape(shape), Layout::bhsd);
  std::vector<Output> views = parts.on_gpu();
  const GpuArray first(DType::bf16, shape, Layout::bhsd);
  views[0].out = first;
  cudaGraph_t graph{};
  cudaGraphExec_t run{};
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  const auto size = static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3] * 2);
  ASSERT_EQ(cudaMemcpyAsync(first.tensor().data, late.tensor().data, size, cudaMemcpyDeviceToDevice, stream), cudaSuccess);
  merge(views, {out, lse}, {.stream = stream});
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  std::size_t nodes = 0;
  ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 2u);
  ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
  views.clear();
  for (int replay = 0; replay < 3; ++replay) {
    parts.assign(random);
    late.assign(parts.host[0].out);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // the copies were not of this stream
    ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    expect_near(out.numbers(), lse.numbers(), parts.expected(DType::bf16));
  }
  EXPECT_EQ(cudaGraphExecDestroy(run), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

TEST_F(Gpu, MergeOfTooManyPartsIsNotCaptured) {
  Random random(8);
  const Stream stream;
  const Parts parts(random, 33, {1, 1, 10, 64}, {DType::bf16});
  std::string error;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  try {
    merge(parts.on_gpu(), parts.gpu[0], {.stream = stream});
  } catch (const Error& e) {
    error = e.what();
  }
  cudaGraph_t graph{};
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess) << "the refusal spoilt the capture";
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_NE(error.find("there are 33 parts, but the stream is being captured"), std::string::npos) << error;
}

// Shards of keys, attended and merged on the GPU, are the whole.
TEST_F(Gpu, MergedShardsAreTheWhole) {
  Random random(9);
  const Stream stream;
  const Shape shape{2, 4, 700, 128};
  const GpuArray q(normal(random, DType::bf16, shape)), k(normal(random, DType::bf16, shape)), v(normal(random, DType::bf16, shape));
  const GpuArray out(DType::bf16, shape, Layout::bhsd), lse(DType::f32, lse_shape(shape), Layout::bhsd);
  std::vector<Parts::OnGpu> parts;
  for (const auto& [begin, end] : {std::pair{0, 130}, {130, 500}, {500, 700}}) {
    parts.push_back({GpuArray(DType::bf16, shape, Layout::bhsd), GpuArray(DType::f32, lse_shape(shape), Layout::bhsd)});
    attention(
        q.tensor(), tokens_of(k, begin, end), tokens_of(v, begin, end), parts.back(),
        {.recipe = recipes::exact, .window = causal, .query_positions = Positions{}, .key_positions = Positions{begin}, .stream = stream});
  }
  merge(std::vector<Output>(parts.begin(), parts.end()), {out, lse}, {.stream = stream});
  const GpuResult whole = attend_on_gpu(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipes::exact, .window = causal}, DType::bf16);
  EXPECT_LE(relative_l1(out.numbers(), whole.out), 6e-3);
  EXPECT_LE(difference(lse.numbers(), to_double(whole.lse)).largest, 1e-3);
}

}  // namespace
}  // namespace chitu::test
