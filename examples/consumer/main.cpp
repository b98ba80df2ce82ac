// SPDX-License-Identifier: Apache-2.0
// Causal attention of random tensors by the chitu recipe and by exact attention, and how far apart they are.
#include <chitu/chitu.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

int main() {
  const chitu::Shape shape{1, 4, 500, 64};  // batch, heads, tokens, dim
  const auto count = static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]);
  std::vector<float> query(count), key(count), value(count), quantised(count), truth(count);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (auto* tensor : {&query, &key, &value})
    for (float& x : *tensor) x = normal(random);

  const auto attend = [&](const chitu::Recipe& recipe, std::vector<float>& out) {
    const auto view = [&](std::vector<float>& numbers) { return chitu::dense(numbers.data(), chitu::DType::f32, shape); };
    chitu::attention(view(query), view(key), view(value), view(out), {.recipe = recipe, .window = chitu::causal});
  };
  try {
    attend(chitu::recipes::chitu, quantised);
    attend(chitu::recipes::exact, truth);
  } catch (const chitu::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }

  double difference = 0, size = 0;
  for (std::size_t i = 0; i < count; ++i) {
    difference += std::fabs(quantised[i] - truth[i]);
    size += std::fabs(truth[i]);
  }
  std::printf("ChituAttention %s: relative L1 of the chitu recipe to exact attention is %.4f\n", CHITU_VERSION, difference / size);
  return difference / size < 0.02 ? 0 : 1;
}
