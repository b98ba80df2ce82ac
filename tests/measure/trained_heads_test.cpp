// SPDX-License-Identifier: Apache-2.0
// Every method on heads of a trained model, data/smollm2_d64.safetensors: head by head, so that a good mean hides no bad head.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "chitu/chitu.h"
#include "cli/files/files.h"

namespace chitu::test {
namespace {

constexpr std::size_t heads = 6;
using Errors = std::array<double, heads>;

// Layer and query head.
constexpr std::array<const char*, heads> head_names{"3.3", "5.5", "6.0", "7.2", "12.3", "21.3"};

// The most that a method may differ from exact attention.
const std::map<std::string_view, Errors> bars{
    {"exact", {1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5}},   {"sage", {.0165, .0105, .0145, .0125, .033, .023}},
    {"sage2", {.0255, .02, .018, .0165, .0415, .021}}, {"int8-half", {.015, .008, .011, .009, .036, .016}},
    {"int8", {.078, .0925, .0935, .13, .0635, .146}},  {"fp8", {.073, .062, .0555, .0635, .133, .057}},
    {"chitu", {.02, .024, .019, .027, .018, .0115}},
};

struct TrainedHeads : testing::Test {
  TrainedHeads() {
    const std::string names[] = {"q", "k", "v"};
    tensors_ = cli::read_safetensors(CHITU_TEST_DATA "/smollm2_d64.safetensors", names);
    truth_ = run(recipes::exact, "cpu.reference");  // in double
  }
  std::vector<float> run(const Recipe& recipe, std::string_view kernel = "") {
    const Tensor &q = tensors_.at("q").tensor, &k = tensors_.at("k").tensor, &v = tensors_.at("v").tensor;
    std::vector<float> out(static_cast<std::size_t>(q.shape[0] * q.shape[1] * q.shape[2] * q.shape[3]));
    attention(q, k, v, {dense(out.data(), DType::f32, q.shape)}, {.recipe = recipe, .window = causal, .kernel = kernel});
    return out;
  }
  Errors errors(const Recipe& recipe) {
    const std::vector<float> out = run(recipe);
    Errors result{};
    const std::size_t size = out.size() / heads;
    for (std::size_t h = 0; h < heads; ++h) {
      double difference = 0, sum = 0;
      for (std::size_t i = h * size; i < (h + 1) * size; ++i) {
        difference += std::fabs(double{out[i]} - double{truth_[i]});
        sum += std::fabs(double{truth_[i]});
      }
      result[h] = difference / sum;
    }
    return result;
  }

  std::map<std::string, cli::HostTensor> tensors_;
  std::vector<float> truth_;
};

TEST_F(TrainedHeads, EachMethodStaysWithinItsBars) {
  ASSERT_EQ(tensors_.at("q").tensor.shape[1], std::int64_t{heads});
  ASSERT_EQ(bars.size(), methods.size());
  for (const Method& method : methods) {
    const Errors got = errors(method.recipe);
    for (std::size_t h = 0; h < heads; ++h) {
      RecordProperty(std::string(method.name) + "_" + head_names[h], std::to_string(got[h]));
      EXPECT_LE(got[h], bars.at(method.name)[h]) << method.name << ", head " << head_names[h];
    }
  }
}

}  // namespace
}  // namespace chitu::test
