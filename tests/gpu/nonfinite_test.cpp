// SPDX-License-Identifier: Apache-2.0
// NaN and infinity on the GPU: the scenes of core's nonfinite_test.cpp, and what only its kernels can get wrong.
#include "../core/nonfinite.h"

#include <cmath>
#include <limits>
#include <string>

#include "support.h"

namespace chitu::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

class GpuNonFinite : public NeedsGpu<testing::TestWithParam<Method>> {
 protected:
  Spoilt expect_exact(NonFiniteCall& call, DType type, Layout in, Layout out) const {
    call.options.recipe = GetParam().recipe;
    const GpuResult r = attend_on_gpu(call.query, call.key, call.value, call.options, type, in, out);
    return expect_spoilt_alike(r.out, r.lse, call.exact());
  }
};

TEST_P(GpuNonFinite, SpoilsWhatExactAttentionSpoils) {
  for (const Scene& scene : scenes())
    for (const std::int64_t dim : {64, 128, 72, 96})
      for (const DType type : {DType::f16, DType::bf16}) {
        SCOPED_TRACE(std::string(scene.name) + ", dim " + std::to_string(dim) + ", " + name(type));
        NonFiniteCall call = call_of(scene, dim, {type, type, type});
        const Spoilt spoilt = expect_exact(call, type, Layout::padded, Layout::bshd);
        if (HasFailure()) return;
        EXPECT_GT(spoilt.count, 0) << "the scene spoils nothing, so it tests nothing";
        EXPECT_LE(spoilt.relative_l1, 0.09);  // no bad number leaked into a scale or a mean
        EXPECT_LE(spoilt.lse, 0.2);
      }
}

TEST_P(GpuNonFinite, AnywhereSpoilsOnlyItsOwn) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const DType type = seed % 2 ? DType::f16 : DType::bf16;
    SCOPED_TRACE("seed " + std::to_string(seed));
    NonFiniteCall call = random_nonfinite(seed, {8, 40, 64, 72, 128, 136, 256}, {type, type, type});
    expect_exact(call, seed % 3 ? DType::f16 : DType::bf16, Layout::bhsd, Layout::bhsd);
    if (HasFailure()) return;
  }
}

// Many tokens in many tiles, more than spoil_nonfinite() looks through at a time. Each call has one kind, because a NaN would hide the
// others.
TEST_P(GpuNonFinite, InManyTiles) {
  for (const std::int64_t dim : {64, 128})
    for (int kind = 0; kind < 4; ++kind) {
      SCOPED_TRACE("dim " + std::to_string(dim) + ", kind " + std::to_string(kind));
      Random random(40 + static_cast<std::uint64_t>(kind));
      NonFiniteCall call(normal(random, DType::bf16, {1, 4, 200, dim}), normal(random, DType::bf16, {1, 2, 5000, dim}),
                         normal(random, DType::bf16, {1, 2, 5000, dim}));
      call.options.window = kind % 2 ? Window{900, 100} : Window{300, 0};
      call.options.query_positions = Positions{0, 25};
      for (int i = 0; i < 40; ++i) {
        const float x = kind == 2 && i % 3 == 0 ? nan : random.below(2) ? infinity : -infinity;
        const std::int64_t channel = kind == 0 ? 7 : random.below(dim);  // all in one channel: half of the rows weigh them all at nothing
        if (kind == 3)
          call.set({Role::query, 0, random.below(4), random.below(200), channel, nan});
        else
          call.set({kind == 2 ? Role::value : Role::key, 0, random.below(2), random.below(5000), channel, kind == 0 ? infinity : x});
      }
      const Spoilt spoilt = expect_exact(call, DType::f16, Layout::bshd, Layout::bhsd);
      if (HasFailure()) return;
      EXPECT_GT(spoilt.count, 0);
      EXPECT_LE(spoilt.relative_l1, 0.09);
    }
}

// Calls with whole operands that are not finite end in good time, and leave no tile as it was.
TEST_P(GpuNonFinite, Everything) {
  Random random(41);
  const Array good = normal(random, DType::f16, {1, 2, 2000, 128});
  const auto all = [&](float x) { return Array(DType::f16, good.shape()).fill([&](auto...) { return x; }); };
  const Options options{.recipe = GetParam().recipe, .window = causal};
  const auto expect_all = [&](const GpuResult& r, const char* what, float out, bool nan_lse) {
    SCOPED_TRACE(what);
    for (const float x : r.out) ASSERT_TRUE(std::isnan(out) ? std::isnan(x) : x == out) << x;
    for (const float x : r.lse) ASSERT_EQ(std::isnan(x), nan_lse) << x;
  };
  expect_all(attend_on_gpu(all(nan), good, good, options, DType::f16), "queries", nan, true);
  expect_all(attend_on_gpu(good, all(nan), good, options, DType::f16), "keys", nan, true);
  expect_all(attend_on_gpu(good, good, all(nan), options, DType::f16), "values", nan, false);
  expect_all(attend_on_gpu(good, good, all(infinity), options, DType::bf16), "infinite values", infinity, false);
  // Positive queries, keys at -inf: no key weighs anything.
  const GpuResult none = attend_on_gpu(all(1), all(-infinity), good, options, DType::f16);
  for (const float x : none.out) ASSERT_EQ(x, 0);
  for (const float x : none.lse) ASSERT_EQ(x, -infinity);
}

// Rows whose non-finite keys all weigh nothing equal exact attention over the other keys: they are computed again, not merely finite.
TEST_P(GpuNonFinite, KeysThatWeighNothingLeaveNoTrace) {
  for (const std::int64_t dim : {64, 128, 256, 40}) {
    SCOPED_TRACE("dim " + std::to_string(dim));
    Random random(42);
    NonFiniteCall call(normal(random, DType::f16, {1, 2, 150, dim}), normal(random, DType::f16, {1, 1, 700, dim}),
                       normal(random, DType::f16, {1, 1, 700, dim}));
    for (std::int64_t i = 0; i < 150; ++i)
      for (std::int64_t h = 0; h < 2; ++h) call.query.set(0, h, i, 5, 2);
    for (std::int64_t t = 3; t < 700; t += 50)
      for (std::int64_t c = 0; c < dim; ++c) {
        call.key.set(0, 0, t, c, c == 5 ? -infinity : 0);
        call.value.set(0, 0, t, c, 1000);  // would be seen
      }
    call.options.recipe = GetParam().recipe;
    const oracle::Exact exact = call.exact();
    const GpuResult r = attend_on_gpu(call.query, call.key, call.value, call.options, DType::f16);
    EXPECT_LE(relative_l1(r.out, exact.out), 1e-5 + rounding_of(DType::f16));
    EXPECT_LE(difference(r.lse, exact.lse).largest, 1e-5);
  }
}

// The other rows are not only finite: where nothing else changes, they do not change at all.
TEST_P(GpuNonFinite, OtherRowsKeepTheirBits) {
  Random random(31);
  Array q = normal(random, DType::f16, {1, 2, 400, 64});
  const Array k = normal(random, DType::f16, {1, 2, 600, 64}), v = normal(random, DType::f16, k.shape());
  const auto zero_token = [&](float first) {
    for (std::int64_t c = 0; c < 64; ++c) q.set(0, 1, 317, c, c == 0 ? first : 0);
  };
  const Options options{.recipe = GetParam().recipe, .window = causal};
  zero_token(0);
  const GpuResult clean = attend_on_gpu(q, k, v, options, DType::f16);
  zero_token(nan);
  const GpuResult dirty = attend_on_gpu(q, k, v, options, DType::f16);
  for (std::size_t i = 0; i < clean.lse.size(); ++i) {
    if (i == 400 + 317) {
      EXPECT_TRUE(std::isnan(dirty.lse[i]));
      continue;
    }
    ASSERT_EQ(clean.lse[i], dirty.lse[i]) << i;
    for (std::size_t c = 0; c < 64; ++c) ASSERT_EQ(clean.out[i * 64 + c], dirty.out[i * 64 + c]) << i;
  }
}

// A block of queries reaches into the next sequence of a packed batch, and so does the copy that brings the block.
TEST_P(GpuNonFinite, OtherSequencesKeepTheirBits) {
  const std::vector<std::int64_t> query_starts{0, 40, 300, 301, 500}, key_starts{0, 300, 600, 750, 1150};
  for (const std::int64_t dim : {64, 128, 72}) {
    SCOPED_TRACE("dim " + std::to_string(dim));
    Random random(43);
    Array q = normal(random, DType::f16, {1, 4, 500, dim});
    const Array k = normal(random, DType::f16, {1, 2, 1150, dim}), v = normal(random, DType::f16, k.shape());
    const Options options{.recipe = GetParam().recipe, .window = causal, .query_starts = query_starts, .key_starts = key_starts};
    const GpuResult clean = attend_on_gpu(q, k, v, options, DType::f16);
    for (std::int64_t h = 0; h < 4; ++h)
      for (std::int64_t t = 40; t < 300; ++t)
        for (std::int64_t c = 0; c < dim; ++c) q.set(0, h, t, c, nan);
    const GpuResult dirty = attend_on_gpu(q, k, v, options, DType::f16);
    const auto channels = static_cast<std::size_t>(dim);
    for (std::size_t i = 0; i < clean.lse.size(); ++i) {
      const bool spoilt = i % 500 >= 40 && i % 500 < 300;
      ASSERT_TRUE(spoilt ? std::isnan(dirty.lse[i]) : dirty.lse[i] == clean.lse[i]) << i;
      for (std::size_t c = i * channels; c < (i + 1) * channels; ++c)
        ASSERT_TRUE(spoilt ? std::isnan(dirty.out[c]) : dirty.out[c] == clean.out[c]) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuNonFinite, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

}  // namespace
}  // namespace chitu::test
