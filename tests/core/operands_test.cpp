// SPDX-License-Identifier: Apache-2.0
// Operands quantised once for many calls, and the same bits on every run.
#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "oracle.h"
#include "support.h"

namespace chitu::test {
namespace {

struct Data {
  Array query, key, value;
};

Data make(Random& random, const Shape& query, const Shape& key, DType type = DType::f16) {
  Data d{normal(random, type, query, Layout::bshd), normal(random, type, key, Layout::padded), normal(random, type, key)};
  d.key.fill([&](auto, auto, auto, std::int64_t c) { return random.normal() + (c % 5 == 0 ? 3.f : 0.5f); });
  d.value.fill([&](auto, auto, std::int64_t t, auto) { return random.normal() * (t % 97 == 3 ? 0.01f : 1); });
  return d;
}

void expect_same_bits(const Result& a, const Result& b) {
  EXPECT_EQ(a.out.raw(), b.out.raw());
  EXPECT_EQ(a.lse.raw(), b.lse.raw());
}

class Operands : public testing::TestWithParam<Method> {
 protected:
  const Recipe& recipe() const { return GetParam().recipe; }
};

TEST_P(Operands, QuantisedBeforehandGiveTheSameBits) {
  Random random(70);
  const Data d = make(random, {2, 6, 30, 72}, {2, 2, 300, 72});
  for (const std::string& kernel : available_kernels()) {
    SCOPED_TRACE(kernel);
    const Options options{.recipe = recipe(), .window = causal, .kernel = kernel};
    const Result expected = attend(d.query.tensor(), d.key.tensor(), d.value.tensor(), options);
    const Quantized k = quantize(d.key, Role::key, recipe()), v = quantize(d.value, Role::value, recipe());
    const Quantized q = quantize(d.query, Role::query, recipe(), {.keys = &k});
    expect_same_bits(attend(q, k, v, options), expected);
    expect_same_bits(attend(d.query.tensor(), k, v, options), expected);
    expect_same_bits(attend(d.query.tensor(), k, d.value.tensor(), options), expected);
    expect_same_bits(attend(d.query.tensor(), d.key.tensor(), v, options), expected);
    expect_same_bits(attend(q, k, d.value.tensor(), options), expected);
  }
}

TEST_P(Operands, PackedAndQuantisedBeforehandGiveTheSameBits) {
  Random random(71);
  const Data d = make(random, {1, 4, 150, 40}, {1, 4, 290, 40});
  const std::vector<std::int64_t> query_starts{0, 0, 33, 150}, key_starts{0, 129, 130, 290};
  Options options{.recipe = recipe()};
  options.query_starts = query_starts;
  options.key_starts = key_starts;
  const Result expected = attend(d.query.tensor(), d.key.tensor(), d.value.tensor(), options);
  const Quantized k = quantize(d.key, Role::key, recipe(), {.starts = key_starts}),
                  v = quantize(d.value, Role::value, recipe(), {.starts = key_starts});
  const Quantized q = quantize(d.query, Role::query, recipe(), {.starts = query_starts, .keys = &k});
  expect_same_bits(attend(q, k, v, options), expected);
}

TEST_P(Operands, OutliveWhatTheyWereMadeOf) {
  Random random(72);
  const Data d = make(random, {1, 2, 40, 64}, {1, 2, 200, 64});
  const Options options{.recipe = recipe()};
  const Result expected = attend(d.query.tensor(), d.key.tensor(), d.value.tensor(), options);
  Quantized q, k, v;
  auto copy = std::make_unique<Data>(d);
  {
    const Quantized keys = quantize(copy->key, Role::key, recipe());
    q = quantize(copy->query, Role::query, recipe(), {.keys = &keys});
    k = keys;  // a copy that shares the storage
    v = quantize(copy->value, Role::value, recipe());
  }
  // With Scaling::none a Quantized views the tensor, which must then live on.
  for (const Quantized* x : {&q, &k, &v})
    if (x->quant.scaling == Scaling::none) {
      EXPECT_EQ(x->values.data, (x == &q ? copy->query : x == &k ? copy->key : copy->value).tensor().data);
      expect_same_bits(attend(q, k, v, options), expected);
      return;
    }
  for (Array* x : {&copy->query, &copy->key, &copy->value}) x->fill([](auto...) { return 1e4f; });
  copy.reset();
  expect_same_bits(attend(q, k, v, options), expected);
}

TEST_P(Operands, AFrozenCentreIsExact) {
  if (recipe().key.centre == Centre::none) return;
  // A cache: the first keys decide the centre, the next ones are centred by it, and their LSEs agree.
  Random random(73);
  const Data d = make(random, {1, 4, 50, 64}, {1, 2, 400, 64}, DType::f32);
  const oracle::Exact exact = oracle::attention({d.query, d.key, d.value, {}});
  const Quantized first = quantize(tokens_of(d.key, 0, 100), Role::key, recipe());
  const Quantized all = quantize(d.key, Role::key, recipe(), {.centre = first.centre});
  const Quantized queries = quantize(d.query, Role::query, recipe(), {.keys = &first});
  const Result r = attend(queries, all, d.value.tensor(), {.recipe = recipe()});
  EXPECT_LE(relative_l1(r.out.numbers(), exact.out), 0.05);
  EXPECT_LE(difference(r.lse.numbers(), exact.lse).largest, 2e-2);

  Array far(DType::f32, {1, 2, 1, 64});
  far.fill([](auto...) { return 1.f; });
  const Quantized with_far = quantize(d.key, Role::key, recipe(), {.centre = far});
  const Result other = attend(d.query.tensor(), with_far, d.value.tensor(), {.recipe = recipe()});
  EXPECT_LE(difference(other.lse.numbers(), exact.lse).largest, 4e-2);
}

TEST_P(Operands, AnyChannelVectorIsExact) {
  if (recipe().value.scaling != Scaling::tile) return;
  Random random(74);
  const Data d = make(random, {1, 2, 50, 64}, {1, 2, 400, 64}, DType::f32);
  const oracle::Exact exact = oracle::attention({d.query, d.key, d.value, {}});
  Array channels(DType::f32, {1, 2, 1, 64});
  channels.fill([&](auto...) { return 0.5f + static_cast<float>(random.below(100)) / 50; });
  const Quantized values = quantize(d.value, Role::value, recipe(), {.channels = channels});
  EXPECT_EQ(values.channels.shape, channels.shape());
  EXPECT_LE(relative_l1(attend(d.query.tensor(), d.key.tensor(), values, {.recipe = recipe()}).out.numbers(), exact.out), 0.06);
}

TEST_P(Operands, SameBitsOnEveryRunAndForAnyNumberOfThreads) {
  Random random(75);
  const Data d = make(random, {2, 8, 260, 64}, {2, 2, 520, 64});
  for (const std::string& kernel : available_kernels()) {
    if (kernel == "cpu.reference") continue;  // slow, and has nothing that threads share
    SCOPED_TRACE(kernel);
    std::optional<Result> first;
    for (const int threads : {1, 2, 3, 2, 7, 1}) {
      const Result r = attend(d.query.tensor(), d.key.tensor(), d.value.tensor(),
                              {.recipe = recipe(), .window = causal, .threads = threads, .kernel = kernel});
      if (first)
        expect_same_bits(r, *first);
      else
        first = r;
    }
  }
}

TEST_P(Operands, AnOutputWithoutLseIsTheSame) {
  Random random(76);
  const Data d = make(random, {1, 2, 40, 64}, {1, 2, 200, 64});
  for (const std::string& kernel : available_kernels()) {
    const Options options{.recipe = recipe(), .kernel = kernel};
    const Result with = attend(d.query.tensor(), d.key.tensor(), d.value.tensor(), options);
    Array out(DType::f32, d.query.shape());
    attention(d.query.tensor(), d.key.tensor(), d.value.tensor(), out.tensor(), options);
    EXPECT_EQ(out.raw(), with.out.raw()) << kernel;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Operands, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

}  // namespace
}  // namespace chitu::test
