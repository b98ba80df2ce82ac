// SPDX-License-Identifier: Apache-2.0
// What the GPU's rows refuse, and that they say why. Nothing here needs a GPU: the memory is never looked at.
#include <cstdint>
#include <functional>
#include <string>

#include "cuda/call.h"
#include "support.h"

namespace chitu::test {
namespace {

struct Call {
  Tensor query, key, value, out, lse;
  Options options;
};

Call call() {
  const Shape shape{2, 4, 300, 128};
  Tensor t = dense(reinterpret_cast<void*>(std::uintptr_t{1} << 20), DType::bf16, shape);
  t.device = Device::cuda;
  return {t, t, t, t, {}, {}};
}

std::string why(const Call& c) { return explain(c.query, c.key, c.value, {c.out, c.lse}, c.options); }

bool gets_as_far_as_the_gpu(const Call& c) {
  const std::string text = why(c), first = text.substr(0, text.find('\n'));
  return first.find("there is no GPU") != std::string::npos || first.find("is for compute capability 9.0") != std::string::npos ||
         first.find("memory is not on GPU") != std::string::npos;
}

TEST(GpuRefusals, AreByName) {
  const std::vector<std::pair<std::string, std::function<void(Call&)>>> cases{
      {"is for dims that are multiples of 8, not 100: pad with zeros and give the scale",
       [](Call& c) {
         for (Tensor* t : {&c.query, &c.key, &c.value, &c.out}) t->shape[3] = 100;
       }},
      {"takes query, key and value in one type, f16 or bf16, but they are bf16, f16, bf16", [](Call& c) { c.key.type = DType::f16; }},
      {"takes query, key and value in one type, f16 or bf16, but they are f32, f32, f32",
       [](Call& c) { c.query.type = c.key.type = c.value.type = DType::f32; }},
      {"writes f16 or bf16, but out is f32", [](Call& c) { c.out.type = DType::f32; }},
      {"key has stride 129 between tokens; rows must start at multiples of 16 bytes", [](Call& c) { c.key.stride[2] = 129; }},
      {"value has stride 153604 between batch entries", [](Call& c) { c.value.stride[0] += 4; }},
      {"out's memory starts at no multiple of 16 bytes", [](Call& c) { c.out.data = static_cast<std::byte*>(c.out.data) + 2; }},
      {"runs the library's methods only, and this recipe is not one of them", [](Call& c) { c.options.recipe.weights.top = 200; }},
      {"is for up to 2^30 tokens and tiles of all heads: give fewer heads a call",
       [](Call& c) {
         for (Tensor* t : {&c.key, &c.value}) t->shape[2] = (std::int64_t{1} << 30) + 1;
       }},
  };
  for (const auto& [text, change] : cases) {
    Call c = call();
    change(c);
    EXPECT_NE(why(c).find(text), std::string::npos) << text << "\n" << why(c);
    EXPECT_THROW(attention(c.query, c.key, c.value, {c.out, c.lse}, c.options), Error) << text;
  }
}

// The table of each architecture has every method at every padded dim in both types, and what it lacks is refused by name.
TEST(GpuTable, HasEveryMethod) {
  for (const cuda::Architecture* architecture : cuda::architectures())
    for (const Method& method : methods)
      for (const int dim : {64, 128, 256})
        for (const DType type : {DType::f16, DType::bf16}) {
          int found = 0;
          for (const cuda::AttentionKernel& k : architecture->kernels)
            found +=
                *k.recipe == method.recipe && k.dim == dim && k.input == type && k.form.dim == dim && !k.quantizes_queries && !k.direct;
          EXPECT_EQ(found, 1) << architecture->name << " " << method.name << " " << dim << " " << name(type);
        }
}

TEST(GpuTable, WhatItLacksIsRefusedByName) {
  const Call c = call();
  for (const Method& method : methods) {
    Options options = c.options;
    options.recipe = method.recipe;
    const Problem problem = describe(c.query, c.key, c.value, {c.out, c.lse}, options, Data::unread);
    for (const cuda::Architecture* whole : cuda::architectures()) {
      std::vector<cuda::AttentionKernel> others, other_dims;
      for (const cuda::AttentionKernel& k : whole->kernels) {
        if (*k.recipe != method.recipe) others.push_back(k);
        if (*k.recipe != method.recipe || (k.dim != 128 && !k.direct)) other_dims.push_back(k);
      }
      cuda::Architecture part = *whole;
      part.kernels = others;
      EXPECT_EQ(refusal(part, problem), "has no kernel for the method " + std::string(method.name));
      part.kernels = other_dims;
      EXPECT_EQ(refusal(part, problem), "has no kernel for this recipe in bf16 at dim 128");
    }
  }
}

// Nothing else is refused: every method, at any dim that is a multiple of 8, packed or not, gets as far as the question for a GPU.
TEST(GpuRefusals, AreNoMore) {
  const std::int64_t starts[] = {0, 100, 300};
  for (const Method& method : methods)
    for (const std::int64_t dim : {8, 64, 72, 128, 256})
      for (const bool packed : {false, true}) {
        Call c = call();
        c.options.recipe = method.recipe;
        for (Tensor* t : {&c.query, &c.key, &c.value, &c.out}) {
          t->shape = {packed ? 1 : 2, 4, 300, dim};
          t->stride = contiguous_strides(t->shape);
        }
        if (packed) c.options.query_starts = c.options.key_starts = starts;
        EXPECT_TRUE(gets_as_far_as_the_gpu(c)) << method.name << ", dim " << dim << ": " << why(c);
      }
}

// The limit on tiles is of what the kernels index: not of batch entries times the sequences that they are.
TEST(GpuRefusals, TakeManyShortSequences) {
  Call c = call();
  for (Tensor* t : {&c.query, &c.key, &c.value, &c.out}) {
    t->shape = {70000, 1, 64, 64};
    t->stride = contiguous_strides(t->shape);
  }
  EXPECT_TRUE(gets_as_far_as_the_gpu(c)) << why(c);
  for (Tensor* t : {&c.query, &c.key, &c.value, &c.out}) t->shape = {1 << 20, 1 << 11, 1, 64}, t->stride = contiguous_strides(t->shape);
  EXPECT_NE(why(c).find("is for up to 2^30 tokens and tiles of all heads"), std::string::npos) << why(c);
}

TEST(GpuRefusals, OperandsThatCameQuantised) {
  const Array k(DType::f32, {1, 1, 1, 128});
  Call c = call();
  Quantized quantized = quantize(k, Role::key, recipes::chitu);
  quantized.from = DType::f16;
  quantized.values = c.key;
  quantized.values.type = DType::i8;
  EXPECT_NE(explain(c.query, quantized, c.value, {c.out, {}}, c.options).find("key's block has 0 bytes, but "), std::string::npos);
}

TEST(GpuRefusals, SayWhatIsWrongWithTheDevice) {
  Call c = call();
  const std::string text = why(c);
  if (has_gpu())
    EXPECT_NE(text.find("query's memory is not on GPU 0"), std::string::npos) << text;
  else
    EXPECT_TRUE(text.find("there is no GPU") != std::string::npos || text.find("is for compute capability 9.0") != std::string::npos)
        << text;
  for (Tensor* t : {&c.query, &c.key, &c.value, &c.out}) t->device_id = 99;
  EXPECT_NE(why(c).find("there is no GPU"), std::string::npos) << why(c);
  c.key.device_id = 0;
  EXPECT_THROW(why(c), Error);
}

TEST(GpuRefusals, QuantizeTakesCpuMemory) {
  const Call c = call();
  EXPECT_THROW(quantize(c.key, Role::key, recipes::chitu), Error);
}

TEST(GpuRefusals, MergeSaysWhatIsWrongWithTheDevice) {
  const auto error_of = [](const Output& a, const Output& b) -> std::string {
    try {
      merge(a, b, a);
    } catch (const Error& e) {
      return e.what();
    }
    return {};
  };
  const Call c = call();
  Output part{c.out, c.out};
  part.lse.type = DType::f32;
  part.lse.shape[3] = 1;
  const std::string text = error_of(part, part);
  if (has_gpu())
    EXPECT_EQ(text, "merge: memory of out of part 0 is not on GPU 0, as its tensor says");
  else
    EXPECT_TRUE(text.find("there is no GPU") != std::string::npos || text.find("is for compute capability 9.0") != std::string::npos)
        << text;
  Output elsewhere = part;
  elsewhere.out.device_id = elsewhere.lse.device_id = 99;
  EXPECT_EQ(error_of(part, elsewhere), "merge: out of b is on cuda:99, out of the first part on cuda:0; all must be on one device");
  EXPECT_NE(error_of(elsewhere, elsewhere).find("there is no GPU"), std::string::npos) << error_of(elsewhere, elsewhere);
}

}  // namespace
}  // namespace chitu::test
