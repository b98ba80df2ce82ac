// SPDX-License-Identifier: Apache-2.0
// How far the GPU may be from exact attention: the bounds that core's bars_test.cpp holds the CPU to (docs/numerics.md, "Tolerances").
#include <algorithm>
#include <string>

#include "../core/data.h"
#include "../core/oracle.h"
#include "common/numbers.h"
#include "support.h"
#ifdef CHITU_TEST_DATA  // with the command, whose reader of files the test borrows
#include "cli/files/files.h"
#endif

namespace chitu::test {
namespace {

GpuResult run(const Data& d, const Options& options) { return attend_on_gpu(d.query, d.key, d.value, options, DType::f16); }
oracle::Exact truth(const Data& d, const Options& options = {}) { return oracle::attention({d.query, d.key, d.value, options}); }

// relative L1 of the double reference of sage2.
double reference_of_sage2(const Data& d, const std::vector<double>& exact, const Window& window = everything) {
  const Result r =
      attend(d.query.tensor(), d.key.tensor(), d.value.tensor(), {.recipe = recipes::sage2, .window = window, .kernel = "cpu.reference"});
  return relative_l1(r.out.numbers(), exact);
}

class GpuBars : public NeedsGpu<testing::TestWithParam<Method>> {};

TEST_P(GpuBars, NormalData) {
  const auto& [method, summary, origin, recipe] = GetParam();
  const Bar& bar = bar_of(method);
  for (const std::int64_t dim : {64, 128, 96, 256})
    for (const DType type : {DType::f16, DType::bf16})
      for (const Window& window : {everything, causal}) {
        SCOPED_TRACE("dim " + std::to_string(dim) + ", " + name(type) + (window == causal ? ", causal" : ""));
        Random random(8);
        const Data d = normal_data(random, 128, 2048, dim, type);
        const oracle::Exact exact = truth(d, {.window = window});
        const GpuResult got = run(d, {.recipe = recipe, .window = window});
        EXPECT_LE(relative_l1(got.out, exact.out), bar.l1 + gpu_rounding(recipe, type, DType::f16));
        const Difference lse = difference(got.lse, exact.lse);
        const bool is_exact = recipe == recipes::exact;
        EXPECT_LE(lse.largest, is_exact ? 3e-4 : bar.lse_largest);
        EXPECT_LE(lse.mean, is_exact ? 3e-5 : bar.lse_mean);
      }
}

INSTANTIATE_TEST_SUITE_P(All, GpuBars, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

class GpuInexactBars : public NeedsGpu<testing::TestWithParam<Method>> {};

// A method that silently ran another's kernel would pass every other bar.
TEST_P(GpuInexactBars, FarEnoughFromExact) {
  Random random(21);
  const Data d = normal_data(random, 64, 1024, 64, DType::f16);
  const double error = relative_l1(run(d, {.recipe = GetParam().recipe}).out, truth(d).out);
  EXPECT_GE(error, bar_of(GetParam().name).l1 / 4);
}

std::vector<Method> all_but_exact() {
  std::vector<Method> all;
  for (const Method& method : methods)
    if (!(method.recipe == recipes::exact)) all.push_back(method);
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, GpuInexactBars, testing::ValuesIn(all_but_exact()),
                         [](const auto& info) { return test_name(info.param.name); });

using Gpu = NeedsGpu<testing::Test>;

TEST_F(Gpu, ErrorDoesNotGrowTo64KKeys) {
  for (const std::int64_t dim : {64, 128}) {
    Random random(27);
    const Data d = normal_data(random, 24, 65536, dim, DType::bf16);
    const oracle::Exact exact = truth(d);
    const GpuResult got = run(d, {.recipe = recipes::chitu});
    EXPECT_LE(relative_l1(got.out, exact.out), .019) << "dim " << dim;
    EXPECT_LE(difference(got.lse, exact.lse).largest, 1e-2);
  }
}

TEST_F(Gpu, AMillionKeys) {
  Random random(9);
  Data d;
  d.query = normal(random, DType::f16, {1, 1, 200, 64});
  // Random numbers are slow, so a few are repeated, with a period that no tile divides.
  constexpr std::int64_t period = 65411;
  for (Array* x : {&d.key, &d.value}) {
    const std::vector<float> numbers = normal(random, DType::f16, {1, 1, period, 64}).numbers();
    *x = Array(DType::f16, {1, 1, 1 << 20, 64});
    x->fill([&](auto, auto, std::int64_t t, std::int64_t c) { return numbers[static_cast<std::size_t>(t % period * 64 + c)]; });
  }
  const Result truth =
      attend(d.query.tensor(), d.key.tensor(), d.value.tensor(), {.recipe = recipes::exact, .window = causal});  // fp32, good to 1e-5
  for (const Method& method : {find_method("chitu"), find_method("sage2"), find_method("exact")}) {
    const GpuResult got = run(d, {.recipe = method.recipe, .window = causal});
    // Tensor cores cut off what fp32 cannot hold. That shows after 65536 sums in place.
    const double sums = method.recipe == recipes::exact ? 1e-3 : 0;
    EXPECT_LE(relative_l1(got.out, truth.out.numbers()),
              bar_of(method.name).l1 + gpu_rounding(method.recipe, DType::f16, DType::f16) + sums)
        << method.name;
    EXPECT_LE(difference(got.lse, to_double(truth.lse.numbers())).largest, 1e-2) << method.name;
  }
}

// ---- hard data, and real

class GpuHardData : public NeedsGpu<testing::TestWithParam<Hard>> {};

TEST_P(GpuHardData, ChituStaysWithinItsBoundAndBelowSage2) {
  const double part = GetParam().chitu < 1 ? .9 : 1;  // data without a bound of its own is a weak spot of both
  for (const DType type : {DType::f16, DType::bf16}) {
    SCOPED_TRACE(name(type));
    Random random(23);
    const Data d = GetParam().make(random, 96, type);
    const oracle::Exact exact = truth(d);
    const double chitu = relative_l1(run(d, {.recipe = recipes::chitu}).out, exact.out), sage2 = reference_of_sage2(d, exact.out);
    RecordProperty("chitu_" + std::string(name(type)), std::to_string(chitu));
    RecordProperty("sage2_" + std::string(name(type)), std::to_string(sage2));
    EXPECT_LE(chitu, GetParam().chitu);
    EXPECT_LE(chitu, part * sage2);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuHardData, testing::ValuesIn(hard_data()), [](const auto& info) { return std::string(info.param.name); });

#ifdef CHITU_TEST_DATA
// Captured heads: the last 512 queries over all keys.
TEST_F(Gpu, RealHeads) {
  for (const std::string file : {"gpt_d64", "gpt_d128"}) {
    SCOPED_TRACE(file);
    const std::string names[] = {"q", "k", "v"};
    const auto tensors = cli::read_safetensors(std::string(CHITU_TEST_DATA) + "/" + file + ".safetensors", names);
    const auto array = [](const Tensor& t) {
      Array copy(t.type, t.shape);
      copy.fill([&](auto b, auto h, auto token, auto c) { return load(row(t, b, h, token), t.type, c); });
      return copy;
    };
    const Tensor& q = tensors.at("q").tensor;
    const Data d{array(tokens_of(q, q.shape[2] - 512, q.shape[2])), array(tensors.at("k").tensor), array(tensors.at("v").tensor)};
    const oracle::Exact exact = truth(d, {.window = causal});
    const double chitu = relative_l1(run(d, {.recipe = recipes::chitu, .window = causal}).out, exact.out),
                 sage2 = reference_of_sage2(d, exact.out, causal);
    RecordProperty(file + "_chitu", std::to_string(chitu));
    RecordProperty(file + "_sage2", std::to_string(sage2));
    EXPECT_LE(chitu, .8 * sage2);
  }
}
#endif

}  // namespace
}  // namespace chitu::test
