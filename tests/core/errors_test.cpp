// SPDX-License-Identifier: Apache-2.0
// Every refusal: its code, and that its message names the argument and says what came.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "support.h"

namespace chitu::test {
namespace {

// A call that is right until a test spoils it.
struct Call {
  Array q{DType::f32, {1, 4, 6, 8}}, k{DType::f32, {1, 2, 9, 8}}, v{DType::f32, {1, 2, 9, 8}};
  Array out_memory{DType::f32, {1, 4, 6, 8}}, lse_memory{DType::f32, {1, 4, 6, 1}};
  Tensor query = q, key = k, value = v, out = out_memory, lse = lse_memory;
  std::vector<std::int64_t> query_starts, key_starts;
  Options options;

  Call() {
    for (Array* x : {&q, &k, &v}) x->fill([](auto...) { return 1.f; });
  }
  void run() {
    options.query_starts = query_starts;
    options.key_starts = key_starts;
    attention(query, key, value, {out, lse}, options);
  }
};

struct Wrong {
  std::vector<std::string> message;
  std::function<void(Call&)> spoil;
  ErrorCode code = ErrorCode::bad_argument;
};

void expect_all(const std::vector<Wrong>& list) {
  for (const Wrong& wrong : list) {
    SCOPED_TRACE(wrong.message.back());
    Call call;
    wrong.spoil(call);
    expect_error([&] { call.run(); }, wrong.code, wrong.message);
  }
}

TEST(Errors, TheCallIsRightUntilSpoilt) {
  Call call;
  EXPECT_NO_THROW(call.run());
}

TEST(Errors, Tensors) {
  const std::pair<const char*, Tensor Call::*> tensors[] = {
      {"query", &Call::query}, {"key", &Call::key}, {"value", &Call::value}, {"out", &Call::out}};
  for (const auto& [name, tensor] : tensors) {
    const auto member = tensor;
    expect_all({
        {{name, "-3"}, [=](Call& c) { (c.*member).shape[2] = -3; }},
        {{name, "-1"}, [=](Call& c) { (c.*member).shape[0] = -1; }},
        {{name, "dim 0"}, [=](Call& c) { (c.*member).shape[3] = 0; }},
        {{name, "dim 257", "256"}, [=](Call& c) { (c.*member).shape[3] = 257; }},
        {{name, "stride 2"}, [=](Call& c) { (c.*member).stride[3] = 2; }},
        {{name, "no data"}, [=](Call& c) { (c.*member).data = nullptr; }},
        {{name, "type i8"}, [=](Call& c) { (c.*member).type = DType::i8; }, ErrorCode::unsupported},
        {{name, "type e4m3"}, [=](Call& c) { (c.*member).type = DType::e4m3; }, ErrorCode::unsupported},
    });
  }
}

TEST(Errors, ShapesThatDoNotFit) {
  expect_all({
      {{"key", "value", "[1, 2, 9, 8]", "[1, 2, 8, 8]"}, [](Call& c) { c.value.shape[2] = 8; }},
      {{"query", "batch 1", "0"}, [](Call& c) { c.key.shape[0] = c.value.shape[0] = 0; }},
      {{"query", "dim 7", "8"}, [](Call& c) { c.query.shape[3] = c.out.shape[3] = 7; }},
      {{"4 heads", "3"}, [](Call& c) { c.key.shape[1] = c.value.shape[1] = 3; }},
      {{"4 heads", "0"}, [](Call& c) { c.key.shape[1] = c.value.shape[1] = 0; }},
      {{"out", "[1, 4, 5, 8]", "[1, 4, 6, 8]"}, [](Call& c) { c.out.shape[2] = 5; }},
      {{"lse", "f32", "f16"}, [](Call& c) { c.lse.type = DType::f16; }},
      {{"lse", "[1, 4, 6, 1]", "[1, 4, 7, 1]"}, [](Call& c) { c.lse.shape[2] = 7; }},
      {{"key is on cuda:0", "query on cpu:0", "one device"}, [](Call& c) { c.key.device = Device::cuda; }},
      {{"out is on cuda:0", "query on cpu:0", "one device"}, [](Call& c) { c.out.device = Device::cuda; }},
      {{"lse is on cpu:1", "query on cpu:0", "one device"}, [](Call& c) { c.lse.device_id = 1; }},
      {{"lse has no data", "[1, 4, 6, 1]"}, [](Call& c) { c.lse.data = nullptr; }},
  });
}

// These are refused before anything is made for a call, because such sizes would overflow, or take for ever.
TEST(Errors, SizesAndStridesThatNothingCanHave) {
  constexpr std::int64_t huge = std::int64_t{1} << 62;
  const auto in_all = [](std::size_t dimension, std::int64_t size) {
    return [=](Call& c) {
      for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) {
        t->shape[dimension] = size;
        t->stride[dimension] = 0;
      }
    };
  };
  expect_all({
      {{"query has batch 4194305", "at most 4194304"}, in_all(0, max_heads + 1)},
      {{"query has 4194305 heads", "at most 4194304"}, in_all(1, max_heads + 1)},
      {{"query has 2147483648 tokens", "at most 2147483647"}, in_all(2, max_tokens + 1)},
      {{"query has batch"}, in_all(0, huge)},
      {{"query has", "heads"}, in_all(1, huge)},
      {{"query has", "tokens"}, in_all(2, huge)},
      {{"query has shape [1, 1024, 2147483647, 8]", "at most 4398046511104 elements"},
       [=](Call& c) {
         in_all(1, 1024)(c);
         in_all(2, max_tokens)(c);
       }},
      {{"query has shape [4194304, 4194304, 0, 8]", "elements"},  // an empty tensor has sequences and heads still
       [=](Call& c) {
         in_all(0, max_heads)(c);
         in_all(1, max_heads)(c);
         in_all(2, 0)(c);
       }},
      {{"key has stride 4611686018427387904 between 9 tokens"}, [=](Call& c) { c.key.stride[2] = huge; }},
      {{"value has stride -9223372036854775808 between 2 heads"},
       [](Call& c) { c.value.stride[1] = std::numeric_limits<std::int64_t>::min(); }},
      {{"lse has stride 4611686018427387904 between 4 heads"}, [=](Call& c) { c.lse.stride[1] = huge; }},
      {{"query starts are of 4194305 sequences"},
       [](Call& c) { c.query_starts = c.key_starts = std::vector<std::int64_t>(static_cast<std::size_t>(max_heads) + 2); }},
  });
  Call c;
  Tensor broadcast = c.key;
  broadcast.shape = {1, 1, huge, 16};
  broadcast.stride = {0, 0, 0, 1};
  expect_error([&] { quantize(broadcast, Role::key, recipes::chitu); }, ErrorCode::bad_argument, {"key", "tokens"});
  broadcast.shape = {1, max_heads, max_tokens, 256};
  expect_error([&] { quantize(broadcast, Role::key, recipes::chitu); }, ErrorCode::bad_argument, {"key", "elements"});
}

TEST(Errors, ResultsWithoutMemoryOfTheirOwn) {
  expect_all({
      {{"out has stride 0 between heads"}, [](Call& c) { c.out.stride[1] = 0; }},
      {{"out has stride 0 between tokens"}, [](Call& c) { c.out.stride[2] = 0; }},
      {{"lse has stride 0 between tokens"}, [](Call& c) { c.lse.stride[2] = 0; }},
  });
  Call c;
  c.out.stride[0] = c.lse.stride[0] = 0;  // between one batch entry and none
  EXPECT_NO_THROW(c.run());
  for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) {
    t->shape[2] = 0;
    t->stride = contiguous_strides(t->shape);
  }
  EXPECT_NO_THROW(c.run());
}

TEST(Errors, NoHeadsAreNoError) {
  for (const Method& method : methods) {
    SCOPED_TRACE(method.name);
    Call c;
    c.options.recipe = method.recipe;
    for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) t->shape[1] = 0;
    EXPECT_NO_THROW(c.run());
    const Quantized keys = quantize(c.key, Role::key, method.recipe);
    const Quantized queries = quantize(c.query, Role::query, method.recipe, {.keys = &keys});
    EXPECT_NO_THROW(attention(queries, keys, c.value, {c.out, c.lse}, c.options));
  }
}

TEST(Errors, Options) {
  static constexpr Positions one[] = {{3, 1}}, two[] = {{3, 1}, {3, 0}};
  expect_all({
      {{"window", "-1"}, [](Call& c) { c.options.window.left = -1; }},
      {{"window", "-7"}, [](Call& c) { c.options.window.right = -7; }},
      {{"scale", "nan"}, [](Call& c) { c.options.scale = std::numeric_limits<float>::quiet_NaN(); }},
      {{"scale", "inf"}, [](Call& c) { c.options.scale = std::numeric_limits<float>::infinity(); }},
      {{"key_positions", "step 0"},
       [](Call& c) {
         c.options.key_positions = Positions{0, 0};
       }},
      {{"query_positions", "step -2", "1 ... 2147483647"},
       [](Call& c) {
         c.options.query_positions = Positions{0, -2};
       }},
      {{"query_positions begin at 2305843009213693951", "between -576460752303423487 and 576460752303423487"},
       [](Call& c) {
         c.options.query_positions = Positions{unbounded, 1};
       }},
      {{"key_positions begin at -2305843009213693951"},
       [](Call& c) {
         c.options.key_positions = Positions{-unbounded, 1};
       }},
      {{"key_positions", "step 2147483648", "1 ... 2147483647"},
       [](Call& c) {
         c.options.key_positions = Positions{0, std::int64_t{1} << 31};
       }},
      {{"query_positions and query_positions_of are both given"},
       [](Call& c) {
         c.options.query_positions = Positions{};
         c.options.query_positions_of = one;
       }},
      {{"key_positions and key_positions_of are both given"},
       [](Call& c) {
         c.options.key_positions = Positions{};
         c.options.key_positions_of = one;
       }},
      {{"query_positions_of have 2 entries, but there are 1 sequences"}, [](Call& c) { c.options.query_positions_of = two; }},
      {{"key_positions_of have 1 entries, but there are 2 sequences"},
       [](Call& c) {
         c.query_starts = {0, 2, 6}, c.key_starts = {0, 2, 9};
         c.options.key_positions_of = one;
       }},
      {{"query_positions_of[1] have step 0"},
       [](Call& c) {
         c.query_starts = {0, 2, 6}, c.key_starts = {0, 2, 9};
         c.options.query_positions_of = two;
       }},
      {{"threads", "-1"}, [](Call& c) { c.options.threads = -1; }},
      {{"threads is 2", "on a GPU"},
       [](Call& c) {
         c.options.threads = 2;
         for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) t->device = Device::cuda;
       }},
      {{"stream", "on the CPU"}, [](Call& c) { c.options.stream = &c; }},
      {{"threads", "1000000"}, [](Call& c) { c.options.threads = 1000000; }},
      {{"kernel", "cpu.magic", "cpu.portable"}, [](Call& c) { c.options.kernel = "cpu.magic"; }},
      {{"workspace is given", "on the CPU"}, [](Call& c) { c.options.workspace = reinterpret_cast<void*>(std::uintptr_t{256}); }},
      {{"workspace is null", "workspace_bytes is 64"}, [](Call& c) { c.options.workspace_bytes = 64; }},
  });
}

TEST(Errors, Starts) {
  const auto both = [](std::vector<std::int64_t> query, std::vector<std::int64_t> key) {
    return [=](Call& c) {
      c.query_starts = query;
      c.key_starts = key;
    };
  };
  expect_all({
      {{"query", "batch 2"},
       [](Call& c) {
         c.query_starts = c.key_starts = {0, 6};
         c.query.shape[0] = 2;
       }},
      {{"query", "1 entries"}, both({0}, {0, 9})},
      {{"query", "begin at 1"}, both({1, 6}, {0, 9})},
      {{"key", "fall from 10 to 9 at index 2"}, both({0, 2, 6}, {0, 10, 9})},
      {{"key", "end at 8", "9 tokens"}, both({0, 6}, {0, 8})},
      {{"query_starts have 3", "2"}, both({0, 2, 6}, {0, 9})},
      {{"query_starts have 2", "0"}, both({0, 6}, {})},
  });
}

TEST(Errors, Recipes) {
  const auto recipe = [](Recipe from, const std::function<void(Recipe&)>& change) {
    change(from);
    return [from](Call& c) { c.options.recipe = from; };
  };
  expect_all({
      {{"recipe", "query and key", "INT8"}, recipe(recipes::sage, [](Recipe& r) { r.key = {}; })},
      {{"recipe", "rotated alike"}, recipe(recipes::chitu, [](Recipe& r) { r.key.rotated = false; })},
      {{"recipe", "u8 weights"}, recipe(recipes::chitu, [](Recipe& r) { r.weights = {}; })},
      {{"recipe", "weights", "bf16"}, recipe(recipes::sage, [](Recipe& r) { r.weights.type = DType::bf16; })},
      {{"recipe", "top 0"}, recipe(recipes::sage, [](Recipe& r) { r.weights.top = 0; })},
      {{"recipe", "top 449", "448"}, recipe(recipes::sage2, [](Recipe& r) { r.weights.top = 449; })},
      {{"recipe", "weights by tile"}, recipe(recipes::chitu, [](Recipe& r) { r.weights.by_tile = false; })},
      {{"recipe", "no quantiser", "u8"}, recipe(recipes::sage, [](Recipe& r) { r.query.type = DType::u8; }), ErrorCode::unsupported},
      {{"recipe", "no quantiser", "i8"}, recipe(recipes::sage, [](Recipe& r) { r.key.scaling = Scaling::tile; }), ErrorCode::unsupported},
      {{"recipe", "no quantiser", "i8"}, recipe(recipes::sage, [](Recipe& r) { r.value = r.key; }), ErrorCode::unsupported},
      {{"recipe", "declared f32", "f16"}, recipe(recipes::exact, [](Recipe& r) { r.value.type = DType::f16; })},
      {{"recipe", "groups {3, 1}"},
       recipe(recipes::sage,
              [](Recipe& r) {
                r.query.groups = {3, 1};
              })},
      {{"recipe", "groups {256, 1}"},
       recipe(recipes::sage,
              [](Recipe& r) {
                r.query.groups = {256, 1};
              })},
      {{"recipe", "groups {16, 3}"},
       recipe(recipes::sage,
              [](Recipe& r) {
                r.query.groups = {16, 3};
              })},
      {{"recipe", "groups {4, 2}"},
       recipe(recipes::sage,
              [](Recipe& r) {
                r.query.groups = {4, 2};
              })},
      {{"recipe", "centred"}, recipe(recipes::fp8, [](Recipe& r) { r.key.centre = Centre::mean; })},
      {{"recipe", "centred"}, recipe(recipes::sage, [](Recipe& r) { r.query.centre = Centre::mean; })},
      {{"recipe", "rotated"}, recipe(recipes::fp8, [](Recipe& r) { r.query.rotated = r.key.rotated = true; })},
      {{"recipe", "rotated"}, recipe(recipes::chitu, [](Recipe& r) { r.value.rotated = true; })},
      {{"recipe", "sorted", "groups of 128"}, recipe(recipes::sage, [](Recipe& r) { r.key.sorted = true; })},
      {{"recipe", "sorted", "keys"},
       recipe(recipes::sage2,
              [](Recipe& r) {
                r.query.groups = {128, 4};
                r.query.sorted = true;
              })},
      {{"recipe", "sorted", "INT8"}, recipe(recipes::fp8, [](Recipe& r) { r.key.sorted = true; })},
      {{"recipe", "sorted", "INT8"}, recipe(recipes::exact, [](Recipe& r) { r.key.sorted = true; })},
      {{"recipe", "sorted", "keys"}, recipe(recipes::chitu, [](Recipe& r) { r.value.sorted = true; })},
  });
}

TEST(Errors, OperandsOfAnotherCall) {
  Call c;
  const Recipe &chitu = recipes::chitu, &sage = recipes::sage;
  const Quantized keys = quantize(c.key, Role::key, chitu), values = quantize(c.value, Role::value, chitu);
  const Quantized queries = quantize(c.query, Role::query, chitu, {.keys = &keys}), plain_queries = quantize(c.query, Role::query, chitu);
  const auto call = [&](const Operand& q, const Operand& k, const Operand& v, const Tensor& lse) {
    return [&, q, k, v, lse] { attention(q, k, v, {c.out, lse}, c.options); };
  };
  const auto bad = ErrorCode::bad_argument;
  EXPECT_NO_THROW(call(queries, keys, values, c.lse)());
  EXPECT_NO_THROW(call(plain_queries, c.key, values, {})());  // no LSE, no correction needed
  expect_error(call(keys, keys, values, {}), bad, {"query", "another operand: as key, not as query"});
  expect_error(call(c.query, values, values, {}), bad, {"key", "another operand: as value, not as key"});
  expect_error(call(c.query, keys, keys, {}), bad, {"value", "another operand: as key, not as value"});
  expect_error(call(plain_queries, keys, values, c.lse), bad, {"query", "without keys", "QuantizeOptions::keys"});
  expect_error(call(queries, c.key, values, c.lse), bad, {"key is not quantised"});

  const Quantized other_keys = quantize(c.key, Role::key, sage);
  expect_error(call(c.query, other_keys, values, {}), bad, {"key", "another recipe"});
  Array shifted(DType::f32, c.key.shape);
  shifted.fill([](auto...) { return 2.f; });
  const Quantized shifted_keys = quantize(shifted, Role::key, chitu);
  expect_error(call(queries, shifted_keys, values, c.lse), bad, {"query", "another centre"});

  c.options.recipe.key.centre = Centre::none;
  expect_error(call(queries, c.key, values, c.lse), bad, {"query", "this recipe's have none"});
  c.options.recipe = chitu;

  const std::vector<std::int64_t> starts{0, 4, 9}, query_starts{0, 3, 6};
  c.options.query_starts = query_starts;
  c.options.key_starts = starts;
  expect_error(call(c.query, keys, c.value, {}), bad, {"key", "other sequence starts"});
  const Quantized packed = quantize(c.key, Role::key, chitu, {.starts = starts});
  EXPECT_NO_THROW(call(c.query, packed, c.value, {})());
  c.options.query_starts = c.options.key_starts = {};
  expect_error(call(c.query, packed, c.value, {}), bad, {"key", "other sequence starts"});
}

TEST(Errors, Quantize) {
  Call c;
  const auto bad = ErrorCode::bad_argument;
  const auto run = [&](const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options) {
    return [=] { quantize(x, role, recipe, options); };
  };
  Tensor wrong = c.key;
  wrong.shape[3] = 300;
  expect_error(run(wrong, Role::key, recipes::chitu, {}), bad, {"key", "300"});
  wrong = c.value;
  wrong.type = DType::u8;
  expect_error(run(wrong, Role::value, recipes::chitu, {}), ErrorCode::unsupported, {"value", "u8"});
  wrong = c.query;
  wrong.device = Device::cuda;
  expect_error(run(wrong, Role::query, recipes::chitu, {}), ErrorCode::unsupported, {"query", "GPU"});

  expect_error(run(c.key, Role::key, recipes::chitu, {.threads = -2}), bad, {"threads", "-2"});
  const std::vector<std::int64_t> starts{0, 5};
  expect_error(run(c.key, Role::key, recipes::chitu, {.starts = starts}), bad, {"key", "end at 5", "9 tokens"});

  const Quantized keys = quantize(c.key, Role::key, recipes::chitu), values = quantize(c.value, Role::value, recipes::chitu);
  expect_error(run(c.value, Role::value, recipes::chitu, {.keys = &keys}), bad, {"keys", "value"});
  expect_error(run(c.query, Role::query, recipes::chitu, {.keys = &values}), bad, {"keys", "another operand: as value"});
  Array odd(DType::f32, {1, 3, 6, 8});
  odd.fill([](auto...) { return 1.f; });
  expect_error(run(odd, Role::query, recipes::chitu, {.keys = &keys}), bad, {"keys", "2 heads", "3 heads"});

  Array vector(DType::f32, {1, 2, 1, 8});
  vector.fill([](auto...) { return 1.f; });
  EXPECT_NO_THROW(run(c.key, Role::key, recipes::chitu, {.centre = vector})());
  EXPECT_NO_THROW(run(c.value, Role::value, recipes::chitu, {.channels = vector})());
  expect_error(run(c.key, Role::key, recipes::int8, {.centre = vector}), bad, {"centre", "does not centre"});
  expect_error(run(c.key, Role::key, recipes::chitu, {.channels = vector}), bad, {"channels", "no channel vector"});
  wrong = vector;
  wrong.shape[1] = 1;
  expect_error(run(c.key, Role::key, recipes::chitu, {.centre = wrong}), bad, {"centre", "[1, 2, 1, 8]"});
  wrong = vector;
  wrong.device = Device::cuda;
  expect_error(run(c.key, Role::key, recipes::chitu, {.centre = wrong}), bad, {"centre", "centre is on cuda:0, the tensor on cpu:0"});
  wrong = vector;
  wrong.type = DType::f16;
  expect_error(run(c.value, Role::value, recipes::chitu, {.channels = wrong}), bad, {"channels", "f32"});
  for (const float x : {0.f, -1.f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    vector.set(0, 1, 0, 3, x);
    expect_error(run(c.value, Role::value, recipes::chitu, {.channels = vector}), bad, {"channels", "positive"});
  }
  for (const float x : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    vector.set(0, 1, 0, 3, x);
    expect_error(run(c.key, Role::key, recipes::chitu, {.centre = vector}), bad, {"centre", "finite"});
  }
}

TEST(Errors, Merge) {
  Call a, b, result;
  const auto run = [&] { merge({a.out, a.lse}, {b.out, b.lse}, {result.out, result.lse}); };
  const auto expect = [&](Tensor& spoilt, const std::function<void(Tensor&)>& spoil, ErrorCode code,
                          const std::vector<std::string>& parts) {
    const Tensor right = spoilt;
    spoil(spoilt);
    expect_error(run, code, parts);
    spoilt = right;
  };
  const auto bad = ErrorCode::bad_argument;
  EXPECT_NO_THROW(run());
  expect(b.out, [](Tensor& t) { t.shape[2] = 5; }, bad, {"out of b", "[1, 4, 5, 8]", "[1, 4, 6, 8]", "one shape"});
  expect(b.lse, [](Tensor& t) { t = {}; }, bad, {"b", "no lse"});
  expect(b.lse, [](Tensor& t) { t.data = nullptr; }, bad, {"lse of b", "no data"});
  expect(a.lse, [](Tensor& t) { t.type = DType::bf16; }, bad, {"lse of a", "f32 [1, 4, 6, 1]", "bf16 [1, 4, 6, 1]"});
  expect(result.lse, [](Tensor& t) { t.shape[1] = 1; }, bad, {"lse of result", "[1, 1, 6, 1]"});
  for (Tensor* lse : {&a.lse, &b.lse, &result.lse})
    expect(*lse, [](Tensor& t) { t.device = Device::cuda; }, bad, {"lse of", "is on cuda:0, out of the first part on cpu:0"});
  expect(result.out, [](Tensor& t) { t.stride[1] = 0; }, bad, {"out of result", "stride 0 between heads"});
  expect(result.lse, [](Tensor& t) { t.stride[2] = 0; }, bad, {"lse of result", "stride 0 between tokens"});
  const Tensor one_for_all_heads = a.out;
  a.out.stride[1] = 0;
  EXPECT_NO_THROW(run());  // what is only read may be a broadcast view
  a.out = one_for_all_heads;
  expect(result.out, [](Tensor& t) { t.stride[3] = 3; }, bad, {"result", "stride 3"});
  expect(a.out, [](Tensor& t) { t.type = DType::i8; }, ErrorCode::unsupported, {"a", "i8"});
  expect(a.out, [](Tensor& t) { t.device = Device::cuda; }, bad, {"lse of a is on cpu:0, out of the first part on cuda:0"});
  expect(b.out, [](Tensor& t) { t.device = Device::cuda; }, bad, {"out of b is on cuda:0", "one device"});
}

TEST(Errors, MergeOfParts) {
  Call a, b, c, result;
  MergeOptions options;
  const auto run = [&] {
    const Output parts[] = {{a.out, a.lse}, {b.out, b.lse}, {c.out, c.lse}};
    merge(parts, {result.out, result.lse}, options);
  };
  const auto bad = ErrorCode::bad_argument;
  EXPECT_NO_THROW(run());
  expect_error([&] { merge({}, {result.out, result.lse}); }, bad, {"merge: there are no parts"});
  c.out.shape[3] = 7;
  expect_error(run, bad, {"out of part 2", "[1, 4, 6, 7]", "first part [1, 4, 6, 8]"});
  c.out = a.out;
  b.lse = {};
  expect_error(run, bad, {"part 1 has no lse"});
  b.lse = a.lse;
  options.stream = &options;
  expect_error(run, bad, {"stream", "on the CPU"});
  options = {.threads = -3};
  expect_error(run, bad, {"threads is -3"});
  options.threads = 2;
  EXPECT_NO_THROW(run());
  for (Tensor* t : {&a.out, &a.lse, &b.out, &b.lse, &c.out, &c.lse, &result.out, &result.lse}) t->device = Device::cuda;
  expect_error(run, bad, {"threads is 2", "on a GPU"});
  options.threads = 0;
  EXPECT_THROW(run(), Error);  // its memory is no GPU's
  c.lse.device_id = 1;
  expect_error(run, bad, {"lse of part 2 is on cuda:1, out of the first part on cuda:0"});
}

// Starts in GPU memory: they are never looked at here.
TEST(Errors, StartsOnAGpu) {
  static constexpr std::int32_t starts[] = {0, 2, 6}, one[] = {0};
  const auto on_gpu = [](const std::function<void(Options&)>& change) {
    return [change](Call& c) {
      for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) t->device = Device::cuda;
      c.options.device_query_starts = c.options.device_key_starts = starts;
      c.options.max_queries = c.options.max_keys = 4;
      change(c.options);
    };
  };
  expect_all({
      {{"max_queries is 0", "1 or more"}, on_gpu([](Options& o) { o.max_queries = 0; })},
      {{"max_keys -1"}, on_gpu([](Options& o) { o.max_keys = -1; })},
      {{"device_query_starts have 3 entries, device_key_starts 0"}, on_gpu([](Options& o) { o.device_key_starts = {}; })},
      {{"device_query_starts have 1 entries", "one more"}, on_gpu([](Options& o) { o.device_query_starts = o.device_key_starts = one; })},
      {{"are null, but have 3 entries"}, on_gpu([](Options& o) {
         o.device_key_starts = {static_cast<const std::int32_t*>(nullptr), std::size_t{3}};
       })},
      {{"query_positions_of have 1 entries, but there are 2 sequences"}, on_gpu([](Options& o) {
         static constexpr Positions positions[] = {{0, 1}};
         o.query_positions_of = positions;
       })},
      {{"max_queries is 3 and max_keys 0", "no device_query_starts"}, [](Call& c) { c.options.max_queries = 3; }},
      {{"check_device_lengths is set"}, [](Call& c) { c.options.check_device_lengths = true; }},
      {{"query_starts and device_query_starts are both given"},
       [&](Call& c) {
         on_gpu([](Options&) {})(c);
         c.query_starts = {0, 6}, c.key_starts = {0, 9};
       }},
      {{"device_query_starts are given, but the tensors are on the CPU"},
       [&](Call& c) {
         on_gpu([](Options&) {})(c);
         for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) t->device = Device::cpu;
       }},
  });
}

TEST(Errors, LengthsOfAPaddedBatch) {
  static constexpr std::int64_t negative[] = {-1}, too_long[] = {1000}, two[] = {1, 1}, starts[] = {0, 6}, key_starts[] = {0, 9},
                                one[] = {1};
  static constexpr std::int32_t on_gpu[] = {1};
  expect_all({
      {{"key_lengths[0] is -1", "0 ... "}, [](Call& c) { c.options.key_lengths = negative; }},
      {{"key_lengths[0] is 1000", "keys of the tensor"}, [](Call& c) { c.options.key_lengths = too_long; }},
      {{"key_lengths have 2 entries, but there are 1 batch entries"}, [](Call& c) { c.options.key_lengths = two; }},
      {{"key_lengths are given with starts"},
       [](Call& c) {
         c.query_starts = {std::begin(starts), std::end(starts)}, c.key_starts = {std::begin(key_starts), std::end(key_starts)};
         c.options.key_lengths = one;
       }},
      {{"device_key_lengths are given, but the tensors are on the CPU: give key_lengths"},
       [](Call& c) { c.options.device_key_lengths = on_gpu; }},
      {{"key_lengths and device_key_lengths are both given"},
       [](Call& c) { c.options.key_lengths = one, c.options.device_key_lengths = on_gpu; }},
      {{"device_key_lengths are null, but have 1 entries"},
       [](Call& c) {
         for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) t->device = Device::cuda;
         c.options.device_key_lengths = {static_cast<const std::int32_t*>(nullptr), std::size_t{1}};
       }},
  });
}

TEST(Errors, FindMethodListsTheMethods) {
  for (const Method& method : methods) EXPECT_EQ(find_method(method.name).recipe, method.recipe);
  expect_error([] { find_method("sage3"); }, ErrorCode::bad_argument, {"sage3", "exact", "sage2", "int8-half", "chitu"});
}

TEST(Explain, SaysWhyEachKernelIsRefusedOrTaken) {
  Call c;
  const Output output{c.out, c.lse};
  c.options.recipe = recipes::sage;
  c.options.kernel = "cpu.portable";
  const std::string text = explain(c.query, c.key, c.value, output, c.options);
  EXPECT_NE(text.find("cpu.portable (scores in int8, weights in f32): takes it\n"), std::string::npos) << text;
  EXPECT_NE(text.find("cpu.portable (scores in int8, weights in int8): computes weights . values in int8, the recipe does not\n"),
            std::string::npos)
      << text;
  c.options.kernel = {};
  for (const Method& method : methods) {
    c.options.recipe = method.recipe;
    const std::string all = explain(c.query, c.key, c.value, output, c.options);
    EXPECT_EQ(all.substr(all.rfind(": ") + 2), "takes it\n") << method.name;
  }
  c.query.stride[3] = 2;
  expect_error([&] { explain(c.query, c.key, c.value, output, c.options); }, ErrorCode::bad_argument, {"query", "stride"});
}

// A workspace is planned before there are tensors.
TEST(Explain, NeedsNoDataAndNeitherDoesTheWorkspace) {
  Call c;
  for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) t->data = nullptr;
  const Output output{c.out, c.lse};
  EXPECT_NE(explain(c.query, c.key, c.value, output, c.options).find("takes it"), std::string::npos);
  EXPECT_EQ(workspace_size(c.query, c.key, c.value, output, c.options), 0u);
  expect_error([&] { c.run(); }, ErrorCode::bad_argument, {"query has no data"});
  c.lse.shape[2] = 7;
  expect_error(
      [&] {
        workspace_size(c.query, c.key, c.value, {c.out, c.lse}, c.options);
      },
      ErrorCode::bad_argument, {"lse", "[1, 4, 7, 1]"});
}

TEST(Explain, TheErrorGivesTheSameReasons) {
  Call c;
  c.options.kernel = "cpu.reference";
  for (Tensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse}) t->device = Device::cuda;
  expect_error([&] { c.run(); }, ErrorCode::unsupported,
               {"no kernel takes this call", "cpu.reference", "is for tensors in CPU memory", "cpu.portable"});
}

TEST(Kernels, AreListedByName) {
  bool portable = false, reference = false;
  for (const KernelInfo& kernel : kernels()) {
    EXPECT_FALSE(kernel.name.empty() || kernel.scores.empty() || kernel.weights.empty());
    portable |= kernel.name == "cpu.portable" && kernel.available;
    reference |= kernel.name == "cpu.reference" && kernel.available;
  }
  EXPECT_TRUE(portable && reference) << "these two run anywhere";
}

}  // namespace
}  // namespace chitu::test
