// SPDX-License-Identifier: Apache-2.0
// What the GPU's rows refuse, and that they say why. Nothing here needs a GPU: the memory is never looked at.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>

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

TEST(GpuRefusals, AreByName) {
  const std::int64_t starts[] = {0, 100, 300};
  const std::vector<std::pair<std::string, std::function<void(Call&)>>> cases{
      {"does the method chitu only", [](Call& c) { c.options.recipe = recipes::sage2; }},
      {"takes no packed sequences",
       [&](Call& c) {
         for (Tensor* t : {&c.query, &c.key, &c.value, &c.out}) t->shape[0] = 1;
         c.options.query_starts = c.options.key_starts = starts;
       }},
      {"is for dim 64 and 128, not 96",
       [](Call& c) {
         for (Tensor* t : {&c.query, &c.key, &c.value, &c.out}) t->shape[3] = 96;
       }},
      {"takes query, key and value in one type, f16 or bf16, but they are bf16, f16, bf16", [](Call& c) { c.key.type = DType::f16; }},
      {"writes f16 or bf16, but out is f32", [](Call& c) { c.out.type = DType::f32; }},
      {"key has stride 129 between tokens; rows must start at multiples of 16 bytes", [](Call& c) { c.key.stride[2] = 129; }},
      {"out's memory starts at no multiple of 16 bytes", [](Call& c) { c.out.data = static_cast<std::byte*>(c.out.data) + 2; }},
  };
  for (const auto& [text, change] : cases) {
    Call c = call();
    change(c);
    EXPECT_NE(why(c).find(text), std::string::npos) << text << "\n" << why(c);
    EXPECT_THROW(attention(c.query, c.key, c.value, {c.out, c.lse}, c.options), Error) << text;
  }
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

TEST(GpuRefusals, QuantizeAndMergeTakeCpuMemory) {
  const Call c = call();
  EXPECT_THROW(quantize(c.key, Role::key, recipes::chitu), Error);
  EXPECT_THROW(merge(c.out, c.out, c.out), Error);
}

}  // namespace
}  // namespace chitu::test
