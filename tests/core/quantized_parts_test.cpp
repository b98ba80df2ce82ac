// SPDX-License-Identifier: Apache-2.0
// A Quantized that was stored, sent and put together again may have come to harm: each part is damaged, and must be refused by name.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "common/numbers.h"
#include "support.h"

namespace chitu::test {
namespace {

struct Case {
  std::vector<std::string> message;
  std::function<void(Quantized&)> damage;
};

// Two packed sequences; the values' first tile is flagged, and a token of each operand is not finite.
class Parts : public testing::Test {
 protected:
  Parts() {
    Random random(80);
    q_ = normal(random, DType::f32, {1, 4, 40, 32});
    k_ = normal(random, DType::f32, {1, 2, 300, 32});
    v_ = normal(random, DType::f32, {1, 2, 300, 32});
    for (std::int64_t c = 0; c < 32; ++c) v_.set(0, 0, 3, c, 1e-3f);
    for (Array* x : {&q_, &k_, &v_})
      for (const std::int64_t token : {7, 20}) x->set(0, 1, token, 5, std::numeric_limits<float>::infinity());
    options_.query_starts = query_starts_;
    options_.key_starts = key_starts_;
  }

  Quantized keys(const Recipe& recipe) const { return quantize(k_, Role::key, recipe, {.starts = key_starts_}); }
  Quantized values(const Recipe& recipe) const { return quantize(v_, Role::value, recipe, {.starts = key_starts_}); }
  Quantized queries(const Recipe& recipe, const Quantized* keys) const {
    return quantize(q_, Role::query, recipe, {.starts = query_starts_, .keys = keys});
  }

  void run(const Recipe& recipe, const Operand& q, const Operand& k, const Operand& v) {
    options_.recipe = recipe;
    attention(q, k, v, {out_, lse_}, options_);
  }

  void expect(const Recipe& recipe, Role role, const std::vector<Case>& cases) {
    const Quantized k = keys(recipe), v = values(recipe), q = queries(recipe, &k);
    EXPECT_NO_THROW(run(recipe, q, k, v));
    const Quantized& whole = role == Role::query ? q : role == Role::key ? k : v;
    for (const Case& c : cases) {
      SCOPED_TRACE(c.message.back());
      Quantized damaged = whole;
      c.damage(damaged);
      std::vector<std::string> message = c.message;
      message.emplace_back(role == Role::query ? "query" : role == Role::key ? "key" : "value");
      expect_error(
          [&] { run(recipe, role == Role::query ? damaged : q, role == Role::key ? damaged : k, role == Role::value ? damaged : v); },
          ErrorCode::bad_argument, message);
    }
  }

  // What may happen to any tensor beside the values.
  static std::vector<Case> of(const std::string& part, Tensor Quantized::*tensor) {
    return {
        {{part, "missing; wanted f32"}, [=](Quantized& q) { q.*tensor = {}; }},
        {{part, "no data"}, [=](Quantized& q) { (q.*tensor).data = nullptr; }},
        {{part, "u8"}, [=](Quantized& q) { (q.*tensor).type = DType::u8; }},
        {{part, "CPU memory"}, [=](Quantized& q) { (q.*tensor).device = Device::cuda; }},
        {{part, "wanted"}, [=](Quantized& q) { ++(q.*tensor).shape[1]; }},
        {{part, "wanted"}, [=](Quantized& q) { --(q.*tensor).shape[2]; }},
        {{part, "between"}, [=](Quantized& q) { (q.*tensor).stride[1] = std::int64_t{1} << 61; }},
    };
  }

  const std::vector<std::int64_t> query_starts_{0, 30, 40}, key_starts_{0, 170, 300};
  Array q_, k_, v_, out_{DType::f32, {1, 4, 40, 32}}, lse_{DType::f32, {1, 4, 40, 1}};
  Options options_{.threads = 1};
};

TEST_F(Parts, Values) {
  const auto damage = [](auto change) { return [=](Quantized& q) { change(q.values); }; };
  expect(recipes::chitu, Role::key,
         {
             {{"no data"}, damage([](Tensor& t) { t.data = nullptr; })},
             {{"values are f32", "i8"}, damage([](Tensor& t) { t.type = DType::f32; })},
             {{"stride 2"}, damage([](Tensor& t) { t.stride[3] = 2; })},
             {{"starts end at 300", "299 tokens"}, damage([](Tensor& t) { t.shape[2] = 299; })},
             {{"starts"},
              [](Quantized& q) {
                q.starts = {0, 300};
              }},
         });
  expect(recipes::sage, Role::value, {{{"values are i8", "f16"}, damage([](Tensor& t) { t.type = DType::i8; })}});
}

TEST_F(Parts, Scales) {
  const auto scales = of("scales", &Quantized::scales);
  expect(recipes::chitu, Role::key, scales);
  expect(recipes::chitu, Role::value, scales);
  expect(recipes::sage2, Role::value, scales);
  expect(recipes::int8, Role::value, scales);
  expect(recipes::chitu, Role::query, scales);
  expect(recipes::chitu, Role::key, {{{"scales", "numbers together"}, [](Quantized& q) { q.scales.stride[2] = 2; }}});
  expect(recipes::exact, Role::value, {{{"scales", "given, but nothing"}, [](Quantized& q) { q.scales = q.values; }}});
}

TEST_F(Parts, Ranks) {
  const Recipe& recipe = recipes::chitu;
  const Quantized k = keys(recipe), v = values(recipe), q = queries(recipe, &k);
  const auto ranks = [](const Quantized& x, std::int64_t head) {
    return static_cast<std::uint8_t*>(x.ranks.data) + head * x.ranks.stride[1];
  };
  const auto expect_bad = [&](std::int64_t head, std::int64_t token, std::uint8_t rank, const std::string& where) {
    SCOPED_TRACE(where);
    const Quantized damaged = keys(recipe);
    ranks(damaged, head)[token] = rank;
    const std::vector<std::string> message{"key's ranks", where, "not all different and below 128"};
    expect_error([&] { run(recipe, q, damaged, v); }, ErrorCode::bad_argument, message);
    expect_error([&] { queries(recipe, &damaged); }, ErrorCode::bad_argument, message);
  };
  expect_bad(0, 3, 128, "head 0, tokens 0 ... 127");
  expect_bad(1, 127, 255, "head 1, tokens 0 ... 127");
  expect_bad(1, 130, ranks(k, 1)[131], "head 1, tokens 128 ... 169");
  expect_bad(0, 299, ranks(k, 0)[298], "head 0, tokens 298 ... 299");  // the second sequence's second tile has 170 + 128 ... 299
  expect(recipes::chitu, Role::key,
         {
             {{"ranks", "missing; wanted u8 [1, 2, 300, 1]"}, [](Quantized& q) { q.ranks = {}; }},
             {{"ranks", "no data"}, [](Quantized& q) { q.ranks.data = nullptr; }},
             {{"ranks", "i8"}, [](Quantized& q) { q.ranks.type = DType::i8; }},
             {{"ranks", "CPU memory"}, [](Quantized& q) { q.ranks.device = Device::cuda; }},
             {{"ranks", "wanted"}, [](Quantized& q) { --q.ranks.shape[2]; }},
             {{"ranks", "numbers together"}, [](Quantized& q) { q.ranks.stride[2] = 2; }},
         });
  expect(recipes::sage2, Role::key, {{{"ranks", "given, but nothing"}, [](Quantized& q) { q.ranks = q.scales; }}});
  expect(recipes::chitu, Role::query, {{{"ranks", "given, but nothing"}, [](Quantized& q) { q.ranks = q.scales; }}});
}

TEST_F(Parts, OfAnotherFormatVersion) {
  const std::vector<Case> cases{
      {{"format version 1", "reads version 2 only"}, [](Quantized& q) { q.version = 1; }},
      {{"format version 3"}, [](Quantized& q) { q.version = 3; }},
  };
  for (const Recipe& recipe : {recipes::chitu, recipes::sage2, recipes::exact})
    for (const Role role : {Role::query, Role::key, Role::value}) expect(recipe, role, cases);
  Quantized k = keys(recipes::chitu);
  k.version = 1;
  expect_error([&] { queries(recipes::chitu, &k); }, ErrorCode::bad_argument, {"key was quantised to format version 1"});
}

TEST_F(Parts, CentreAndCorrection) {
  const auto centre = of("centre", &Quantized::centre);
  expect(recipes::chitu, Role::key, centre);
  expect(recipes::chitu, Role::key, {{{"centre", "strides"}, [](Quantized& q) { q.centre.stride[1] = 0; }}});
  expect(recipes::chitu, Role::query,
         {
             {{"centre has 0 heads"}, [](Quantized& q) { q.centre = {}; }},
             {{"centre has 3 heads"}, [](Quantized& q) { q.centre.shape[1] = 3; }},
             {{"centre", "wanted"}, [](Quantized& q) { q.centre.shape[3] = 31; }},
             {{"centre", "no data"}, [](Quantized& q) { q.centre.data = nullptr; }},
             {{"centre", "given, but nothing"}, [](Quantized& q) { q.correction = {}; }},
             {{"correction", "no data"}, [](Quantized& q) { q.correction.data = nullptr; }},
             {{"correction", "wanted"}, [](Quantized& q) { q.correction.shape[2] = 39; }},
             {{"correction", "f16"}, [](Quantized& q) { q.correction.type = DType::f16; }},
         });
  expect(recipes::int8, Role::key, {{{"centre", "given, but nothing"}, [](Quantized& q) { q.centre = q.scales; }}});
  expect(recipes::chitu, Role::value, {{{"correction", "given, but nothing"}, [](Quantized& q) { q.correction = q.scales; }}});
}

TEST_F(Parts, ChannelsAndResiduals) {
  const Quantized v = values(recipes::chitu);
  ASSERT_GE(v.residuals.shape[1], 1);
  expect(recipes::chitu, Role::value, of("channels", &Quantized::channels));
  expect(recipes::chitu, Role::value,
         {
             {{"residual_of has 7 entries", "not 8"}, [](Quantized& q) { q.residual_of.pop_back(); }},
             {{"residual_of has 0 entries"}, [](Quantized& q) { q.residual_of.clear(); }},
             {{"residual_of[1] is -2"}, [](Quantized& q) { q.residual_of[1] = -2; }},
             {{"residual_of[7] is"}, [](Quantized& q) { q.residual_of[7] = static_cast<std::int32_t>(q.residuals.shape[1]); }},
             {{"residual_of[0] is 0", "there are 0"}, [](Quantized& q) { q.residuals = {}; }},
             {{"residuals", "no data"}, [](Quantized& q) { q.residuals.data = nullptr; }},
             {{"residuals", "u8"}, [](Quantized& q) { q.residuals.type = DType::u8; }},
             {{"residuals", "wanted"}, [](Quantized& q) { q.residuals.shape[2] = 127; }},
             {{"residuals", "strides"}, [](Quantized& q) { q.residuals.stride[2] = 33; }},
         });
  expect(recipes::sage2, Role::value,
         {
             {{"residual_of has 1 entries", "not 0"}, [](Quantized& q) { q.residual_of = {0}; }},
             {{"channels", "given, but nothing"}, [](Quantized& q) { q.channels = q.scales; }},
             {{"residuals", "given, but nothing"}, [](Quantized& q) { q.residuals = q.values; }},
         });
}

TEST_F(Parts, NonFinite) {
  const std::vector<Case> cases{
      {{"nonfinite[0]", "sequence 2"}, [](Quantized& q) { q.nonfinite[0].sequence = 2; }},
      {{"nonfinite[0]", "sequence -1"}, [](Quantized& q) { q.nonfinite[0].sequence = -1; }},
      {{"nonfinite[1]", "head 4"}, [](Quantized& q) { q.nonfinite[1].head = 4; }},
      {{"nonfinite[1]", "token 170"}, [](Quantized& q) { q.nonfinite[1].token = 170; }},
      {{"nonfinite[1]", "token -1"}, [](Quantized& q) { q.nonfinite[1].token = -1; }},
      {{"nonfinite[1] has 31 values", "32"}, [](Quantized& q) { q.nonfinite[1].values.pop_back(); }},
      {{"nonfinite[1]", "order"}, [](Quantized& q) { std::swap(q.nonfinite[0], q.nonfinite[1]); }},
      {{"nonfinite[1]", "order"}, [](Quantized& q) { q.nonfinite[0] = q.nonfinite[1]; }},
  };
  for (const Recipe& recipe : {recipes::chitu, recipes::exact})
    for (const Role role : {Role::query, Role::key, Role::value}) expect(recipe, role, cases);
}

TEST_F(Parts, OfKeysThatQueriesAreGiven) {
  Quantized k = keys(recipes::chitu);
  k.centre.data = nullptr;
  expect_error([&] { queries(recipes::chitu, &k); }, ErrorCode::bad_argument, {"key's centre", "no data"});
  k = keys(recipes::chitu);
  k.values.device = k.centre.device = Device::cuda;
  expect_error([&] { queries(recipes::chitu, &k); }, ErrorCode::bad_argument, {"key's", "CPU memory"});
}

// A part of a cache: views of each head's rows.
TEST_F(Parts, MayBeViews) {
  const Recipe& recipe = recipes::chitu;
  const Quantized k = quantize(k_, Role::key, recipe), v = quantize(v_, Role::value, recipe);
  Quantized q = quantize(tokens_of(q_, 0, 40), Role::query, recipe, {.keys = &k});
  options_.query_starts = options_.key_starts = {};
  EXPECT_NO_THROW(run(recipe, q, k, v));
  const Array part(DType::f32, {1, 4, 16, 32}), part_lse(DType::f32, {1, 4, 16, 1});
  q.values = tokens_of(q.values, 0, 16);
  q.correction = tokens_of(q.correction, 0, 16);
  q.scales.shape[2] = q.quant.groups.count(16);
  std::erase_if(q.nonfinite, [](const NonFinite& n) { return n.token >= 16; });
  EXPECT_NO_THROW(attention(q, k, v, {part, part_lse}, options_));
}

// Keys and values at once are those of two calls, with given vectors too.
TEST(KeysAndValues, AtOnceAreThoseOfTwoCalls) {
  Random random(23);
  const std::vector<std::int64_t> packed{0, 77, 77, 300};
  for (const Method& method : methods)
    for (const auto& starts : {std::vector<std::int64_t>{}, packed}) {
      const Recipe& recipe = method.recipe;
      SCOPED_TRACE(method.name);
      const std::int64_t batch = starts.empty() ? 2 : 1, sequences = starts.empty() ? 2 : 3;
      const Array k = normal(random, DType::f32, {batch, 2, 300, 64});
      Array v = normal(random, DType::f32, {batch, 2, 300, 64}), vector(DType::f32, {sequences, 2, 1, 64});
      v.set(0, 1, 200, 3, 100);  // a key that needs a residual plane
      vector.fill([&](auto...) { return 0.5f + std::fabs(random.normal()); });
      QuantizeOptions of_key{.starts = starts}, of_value{.starts = starts}, o{.starts = starts};
      for (const bool given : {false, true}) {
        if (given && recipe.key.centre != Centre::none) o.centre = of_key.centre = vector.tensor();
        if (given && recipe.value.scaling == Scaling::tile) o.channels = of_value.channels = vector.tensor();
        const KeysAndValues both = quantize_keys_and_values(k, v, recipe, o);
        const Quantized key = quantize(k, Role::key, recipe, of_key), value = quantize(v, Role::value, recipe, of_value);
        EXPECT_EQ(both.key.role, Role::key);
        EXPECT_EQ(both.value.role, Role::value);
        EXPECT_EQ(both.value.residual_of, value.residual_of);
        for (const auto& [got, want] : {std::pair{&both.key, &key}, {&both.value, &value}})
          for (const auto part : quantized_parts) {
            const Tensor &x = (*got).*part, &y = (*want).*part;
            ASSERT_EQ(x.shape, y.shape);
            for (std::int64_t b = 0; y.data && b < y.shape[0]; ++b)
              for (std::int64_t h = 0; h < y.shape[1]; ++h)
                for (std::int64_t t = 0; t < y.shape[2]; ++t)
                  ASSERT_EQ(std::memcmp(row(x, b, h, t), row(y, b, h, t), static_cast<std::size_t>(y.shape[3] * bytes(y.type))), 0);
          }
      }
    }
}

TEST(KeysAndValues, ThatDoNotFitAreRefused) {
  Random random(24);
  const Array k = normal(random, DType::f32, {1, 2, 30, 64}), v = normal(random, DType::f32, {1, 2, 31, 64});
  expect_error([&] { (void)quantize_keys_and_values(k, v, recipes::chitu); }, ErrorCode::bad_argument,
               {"value has shape [1, 2, 31, 64]", "it must be the key's, [1, 2, 30, 64]"});
  const Quantized key = quantize(k, Role::key, recipes::chitu);
  expect_error([&] { (void)quantize_keys_and_values(k, k, recipes::chitu, {.keys = &key}); }, ErrorCode::bad_argument, {"keys are given"});
  expect_error([&] { (void)quantize_keys_and_values(k, k, recipes::sage2, {.channels = k.tensor()}); }, ErrorCode::bad_argument,
               {"channels are given"});
}

}  // namespace
}  // namespace chitu::test
