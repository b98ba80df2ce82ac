// SPDX-License-Identifier: Apache-2.0
// The built program with --device cuda: results against the CPU's reference, and that its tables and files hold together. Which methods the
// GPU's kernels take is not written here: those that are refused must say why.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "../cli/support.h"
#include "cli/measure/data.h"
#include "cli/measure/gpu.h"
#include "cli/measure/statistics.h"

namespace chitu::cli::test {
namespace {

using Json = nlohmann::json;

constexpr int refused = 2;

class GpuCommand : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "there is no GPU";
  }
  std::string json() const { return " --json '" + (folder_ / "r.json").string() + "'"; }
  Json report() const { return Json::parse(read_bytes(folder_ / "r.json")); }

  Folder folder_;
};

HostTensor like(const Tensor& t) { return allocate(t.type, t.shape); }

TEST_F(GpuCommand, RunGivesWhatTheRecipeSaysInBothLayouts) {
  const Operands x = generate("outlier", {2, 4, 300, 64}, {2, 2, 333, 64}, DType::f16, 5);
  const HostTensor truth = like(x.query.tensor), true_lse = allocate(DType::f32, {2, 4, 300, 1});
  attention(x.query.tensor, x.key.tensor, x.value.tensor, {truth.tensor, true_lse.tensor}, {.window = causal, .kernel = "cpu.reference"});
  for (const std::string layout : {"bhsd", "bshd"}) {
    HostTensor in[3];
    const Tensor* const dense[] = {&x.query.tensor, &x.key.tensor, &x.value.tensor};
    for (int i = 0; i < 3; ++i) {
      const Tensor& from = *dense[i];
      Shape shape = from.shape;
      if (layout == "bshd") std::swap(shape[1], shape[2]);
      in[i] = allocate(from.type, shape);
      const Tensor to = as_bhsd(in[i].tensor, layout);
      for (std::int64_t b = 0; b < from.shape[0]; ++b)
        for (std::int64_t h = 0; h < from.shape[1]; ++h)
          for (std::int64_t t = 0; t < from.shape[2]; ++t) {
            const auto at = [&](const Tensor& y) {
              return static_cast<std::byte*>(y.data) + (b * y.stride[0] + h * y.stride[1] + t * y.stride[2]) * 2;
            };
            std::copy_n(at(from), from.shape[3] * 2, at(to));
          }
    }
    const NamedTensor tensors[] = {{"q", in[0].tensor}, {"k", in[1].tensor}, {"v", in[2].tensor}};
    write_safetensors(folder_ / "in.safetensors", tensors);
    const auto out_path = folder_ / "out.npy", lse_path = folder_ / "lse.npy";
    const Outcome o = chitu("run --device cuda --causal --input '" + (folder_ / "in.safetensors").string() + "' --layout " + layout +
                            " --out '" + out_path.string() + "' --lse '" + lse_path.string() + "'");
    ASSERT_EQ(o.status, 0) << o.error;
    const HostTensor out = read_npy(out_path);
    // The log-sum-exp is a file of rank 3: its numbers are the last bytes.
    const std::string lse_bytes = read_bytes(lse_path);
    const HostTensor lse = allocate(DType::f32, true_lse.tensor.shape);
    const std::size_t size = bytes_of(lse).size();
    ASSERT_GT(lse_bytes.size(), size);
    std::memcpy(lse.memory.get(), lse_bytes.data() + lse_bytes.size() - size, size);
    Comparison comparison(2, 4);
    comparison.add(as_bhsd(out.tensor, layout), lse.tensor, truth.tensor, true_lse.tensor, 0);
    EXPECT_LT(comparison.errors().relative_l1, 4e-3) << layout;
    EXPECT_LT(comparison.errors().lse_mean_diff, 1e-3) << layout;
  }
}

TEST_F(GpuCommand, RunRefusesWhatNoKernelTakes) {
  const Operands x = generate("normal", {1, 2, 64, 64}, {1, 2, 64, 64}, DType::f32, 5);
  const NamedTensor tensors[] = {{"q", x.query.tensor}, {"k", x.key.tensor}, {"v", x.value.tensor}};
  write_safetensors(folder_ / "in.safetensors", tensors);
  const Outcome o =
      chitu("run --device cuda --input '" + (folder_ / "in.safetensors").string() + "' --out '" + (folder_ / "o.npy").string() + "'");
  EXPECT_EQ(o.status, refused);
  EXPECT_NE(o.error.find("f32"), std::string::npos) << o.error;
  EXPECT_FALSE(std::filesystem::exists(folder_ / "o.npy"));
}

TEST_F(GpuCommand, BenchWritesCompleteAndConsistentRows) {
  const Outcome o =
      chitu("bench --device cuda --lengths 256,1K --tokens-per-call 4K --heads 4 --kv-heads 2 --dim 64 --causal --runs 4" + json());
  ASSERT_EQ(o.status, 0) << o.error;
  const Json r = report();
  EXPECT_TRUE(r.at("peaks").is_null());
  const Json& gpu = r.at("machine").at("gpu");
  for (const char* key : {"name", "driver", "cuda", "compute_capability"}) EXPECT_FALSE(gpu.at(key).get<std::string>().empty()) << key;
  EXPECT_NE(o.out.find(gpu.at("name").get<std::string>()), std::string::npos);
  ASSERT_EQ(r.at("rows").size(), 2 * methods.size());
  int ran = 0;
  std::map<int, double> exact_ms;
  for (const Json& row : r.at("rows")) {
    const std::string method = row.at("method");
    EXPECT_EQ(row.at("device"), "cuda");
    EXPECT_EQ(row.at("dtype"), "bf16");
    EXPECT_EQ(row.at("batch").get<int>() * row.at("tokens").get<int>(), 4096);
    if (!row.at("refused").is_null()) {
      EXPECT_NE(o.out.find(method + ": refused: " + row.at("refused").get<std::string>()), std::string::npos);
      for (const char* key : {"total_ms", "tflops", "rel_l1", "speedup"}) EXPECT_TRUE(row.at(key).is_null()) << key;
      continue;
    }
    ++ran;
    const double ms = row.at("total_ms"), tokens = row.at("tokens");
    EXPECT_GT(row.at("attention_ms").get<double>(), 0);
    EXPECT_GE(row.at("quantise_ms").get<double>(), 0);
    EXPECT_EQ(row.at("copy_ms").is_null(), method == "exact") << method;  // exact quantises nothing, so it has no copy
    EXPECT_LE(row.at("total_ms_min").get<double>(), ms);
    EXPECT_GE(row.at("total_ms_max").get<double>(), ms);
    EXPECT_NEAR(row.at("tflops"), 4 * 64 * 4 * (4096 / tokens) * tokens * (tokens + 1) / 2 / (ms * 1e9), 1e-9 * ms);
    EXPECT_LT(row.at("rel_l1").get<double>(), .1) << method;
    EXPECT_EQ(row.at("runs"), 4);
    EXPECT_TRUE(row.at("peak_percent").is_null());
    if (row.at("sm_mhz").is_number()) {
      EXPECT_GT(row.at("sm_mhz").get<int>(), 100);
    }
    if (row.at("joules").is_number()) {  // between what an idle GPU and one at 2 kW would use
      EXPECT_GT(row.at("joules").get<double>(), .02 * ms);
      EXPECT_LT(row.at("joules").get<double>(), 2 * ms);
    }
    if (method == "exact") exact_ms[row.at("tokens")] = ms;
    if (exact_ms.count(row.at("tokens"))) {
      EXPECT_NEAR(row.at("speedup"), exact_ms[row.at("tokens")] / ms, 1e-9);
    }
  }
  EXPECT_GT(ran, 0);
}

TEST_F(GpuCommand, BenchRunsShortCallsOften) {
  ASSERT_EQ(chitu("bench --device cuda --method chitu --lengths 256 --heads 2 --dim 64" + json()).status, 0);
  for (const Json& row : report().at("rows"))
    if (row.at("refused").is_null()) {
      EXPECT_EQ(row.at("runs"), 31);
    }
}

TEST_F(GpuCommand, AccuracyRecommendsWhatRan) {
  const Outcome o = chitu("accuracy --device cuda --data normal,sink --tokens 512 --dim 64 --runs 1 --max-l1 0.9" + json());
  ASSERT_EQ(o.status, 0) << o.error;
  const Json r = report();
  const std::string best = r.at("recommended");
  bool ran = false;
  for (const Json& row : r.at("rows"))
    ran |= row.at("method") == best && row.at("refused").is_null() && row.at("rel_l1").get<double>() < .9;
  EXPECT_TRUE(ran) << best;
}

TEST_F(GpuCommand, NothingThatRunsIsAnError) {
  const Outcome o = chitu("bench --device cuda --lengths 128 --dim 64 --kernel cpu.reference");
  EXPECT_EQ(o.status, refused);
  EXPECT_NE(o.error.find("the GPU runs none of these methods"), std::string::npos) << o.error;
}

TEST_F(GpuCommand, ExplainAndDoctorKnowIt) {
  const Outcome o = chitu("explain --device cuda --dim 64 --lse");
  EXPECT_EQ(o.status, 0) << o.error;
  EXPECT_NE(o.out.find("cuda."), std::string::npos);
  const Outcome doctor = chitu("doctor" + json());
  EXPECT_EQ(doctor.status, 0) << doctor.out;
  const Json r = report();
  ASSERT_FALSE(r.at("gpus").empty());
  EXPECT_NE(doctor.out.find(r.at("gpus")[0].at("name").get<std::string>()), std::string::npos);
}

}  // namespace
}  // namespace chitu::cli::test
