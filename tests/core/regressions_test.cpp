// SPDX-License-Identifier: Apache-2.0
// Faults that published quantised attention has had, one test each, named after the fault: none may come back here.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <limits>
#include <map>

#include "common/numbers.h"
#include "oracle.h"
#include "support.h"

namespace chitu::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

class Fault : public testing::TestWithParam<Method> {
 protected:
  const Recipe& recipe() const { return GetParam().recipe; }
  // Generous, for short sequences: the methods' own errors are bars_test.cpp's business, these are faults of another size.
  double l1_bound() const { return GetParam().name == "exact" ? 2e-3 : GetParam().name == "fp8" ? 0.12 : 0.07; }
  double lse_bound() const { return GetParam().name == "exact" ? 3e-5 : GetParam().name == "fp8" ? 0.15 : 0.04; }

  bool rounds_raw_keys() const { return GetParam().name != "exact" && recipe().key.centre == Centre::none; }

  void expect_near_truth(const Array& q, const Array& k, const Array& v, Options options = {}, DType type = DType::f32,
                         double slack = 1) const {
    const oracle::Exact exact = oracle::attention({q, k, v, options});
    options.recipe = recipe();
    for (const std::string& kernel : available_kernels()) {
      SCOPED_TRACE(kernel);
      options.kernel = kernel;
      const Result r = attend(q.tensor(), k.tensor(), v.tensor(), options, type);
      EXPECT_LE(relative_l1(r.out.numbers(), exact.out), slack * l1_bound() + rounding_of(type));
      EXPECT_LE(difference(r.lse.numbers(), exact.lse).largest, slack * lse_bound());
    }
  }
};

Array constant(const Shape& shape, float x, DType type = DType::f32) {
  Array array(type, shape);
  array.fill([&](auto...) { return x; });
  return array;
}

TEST_P(Fault, LseInBase2) {
  // ln(l) + m with m in base 2 is off by 0.44 m.
  Random random(40);
  Array q = normal(random, DType::f32, {1, 1, 50, 64});
  q.fill([&](auto...) { return 3 * random.normal(); });
  expect_near_truth(q, normal(random, DType::f32, {1, 1, 300, 64}), normal(random, DType::f32, {1, 1, 300, 64}), {.scale = 0.05f});
}

TEST_P(Fault, LseLacksTheMeanOfKeys) {
  Random random(41);
  Array k(DType::f32, {1, 2, 300, 64});
  k.fill([&](auto, std::int64_t h, auto, auto) { return random.normal() + (h ? 4.f : -2.f); });
  // Methods that do not centre round the offset too.
  expect_near_truth(normal(random, DType::f32, {1, 4, 50, 64}), k, normal(random, DType::f32, {1, 2, 300, 64}), {}, DType::f32,
                    rounds_raw_keys() ? 4 : 1);
}

TEST_P(Fault, LseOnlyForSomeTypesMasksAndDims) {
  Random random(42);
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    for (const Window& window : {everything, causal, Window{40, 0}})
      for (const std::int64_t dim : {40, 128})
        expect_near_truth(normal(random, type, {1, 1, 33, dim}), normal(random, type, {1, 1, 140, dim}),
                          normal(random, type, {1, 1, 140, dim}), {.window = window}, type);
}

TEST_P(Fault, LseRoundedToTheTypeOfQueries) {
  // In bf16 an LSE near 200 would be off by up to 0.5.
  Random random(43);
  Array q(DType::bf16, {1, 1, 20, 64}), k(DType::bf16, {1, 1, 200, 64});
  q.fill([&](auto...) { return 2 + 0.1f * random.normal(); });
  k.fill([&](auto...) { return 12 + 0.1f * random.normal(); });
  if (!rounds_raw_keys()) expect_near_truth(q, k, normal(random, DType::bf16, {1, 1, 200, 64}), {}, DType::bf16);
  // Whatever the method: bf16 numbers near 200 are all whole.
  const Result r = attend(q.tensor(), k.tensor(), k.tensor(), {.recipe = recipe()}, DType::bf16);
  int whole = 0;
  for (const float lse : r.lse.numbers()) whole += lse == std::round(lse);
  EXPECT_LE(whole, 2);
}

TEST_P(Fault, LseOverflowsFp16) {
  // q . mean(k) is 650 000, beyond FP16.
  Random random(44);
  Array q(DType::f16, {1, 1, 20, 64}), k(DType::f16, {1, 1, 200, 64});
  q.fill([&](auto...) { return 100 + random.normal(); });
  k.fill([&](auto...) { return 100 + random.normal(); });
  const oracle::Exact exact = oracle::attention({q, k, k, {.scale = 1e-3f}});
  const Result r = attend(q.tensor(), k.tensor(), k.tensor(), {.recipe = recipe(), .scale = 1e-3f});
  for (std::size_t i = 0; i < exact.lse.size(); ++i) {
    const double bound = GetParam().name == "fp8" ? 5e-2 : rounds_raw_keys() ? 4e-3 : 1e-5;
    EXPECT_NEAR(r.lse.numbers()[i], exact.lse[i], bound * exact.lse[i]);
  }
}

TEST_P(Fault, TailKeysNotMasked) {
  // All scores are about -20: a zero-filled key past the end would weigh e^20 times a real one.
  Random random(45);
  for (const std::int64_t keys : {1, 63, 65, 127, 129, 200}) {
    Array q = constant({1, 1, 5, 64}, 1), k(DType::f32, {1, 1, keys, 64});
    k.fill([&](auto...) { return -2.5f + 0.1f * random.normal(); });
    expect_near_truth(q, k, normal(random, DType::f32, {1, 1, keys, 64}));
  }
}

TEST_P(Fault, ScaleIgnored) {
  Random random(46);
  const Array q = normal(random, DType::f32, {1, 1, 40, 64}), k = normal(random, DType::f32, {1, 1, 200, 64}),
              v = normal(random, DType::f32, {1, 1, 200, 64});
  for (const float scale : {0.02f, 0.2f, -0.1f, 0.f}) expect_near_truth(q, k, v, {.scale = scale});
}

TEST_P(Fault, CausalFromTheTopLeft) {
  Random random(47);
  for (const auto& [queries, keys] : {std::pair<std::int64_t, std::int64_t>{1, 300}, {17, 300}, {300, 300}, {300, 130}})
    expect_near_truth(normal(random, DType::f32, {1, 1, queries, 64}), normal(random, DType::f32, {1, 1, keys, 64}),
                      normal(random, DType::f32, {1, 1, keys, 64}), {.window = causal});
}

TEST_P(Fault, CausalKeepsTheDiagonalBlockOnly) {
  // The full-INT8 kernel forgot the running maximum between the unmasked part and the diagonal. Here the weight lies in early keys.
  Random random(48);
  Array q = constant({1, 1, 400, 64}, 1), k(DType::f32, {1, 1, 400, 64});
  k.fill([&](auto, auto, std::int64_t t, auto) { return (t < 100 ? 0.6f : 0.f) + 0.1f * random.normal(); });
  expect_near_truth(q, k, normal(random, DType::f32, {1, 1, 400, 64}), {.window = causal});
}

TEST_P(Fault, ZeroTokenDividesByZero) {
  Random random(49);
  Array q = normal(random, DType::f16, {1, 1, 140, 64}), k = normal(random, DType::f16, {1, 1, 140, 64}),
        v = normal(random, DType::f16, {1, 1, 140, 64});
  for (Array* x : {&q, &k, &v})
    for (std::int64_t c = 0; c < 64; ++c) x->set(0, 0, 0, c, 0), x->set(0, 0, 139, c, 0);
  expect_near_truth(q, k, v);
  const Array zeros = constant({1, 1, 140, 64}, 0, DType::f16);
  for (const float x : attend(zeros.tensor(), zeros.tensor(), zeros.tensor(), {.recipe = recipe()}).out.numbers()) EXPECT_EQ(x, 0);
}

TEST_P(Fault, ZeroOrConstantChannelOfValuesDividesByZero) {
  Random random(50);
  const Array q = normal(random, DType::f32, {1, 1, 40, 64}), k = normal(random, DType::f32, {1, 1, 512, 64});
  Array v = normal(random, DType::f32, {1, 1, 512, 64});
  for (std::int64_t t = 0; t < 512; ++t) v.set(0, 0, t, 3, 0), v.set(0, 0, t, 5, 1.5f);
  const Result r = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe()});
  for (std::int64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(r.out.get(0, 0, i, 3), 0);
    EXPECT_NEAR(r.out.get(0, 0, i, 5), 1.5, 0.1);
  }
}

TEST_P(Fault, ScalesOfSmallRowsUnderflow) {
  // A scale of 1e-7 / 127 does not fit FP16.
  Random random(51);
  Array q(DType::f16, {1, 1, 40, 64}), k(DType::f16, {1, 1, 200, 64});
  q.fill([&](auto...) { return 3e-4f * random.normal(); });
  k.fill([&](auto...) { return 3e-4f * random.normal(); });
  expect_near_truth(q, k, normal(random, DType::f16, {1, 1, 200, 64}), {.scale = 2e6f});
}

TEST_P(Fault, ValuesBeyondFp16Overflow) {
  Random random(52);
  Array v(DType::bf16, {1, 1, 200, 64});
  for (const float size : {1e5f, 1e30f}) {
    v.fill([&](auto...) { return size * random.normal(); });
    expect_near_truth(normal(random, DType::bf16, {1, 1, 40, 64}), normal(random, DType::bf16, {1, 1, 200, 64}), v);
  }
}

TEST_P(Fault, RowsThatSeeNothingReturnTheMeanOfValues) {
  Random random(53);
  const Array q = normal(random, DType::f32, {1, 1, 10, 64}), k = normal(random, DType::f32, {1, 1, 200, 64}),
              v = constant({1, 1, 200, 64}, 5);
  // Query positions 0 ... 9, keys from 4 on; a merge with such rows must change nothing.
  const Options options{.recipe = recipe(), .window = causal, .query_positions = Positions{0, 1}, .key_positions = Positions{4, 1}};
  const Result shard = attend(q.tensor(), k.tensor(), v.tensor(), options);
  for (std::int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(shard.out.get(0, 0, i, 0), 0);
    EXPECT_EQ(shard.lse.get(0, 0, i, 0), -infinity);
  }
  const Result other = attend(q.tensor(), k.tensor(), constant({1, 1, 200, 64}, -2).tensor(), {.recipe = recipe()});
  Result merged{Array(DType::f32, q.shape()), Array(DType::f32, {1, 1, 10, 1})};
  merge({shard.out, shard.lse}, {other.out, other.lse}, {merged.out, merged.lse});
  for (std::int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(merged.out.get(0, 0, i, 7), other.out.get(0, 0, i, 7));
    EXPECT_EQ(merged.lse.get(0, 0, i, 0), other.lse.get(0, 0, i, 0));
  }
}

TEST_P(Fault, RowsInAnOpenTileSeeMaskedKeys) {
  // A row without keys beside rows with some, in one tile of queries.
  Random random(54);
  expect_near_truth(normal(random, DType::f32, {1, 1, 30, 64}), normal(random, DType::f32, {1, 1, 20, 64}),
                    normal(random, DType::f32, {1, 1, 20, 64}), {.window = Window{3, 0}});
}

TEST_P(Fault, UnseenKeysWeighALittle) {
  // The smallest positive weight times 3e38 is 3.5. The other sign leaves all scales as they are: rows in which it weighs 0 keep their
  // bits.
  const std::vector<std::int64_t> starts{0, 100, 300};
  struct Case {
    const char* name;
    std::int64_t large, begin, end;  // the key with the large value, and the rows in which it weighs 0
    Options options{};
    float key = 0;  // all its numbers, unless 0
  };
  Random random(62);
  for (Case& c : std::vector<Case>{
           {"causal", 200, 0, 200, {.window = causal}},
           {"causal, scale 0", 200, 0, 200, {.window = causal, .scale = 0.f}},
           {"left edge", 100, 141, 300, {.window = {40, 0}}},
           {"next sequence", 100, 0, 100, {.query_starts = starts, .key_starts = starts}},
           {"sequence before", 99, 100, 300, {.query_starts = starts, .key_starts = starts}},
           {"infinite key", 150, 0, 300, {}, -infinity},
           {"far below", 150, 0, 300, {}, -1e4f},
       })
    for (const DType type : {DType::f32, DType::bf16}) {
      const Array q = constant({1, 1, 300, 16}, 1, type);
      Array k = normal(random, type, {1, 1, 300, 16}), v = constant({1, 1, 300, 16}, 1, type);
      for (std::int64_t i = 0; i < 16 && c.key != 0; ++i) k.set(0, 0, c.large, i, c.key);
      c.options.recipe = recipe();
      for (const std::string& kernel : available_kernels()) {
        SCOPED_TRACE(testing::Message() << c.name << ", " << chitu::name(type) << ", " << kernel);
        c.options.kernel = kernel;
        const auto result = [&](float value) {
          for (std::int64_t i = 0; i < 16; ++i) v.set(0, 0, c.large, i, value);
          return attend(q.tensor(), k.tensor(), v.tensor(), c.options).out;
        };
        const Array plus = result(3e38f), minus = result(-3e38f);
        for (std::int64_t t = c.begin; t < c.end; ++t) {
          ASSERT_EQ(plus.get(0, 0, t, 3), minus.get(0, 0, t, 3)) << t;
          if (GetParam().name == "exact") {
            ASSERT_NEAR(plus.get(0, 0, t, 3), 1, 1e-2) << t;
          }
        }
      }
    }
}

TEST_P(Fault, InputsModifiedInPlace) {
  Random random(55);
  const Array q = normal(random, DType::f16, {1, 2, 140, 64}), k = normal(random, DType::f16, {1, 2, 140, 64}),
              v = normal(random, DType::f16, {1, 2, 140, 64});
  const Array q0 = q, k0 = k, v0 = v;
  for (const std::string& kernel : available_kernels()) attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe(), .kernel = kernel});
  EXPECT_EQ(q.raw(), q0.raw());
  EXPECT_EQ(k.raw(), k0.raw());
  EXPECT_EQ(v.raw(), v0.raw());
}

TEST_P(Fault, SmallWeightsShrinkTheRow) {
  // One key 5.6 above 10 000 others: their weights of 0.0037 all round to 0 of 127. Rounding may lose them (INT8), yet the row must
  // stay a mean of values: of equal values, that value.
  Array q = constant({1, 1, 1, 64}, 1), k(DType::f32, {1, 1, 10001, 64});
  k.fill([](auto, auto, std::int64_t t, auto) { return t == 5000 ? 0.7f : 0.f; });
  const Result r = attend(q.tensor(), k.tensor(), constant({1, 1, 10001, 64}, 1).tensor(), {.recipe = recipe()});
  for (const float x : r.out.numbers()) EXPECT_NEAR(x, 1, 0.05);
}

TEST_P(Fault, MeanOverThePackedBatch) {
  // Packed sequences with different means: each as if it were alone, to the bit.
  Random random(56);
  const std::vector<std::int64_t> starts{0, 100, 101, 300};
  Array q = normal(random, DType::f16, {1, 2, 300, 64}), k(DType::f16, {1, 2, 300, 64});
  const Array v = normal(random, DType::f16, {1, 2, 300, 64});
  k.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() + (t < 100 ? 8.f : t < 101 ? 0.f : -8.f); });
  Options options{.recipe = recipe(), .window = causal};
  options.query_starts = options.key_starts = starts;
  const Result packed = attend(q.tensor(), k.tensor(), v.tensor(), options);
  for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
    const auto part = [&](const Array& x) { return tokens_of(x, starts[s], starts[s + 1]); };
    const Result alone = attend(part(q), part(k), part(v), {.recipe = recipe(), .window = causal});
    for (std::int64_t h = 0; h < 2; ++h)
      for (std::int64_t t = starts[s]; t < starts[s + 1]; ++t) {
        for (std::int64_t c = 0; c < 64; ++c) ASSERT_EQ(packed.out.get(0, h, t, c), alone.out.get(0, h, t - starts[s], c)) << t;
        ASSERT_EQ(packed.lse.get(0, h, t, 0), alone.lse.get(0, h, t - starts[s], 0)) << t;
      }
  }
}

TEST_P(Fault, KeysReadWithTheStridesOfQueries) {
  Random random(57);
  const Array q = normal(random, DType::f32, {2, 8, 70, 64}, Layout::bshd), k = normal(random, DType::f32, {2, 2, 140, 64}, Layout::padded),
              v = normal(random, DType::f32, {2, 2, 140, 64}, Layout::bhsd);
  expect_near_truth(q, k, v, {.window = causal});
}

TEST_P(Fault, GroupedHeadsReadTheWrongKeyHead) {
  // Value head h is all h, so an output tells which head it came from: query heads 0 ... 3 head 0, 4 ... 7 head 1.
  Random random(58);
  Array v(DType::f32, {1, 2, 50, 16});
  v.fill([](auto, std::int64_t h, auto, auto) { return static_cast<float>(h + 1); });
  const Result r = attend(normal(random, DType::f32, {1, 8, 9, 16}).tensor(), normal(random, DType::f32, {1, 2, 50, 16}).tensor(),
                          v.tensor(), {.recipe = recipe()});
  for (std::int64_t h = 0; h < 8; ++h) EXPECT_NEAR(r.out.get(0, h, 4, 3), h < 4 ? 1 : 2, 0.05);
}

TEST_P(Fault, GarbageBehindTheKeysTimesZeroIsNaN) {
  // Arrays in padded layout have NaN between tokens and behind them.
  Random random(59);
  for (const std::int64_t keys : {1, 3, 63, 130})
    expect_near_truth(normal(random, DType::f16, {1, 1, 3, 40}, Layout::padded),
                      normal(random, DType::f16, {1, 1, keys, 40}, Layout::padded),
                      normal(random, DType::f16, {1, 1, keys, 40}, Layout::padded));
}

TEST_P(Fault, OptionsSwallowed) {
  Random random(60);
  const Array q = normal(random, DType::f32, {1, 1, 60, 32}), k = normal(random, DType::f32, {1, 1, 60, 32}),
              v = normal(random, DType::f32, {1, 1, 60, 32});
  const std::vector<std::int64_t> starts{0, 30, 60};
  std::map<std::string, Options> variants{{"window", {.window = {3, 5}}}, {"causal", {.window = causal}}, {"scale", {.scale = 0.3f}}};
  variants["query positions"] = {.window = causal, .query_positions = Positions{20, 1}};
  variants["query steps"] = {.window = causal, .query_positions = Positions{0, 2}};
  variants["key positions"] = {.window = Window{10, 0}, .query_positions = Positions{0, 1}, .key_positions = Positions{-5, 1}};
  variants["starts"].query_starts = variants["starts"].key_starts = starts;
  const std::vector<float> plain = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe()}).out.numbers();
  std::vector<std::vector<float>> seen{plain};
  for (auto& [name, options] : variants) {
    SCOPED_TRACE(name);
    expect_near_truth(q, k, v, options);
    options.recipe = recipe();
    seen.push_back(attend(q.tensor(), k.tensor(), v.tensor(), options).out.numbers());
    for (std::size_t i = 0; i + 1 < seen.size(); ++i) EXPECT_NE(seen[i], seen.back());
  }
  EXPECT_THROW(attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe(), .kernel = "cpu.magic"}), Error);
}

TEST_P(Fault, RotationOfLargeRowsOverflows) {
  // Sums of 128 numbers of 3e38 leave fp32, though the scores are small.
  Random random(64);
  for (const DType type : {DType::f32, DType::bf16})
    for (const std::int64_t dim : {64, 128}) {
      Array large = normal(random, type, {1, 1, 150, dim}), other(type, large.shape());
      other.fill([&](auto...) { return 0.01f * random.normal(); });
      for (std::int64_t t = 3; t < 150; t += 10)
        for (std::int64_t c = 0; c < dim; ++c) large.set(0, 0, t, c, (t % 20 == 3 ? 5e36f : 3e38f) * (random.below(2) ? 1 : -1));
      const Array v = normal(random, type, large.shape());
      expect_near_truth(large, other, v, {.scale = 5e-38f});
      // Elsewhere the CPU multiplies a product by the key's scale first, which may overflow: docs/numerics.md.
      if (recipe().key.scaling != Scaling::tokens || recipe().key.groups.block == 128)
        expect_near_truth(other, large, v, {.scale = 1e-38f});
    }
}

TEST_P(Fault, LargestScoresWeighAnything) {
  // Scores from 1e5 to 1e18 lie so far apart that a row is one value, and fp32 rounds them, and their difference from what they are
  // relative to, by up to any number.
  Random random(63);
  Array q(DType::f32, {1, 1, 40, 64}), k(DType::f32, {1, 1, 300, 64}), v(DType::f32, {1, 1, 300, 64});
  v.fill([](auto, auto, std::int64_t t, auto) { return static_cast<float>(t); });
  for (const float size : {2e2f, 3e2f, 1e3f, 3e3f, 5e3f, 1e4f, 1e5f, 1e9f}) {
    for (Array* x : {&q, &k}) x->fill([&](auto...) { return size * random.normal(); });
    const auto result = [&](const std::string& kernel) {
      return attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipe(), .kernel = kernel});
    };
    const Result expected = result("cpu.reference");
    for (const std::string& kernel : available_kernels()) {
      SCOPED_TRACE(testing::Message() << size << ", " << kernel);
      const Result r = result(kernel);
      EXPECT_LE(relative_l1(r.out.numbers(), expected.out.numbers()), 2e-3);
      EXPECT_LE(relative_l1(r.lse.numbers(), expected.lse.numbers()), 1e-6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Fault, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

// Address space without memory behind it, until it is touched.
class Sparse {
 public:
  explicit Sparse(std::size_t bytes)
      : bytes_(bytes), data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~Sparse() {
    if (mapped()) munmap(data_, bytes_);
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  bool mapped() const { return data_ != MAP_FAILED; }
  void* data() const { return data_; }

 private:
  std::size_t bytes_;
  void* data_;
};

class Strides : public testing::TestWithParam<std::tuple<Method, int>> {};

// The same numbers, dense and with one stride beyond 2^32 elements.
TEST_P(Strides, Overflow32Bits) {
  const Method& method = std::get<0>(GetParam());
  const auto axis = static_cast<std::size_t>(std::get<1>(GetParam()));
  constexpr std::int64_t huge = (std::int64_t{1} << 32) + 96;
  Random random(61);
  const Shape shape{2, 2, 3, 32};
  const Array q = normal(random, DType::f16, shape), k = normal(random, DType::f16, shape), v = normal(random, DType::f16, shape);
  const Result dense_result = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = method.recipe}, DType::f16);

  const auto spread = [&](const Array& x, const Sparse& memory) {
    Tensor t = x;
    t.data = memory.data();
    t.stride[axis] = huge;
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t h = 0; h < 2; ++h)
        for (std::int64_t i = 0; i < 3; ++i)
          for (std::int64_t c = 0; c < 32; ++c) store(row(t, b, h, i), t.type, c, x.get(b, h, i, c));
    return t;
  };
  const std::size_t bytes = static_cast<std::size_t>(huge) * 2 * 3;
  const Sparse memory[] = {Sparse(bytes), Sparse(bytes), Sparse(bytes), Sparse(bytes)};
  for (const Sparse& m : memory)
    if (!m.mapped()) GTEST_SKIP() << "this machine maps no " << bytes << " bytes";
  const Tensor out = spread(dense_result.out, memory[3]);
  for (std::int64_t i = 0; i < 3; ++i) store(row(out, 1, 1, i), out.type, 0, std::numeric_limits<float>::quiet_NaN());
  attention(spread(q, memory[0]), spread(k, memory[1]), spread(v, memory[2]), out, {.recipe = method.recipe});
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t h = 0; h < 2; ++h)
      for (std::int64_t i = 0; i < 3; ++i)
        for (std::int64_t c = 0; c < 32; ++c) ASSERT_EQ(load(row(out, b, h, i), out.type, c), dense_result.out.get(b, h, i, c));
}

INSTANTIATE_TEST_SUITE_P(All, Strides, testing::Combine(testing::ValuesIn(methods), testing::Range(0, 3)), [](const auto& info) {
  const int axis = std::get<1>(info.param);
  return test_name(std::get<0>(info.param).name) + (axis == 0 ? "_batch" : axis == 1 ? "_head" : "_token");
});

}  // namespace
}  // namespace chitu::test
