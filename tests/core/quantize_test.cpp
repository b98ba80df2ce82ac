// SPDX-License-Identifier: Apache-2.0
// quantize() against a second quantiser (oracle.h), bit for bit, in every backend.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "common/numbers.h"
#include "cpu/backend.h"
#include "oracle.h"
#include "support.h"

namespace chitu::test {
namespace {

using cpu::Backend;
using oracle::Head;

struct Case {
  Recipe recipe;
  Role role;
  DType type;
  Layout layout;
  Shape shape;
  std::vector<std::int64_t> starts;
};

std::vector<float> rows_of(const Array& x, std::int64_t batch, std::int64_t head, std::int64_t begin, std::int64_t end) {
  std::vector<float> rows;
  for (std::int64_t t = begin; t < end; ++t)
    for (std::int64_t c = 0; c < x.shape()[3]; ++c) rows.push_back(x.get(batch, head, t, c));
  return rows;
}

float number(const Tensor& t, std::int64_t i0, std::int64_t i1, std::int64_t i2, std::int64_t i3) {
  return load(static_cast<const std::byte*>(t.data) + (i0 * t.stride[0] + i1 * t.stride[1] + i2 * t.stride[2]) * bytes(t.type), t.type, i3);
}

// Where a sequence of a quantised operand begins.
struct Place {
  std::int64_t batch, sequence, token, group, tile;
};

// Everything that quantize() says of one head, against the oracle. Returns false at the first difference, so that a broken kernel
// does not print a novel.
bool equal(const Quantized& x, const Place& at, std::int64_t head, const Head& expected) {
  const auto same = [&](float got, float wanted, const char* what, std::int64_t i, std::int64_t c) {
    // -0 and 0 are the same integer, but not the same scale: no scale is 0.
    if (got == wanted || (std::isnan(got) && std::isnan(wanted))) return true;
    ADD_FAILURE() << what << " of sequence " << at.sequence << ", head " << head << ", " << i << ", channel " << c << ": " << std::hexfloat
                  << got << ", not " << wanted;
    return false;
  };
  for (std::int64_t t = 0; t < expected.tokens; ++t)
    for (std::int64_t c = 0; c < expected.dim; ++c)
      if (!same(number(x.values, at.batch, head, at.token + t, c), expected.numbers[static_cast<std::size_t>(t * expected.dim + c)],
                "number", t, c))
        return false;
  if ((x.ranks.data != nullptr) != x.quant.sorted) {
    ADD_FAILURE() << "ranks where none belong, or none where they do";
    return false;
  }
  for (std::size_t t = 0; t < expected.ranks.size(); ++t) {
    const auto token = static_cast<std::int64_t>(t);
    if (!same(number(x.ranks, at.batch, head, at.token + token, 0), static_cast<float>(expected.ranks[t]), "rank", token, 0)) return false;
  }
  for (std::size_t i = 0; i < expected.scales.size(); ++i) {
    const auto n = static_cast<std::int64_t>(i);
    const float got = x.quant.scaling == Scaling::tokens ? number(x.scales, at.batch, head, at.group + n, 0)
                      : x.quant.scaling == Scaling::tile ? number(x.scales, at.batch, head, at.tile + n, 0)
                      : x.quant.scaling == Scaling::head ? number(x.scales, at.sequence, head, 0, 0)
                                                         : number(x.scales, at.sequence, head, 0, n);
    if (!same(got, expected.scales[i], "scale", n, 0)) return false;
  }
  for (std::size_t c = 0; c < expected.centre.size(); ++c)
    if (!same(number(x.centre, at.sequence, head, 0, static_cast<std::int64_t>(c)), expected.centre[c], "centre", 0,
              static_cast<std::int64_t>(c)))
      return false;
  for (std::size_t c = 0; c < expected.channels.size(); ++c)
    if (!same(number(x.channels, at.sequence, head, 0, static_cast<std::int64_t>(c)), expected.channels[c], "lambda", 0,
              static_cast<std::int64_t>(c)))
      return false;
  for (std::size_t tile = 0; tile < expected.flagged.size(); ++tile) {
    const auto index = static_cast<std::size_t>((at.batch * x.values.shape[1] + head) * x.scales.shape[2] + at.tile) + tile;
    const std::int32_t residual = x.residual_of[index];
    if (expected.flagged[tile] >= 0 && (residual >= 0) != (expected.flagged[tile] == 1)) {
      ADD_FAILURE() << "tile " << tile << (residual >= 0 ? " is flagged" : " is not flagged");
      return false;
    }
    if (residual < 0) continue;
    for (std::int64_t t = 0; t < tile_tokens; ++t)
      for (std::int64_t c = 0; c < expected.dim; ++c) {
        const std::int64_t token = static_cast<std::int64_t>(tile) * tile_tokens + t;
        const float wanted = token < expected.tokens ? expected.residuals[static_cast<std::size_t>(token * expected.dim + c)] : 0;
        if (!same(number(x.residuals, 0, residual, t, c), wanted, "residual", token, c)) return false;
      }
  }
  return true;
}

std::int64_t tiles_of(std::int64_t tokens) { return (tokens + tile_tokens - 1) / tile_tokens; }

// Checks all sequences and heads of `quantised`, made of x.
bool equal(const Quantized& quantised, const Array& x, const Case& c) {
  const Quant& quant = quant_of(c.recipe, c.role);
  std::vector<Place> places;
  std::vector<std::int64_t> counts;
  if (c.starts.empty())
    for (std::int64_t b = 0; b < c.shape[0]; ++b) {
      places.push_back({b, b, 0, 0, 0});
      counts.push_back(c.shape[2]);
    }
  Place at{};
  for (std::size_t i = 1; i < c.starts.size(); ++i, ++at.sequence) {
    at.token = c.starts[i - 1];
    places.push_back(at);
    counts.push_back(c.starts[i] - c.starts[i - 1]);
    at.group += (counts.back() + quant.groups.block - 1) / quant.groups.block * quant.groups.lanes;
    at.tile += tiles_of(counts.back());
  }
  std::vector<std::array<std::int64_t, 3>> nonfinite;
  for (std::size_t s = 0; s < places.size(); ++s)
    for (std::int64_t h = 0; h < c.shape[1]; ++h) {
      const Head expected = oracle::quantize(rows_of(x, places[s].batch, h, places[s].token, places[s].token + counts[s]), c.shape[3],
                                             c.type, quant, quantised.role);
      if (!equal(quantised, places[s], h, expected)) return false;
      for (std::int64_t t = 0; t < counts[s]; ++t)
        if (expected.nonfinite[static_cast<std::size_t>(t)]) nonfinite.push_back({places[s].sequence, h, t});
    }
  std::vector<std::array<std::int64_t, 3>> listed;
  for (const NonFinite& n : quantised.nonfinite) {
    listed.push_back({n.sequence, n.head, n.token});
    const Place& p = places[static_cast<std::size_t>(n.sequence)];
    for (std::int64_t i = 0; i < c.shape[3]; ++i) {
      const float came = x.get(p.batch, n.head, p.token + n.token, i), kept = n.values[static_cast<std::size_t>(i)];
      EXPECT_TRUE(came == kept || (std::isnan(came) && std::isnan(kept)));
    }
  }
  EXPECT_EQ(listed, nonfinite);
  return listed == nonfinite;
}

// Normal numbers with what makes quantisers stumble: outlier channels, an offset, spikes, zero tokens, a zero and a constant channel.
Array hard_data(Random& random, const Case& c) {
  Array x = normal(random, c.type, c.shape, c.layout);
  const std::int64_t flavour = random.below(6), channel = random.below(c.shape[3]);
  x.fill([&](std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t i) {
    const float n = x.get(b, h, t, i);
    if (flavour == 1) return n + (i == channel ? 40.f : 3.f);
    if (flavour == 2) return t % 50 == 7 ? n * 300 : n * 0.01f;
    if (flavour == 3) return t % 3 == 0 ? 0.f : i == channel ? 0.f : n;
    if (flavour == 4) return i == channel ? 2.5f : n * (t == 0 ? 0.001f : 1);
    if (flavour == 5) return n * 1e-6f;
    return n;
  });
  return x;
}

class EveryBackend : public testing::TestWithParam<std::tuple<std::size_t, Method>> {
 protected:
  const Backend& backend() const { return cpu::backends()[std::get<0>(GetParam())]; }
  const Recipe& recipe() const { return std::get<1>(GetParam()).recipe; }
  void SetUp() override {
    if (!backend().available()) GTEST_SKIP() << "this machine lacks the instructions of " << backend().name;
  }
  void check(const Case& c, const Array& x) const {
    SCOPED_TRACE(testing::Message() << "role " << static_cast<int>(c.role) << ", " << name(c.type) << " [" << c.shape[0] << ", "
                                    << c.shape[1] << ", " << c.shape[2] << ", " << c.shape[3] << "], layout " << static_cast<int>(c.layout)
                                    << ", " << c.starts.size() << " starts");
    ASSERT_TRUE(equal(cpu::quantize_with(backend(), x, c.role, c.recipe, {.starts = c.starts}), x, c));
  }
};

const std::vector<std::int64_t> dims{1,  2,  3,  4,  5,   8,   12,  16,  20,  31,  32,  33,  48,  63, 64,
                                     65, 72, 80, 96, 100, 127, 128, 129, 160, 192, 200, 224, 255, 256};
const std::vector<std::int64_t> lengths{1, 2, 7, 127, 128, 129, 300};
const std::vector<DType> types{DType::f32, DType::f16, DType::bf16};
const std::vector<Layout> layouts{Layout::bhsd, Layout::bshd, Layout::padded};

TEST_P(EveryBackend, GivesTheBitsOfTheSpecification) {
  Random random(7);
  for (const Role role : {Role::query, Role::key, Role::value})
    for (const std::int64_t dim : dims) {
      const Case c{recipe(), role, random.pick(types), random.pick(layouts), {1, 2, random.pick(lengths), dim}, {}};
      ASSERT_NO_FATAL_FAILURE(check(c, hard_data(random, c)));
    }
}

TEST_P(EveryBackend, SamplesLongSequences) {
  Random random(8);
  for (const std::int64_t tokens : {64, 1023, 1024, 1025, 4095, 4097, 5000}) {
    const Case c{recipe(), tokens % 2 ? Role::key : Role::value, DType::bf16, Layout::bhsd, {1, 1, tokens, 16}, {}};
    ASSERT_NO_FATAL_FAILURE(check(c, hard_data(random, c)));
  }
}

TEST_P(EveryBackend, BatchesOfAllSizes) {
  Random random(9);
  for (const Role role : {Role::query, Role::key, Role::value})
    for (const Shape& shape : {Shape{3, 2, 130, 64}, Shape{2, 5, 1, 33}, Shape{0, 2, 5, 8}, Shape{2, 0, 5, 8}, Shape{2, 2, 0, 8}}) {
      const Case c{recipe(), role, random.pick(types), random.pick(layouts), shape, {}};
      ASSERT_NO_FATAL_FAILURE(check(c, hard_data(random, c)));
    }
}

TEST_P(EveryBackend, PackedSequencesStandAlone) {
  Random random(10);
  for (const Role role : {Role::query, Role::key, Role::value})
    for (const std::vector<std::int64_t>& starts :
         {std::vector<std::int64_t>{0, 1, 1, 130, 257, 300}, {0, 300}, {0, 0, 300, 300}, {0, 128, 256, 300}}) {
      const Case c{recipe(), role, random.pick(types), random.pick(layouts), {1, 3, 300, 40}, starts};
      ASSERT_NO_FATAL_FAILURE(check(c, hard_data(random, c)));
    }
}

TEST_P(EveryBackend, NaNAndInfinityStayOut) {
  Random random(11);
  for (const Role role : {Role::query, Role::key, Role::value})
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
      for (const std::int64_t dim : {1, 33, 64, 80}) {
        const Case c{recipe(), role, random.pick(types), random.pick(layouts), {2, 2, 150, dim}, {}};
        Array x = hard_data(random, c);
        for (int i = 0; i < 5; ++i) x.set(random.below(2), random.below(2), random.below(150), random.below(dim), bad);
        ASSERT_NO_FATAL_FAILURE(check(c, x));
      }
}

// Keys of equal size, of sizes that differ in the bits that are not compared only, zeros, and tokens that are not finite.
TEST_P(EveryBackend, RanksOfEqualSizes) {
  for (const std::int64_t tokens : {1, 31, 128, 129, 200}) {
    const Case c{recipe(), Role::key, DType::f32, Layout::bhsd, {1, 2, tokens, 64}, {}};
    Array x(c.type, c.shape);
    x.fill([](auto, std::int64_t h, std::int64_t t, std::int64_t i) {
      if (t % 11 == 5) return i == 3 ? std::numeric_limits<float>::infinity() : 1.f;
      if (t % 7 == 2) return 0.f;
      const float size = h == 0 ? 1.f : 1 + static_cast<float>(t % 5) * 0x1p-22f;
      return (t + i) % 3 ? size : -size;
    });
    ASSERT_NO_FATAL_FAILURE(check(c, x));
  }
}

TEST_P(EveryBackend, NothingButNaN) {
  for (const Role role : {Role::query, Role::key, Role::value}) {
    const Case c{recipe(), role, DType::f32, Layout::bhsd, {1, 1, 5, 12}, {}};
    ASSERT_NO_FATAL_FAILURE(check(c, Array(DType::f32, c.shape)));  // an untouched Array is all NaN
  }
}

// Row `row` of the matrix of a rotation, in double: its signs, and the Hadamard matrix of each block.
std::vector<double> rotation_row(std::int64_t row, std::int64_t dim) {
  const std::int64_t block = dim & -dim;
  std::vector<double> entries(static_cast<std::size_t>(dim));
  for (std::int64_t c = row / block * block; c < row / block * block + block; ++c) {
    const std::int64_t signs = (c & c >> 2 & 3) ^ (c >> 4 & c >> 5 & 1), hadamard = row & c & (block - 1);
    const int odd = std::popcount(static_cast<std::uint64_t>(signs)) + std::popcount(static_cast<std::uint64_t>(hadamard));
    entries[static_cast<std::size_t>(c)] = (odd % 2 ? -1 : 1) / std::sqrt(static_cast<double>(block));
  }
  return entries;
}

// Rows of normal numbers plus an offset, and some that are so large that sums of their numbers leave fp32.
Array with_large_rows(Random& random, DType type, const Shape& shape, float size, float offset) {
  Array x(type, shape);
  x.fill([&](auto...) { return random.normal() + offset; });
  for (std::int64_t t = 7; t < shape[2]; t += 20) {
    const std::vector<double> row = rotation_row(t % shape[3], shape[3]);  // becomes one number when it is rotated
    for (std::int64_t c = 0; c < shape[3]; ++c) {
      const double sign = t % 40 == 7 ? (row[static_cast<std::size_t>(c)] < 0 ? -1 : 1) : random.below(2) ? 1 : -1;
      x.set(0, 0, t, c, static_cast<float>(sign * size));
    }
  }
  return x;
}

TEST_P(EveryBackend, LargeRowsAreQuantisedAsAnyOthers) {
  Random random(15);
  for (const Role role : {Role::query, Role::key})
    for (const DType type : {DType::f32, DType::bf16})
      for (const auto& [size, offset] : {std::pair{5e36f, 0.f}, {3e38f, 0.f}, {3e38f, 3e38f}})
        for (const std::int64_t dim : type == DType::f32 ? std::array{64, 256} : std::array{80, 128}) {
          const Case c{recipe(), role, type, Layout::bhsd, {1, 1, 150, dim}, {}};
          const Array x = with_large_rows(random, type, c.shape, size, offset);
          ASSERT_NO_FATAL_FAILURE(check(c, x));
          const Quant& quant = quant_of(recipe(), role);
          if (quant.scaling != Scaling::tokens) continue;
          SCOPED_TRACE(testing::Message() << "role " << static_cast<int>(role) << ", " << name(type) << ", " << size << ", offset "
                                          << offset << ", dim " << dim);
          // The same in double.
          const Quantized q = cpu::quantize_with(backend(), x, role, recipe(), {});
          std::vector<std::vector<double>> rows, rotation;
          for (std::int64_t i = 0; i < dim; ++i) rotation.push_back(rotation_row(i, dim));
          const auto group_of = [&](std::int64_t t) {
            return quant.sorted
                       ? t / 128 * quant.groups.lanes + static_cast<std::int64_t>(number(q.ranks, 0, 0, t, 0)) * quant.groups.lanes / 128
                       : quant.groups.of(t);
          };
          std::vector<double> maxima(static_cast<std::size_t>(quant.groups.count(150)));
          for (std::int64_t t = 0; t < 150; ++t) {
            std::vector<double> row;
            for (std::int64_t i = 0; i < dim; ++i)
              row.push_back(double{x.get(0, 0, t, i)} - (given(q.centre) ? number(q.centre, 0, 0, 0, i) : 0.f));
            rows.push_back(row);
            if (quant.rotated)
              for (std::size_t i = 0; i < row.size(); ++i)
                rows.back()[i] = std::inner_product(row.begin(), row.end(), rotation[i].begin(), 0.);
            double& m = maxima[static_cast<std::size_t>(group_of(t))];
            for (const double y : rows.back()) m = std::max(m, std::fabs(y));
          }
          for (std::int64_t t = 0; t < 150; ++t) {
            const std::int64_t group = group_of(t);
            const double scale = maxima[static_cast<std::size_t>(group)] / 127;
            ASSERT_NEAR(number(q.scales, 0, 0, group, 0), scale, 1e-6 * scale) << t;
            for (std::int64_t i = 0; i < dim; ++i)
              ASSERT_NEAR(number(q.values, 0, 0, t, i), rows[static_cast<std::size_t>(t)][static_cast<std::size_t>(i)] / scale, 0.5001)
                  << t;
          }
        }
}

INSTANTIATE_TEST_SUITE_P(Quantize, EveryBackend,
                         testing::Combine(testing::Range<std::size_t>(0, cpu::backends().size()), testing::ValuesIn(methods)),
                         [](const auto& info) {
                           return std::string(cpu::backends()[std::get<0>(info.param)].name) + "_" +
                                  test_name(std::get<1>(info.param).name);
                         });

class EveryMethod : public testing::TestWithParam<Method> {};

// The numbers that a quantised tensor stands for.
std::vector<float> restored(const Array& x, Role role, const Recipe& recipe) {
  const Head head = oracle::quantize(x.numbers(), x.shape()[3], x.tensor().type, quant_of(recipe, role), role);
  const Quantized q = quantize(x, role, recipe);
  std::vector<float> numbers;
  for (std::int64_t t = 0; t < head.tokens; ++t)
    for (std::int64_t c = 0; c < head.dim; ++c) {
      EXPECT_EQ(number(q.values, 0, 0, t, c), head.numbers[static_cast<std::size_t>(t * head.dim + c)]);
      numbers.push_back(
          static_cast<float>(head.number(t, c, !head.flagged.empty() && head.flagged[static_cast<std::size_t>(t / 128)] == 1)));
    }
  return numbers;
}

TEST_P(EveryMethod, ZerosStayZeros) {
  for (const Role role : {Role::query, Role::key, Role::value}) {
    Array x(DType::f32, {1, 1, 200, 24});
    x.fill([](auto...) { return 0.f; });
    for (const float number : restored(x, role, GetParam().recipe)) EXPECT_EQ(number, 0);
  }
}

TEST_P(EveryMethod, AConstantTensorStaysConstant) {
  for (const float constant : {3.f, -1e-12f, 1e12f, 1e-37f}) {
    Array x(DType::f32, {1, 1, 200, 24});
    x.fill([&](auto...) { return constant; });
    // A number below the floor of a scale, or of FP16 (which is not scaled up), may become 0, never a NaN.
    const float floor = GetParam().recipe.value.type == DType::f16 ? 0x1p-24f : 1e-30f;
    for (const float number : restored(x, Role::value, GetParam().recipe))
      ASSERT_NEAR(number, constant, std::max(std::fabs(constant) * 1e-3f, floor)) << constant;
  }
}

TEST_P(EveryMethod, SurvivesTheLargestFloats) {
  Array x(DType::f32, {1, 1, 140, 16});
  x.fill([](auto, auto, std::int64_t t, std::int64_t c) { return t == 3 && c == 5 ? 3e38f : t == 139 ? -1e-38f : 1.f; });
  for (const Role role : {Role::query, Role::value}) {
    const Quantized q = quantize(x, role, GetParam().recipe);
    EXPECT_TRUE(q.nonfinite.empty());
    for (const float number : restored(x, role, GetParam().recipe)) EXPECT_TRUE(std::isfinite(number));
  }
}

TEST_P(EveryMethod, ThreadsDoNotChangeABit) {
  Random random(12);
  const Array x = normal(random, DType::f16, {2, 3, 700, 64});
  for (const Role role : {Role::query, Role::key, Role::value}) {
    const Quantized one = quantize(x, role, GetParam().recipe, {.threads = 1});
    for (const int threads : {2, 3, 7}) {
      const Quantized many = quantize(x, role, GetParam().recipe, {.threads = threads});
      const auto same = [](const Tensor& a, const Tensor& b) {
        return a.shape == b.shape &&
               (!a.data || std::memcmp(a.data, b.data,
                                       static_cast<std::size_t>(a.shape[0] * a.shape[1] * a.shape[2] * a.shape[3] * bytes(a.type))) == 0);
      };
      EXPECT_TRUE(same(one.values, many.values) && same(one.scales, many.scales) && same(one.centre, many.centre) &&
                  same(one.channels, many.channels) && same(one.residuals, many.residuals) && one.residual_of == many.residual_of);
    }
  }
}

TEST_P(EveryMethod, CorrectionIsTheProductWithTheCentre) {
  Random random(13);
  for (const auto& backend : cpu::backends()) {
    if (!backend.available()) continue;
    const Array q = normal(random, DType::bf16, {2, 6, 37, 72}, Layout::padded),
                k = normal(random, DType::bf16, {2, 2, 90, 72}, Layout::bshd);
    const Quantized keys = cpu::quantize_with(backend, k, Role::key, GetParam().recipe, {});
    const Quantized queries = cpu::quantize_with(backend, q, Role::query, GetParam().recipe, {.keys = &keys});
    ASSERT_EQ(queries.correction.data != nullptr, GetParam().recipe.key.centre != Centre::none);
    if (!queries.correction.data) continue;
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t h = 0; h < 6; ++h)
        for (std::int64_t t = 0; t < 37; ++t) {
          double sum = 0, size = 0;
          for (std::int64_t c = 0; c < 72; ++c) {
            const double product = double{q.get(b, h, t, c)} * number(keys.centre, b, h / 3, 0, c);
            sum += product;
            size += std::fabs(product);
          }
          ASSERT_NEAR(number(queries.correction, b, h, t, 0), sum, 1e-6 * size) << backend.name;
        }
  }
}

TEST_P(EveryMethod, CorrectionOverflowsOnlyAsAWhole) {
  // q . centre is 0, but its parts are up to 9.6e39, whatever channels are summed together.
  Array q(DType::bf16, {1, 1, 3, 64}), k(DType::bf16, {1, 1, 20, 64});
  q.fill([](auto, auto, auto, std::int64_t c) { return c < 32 ? 3e38f : -3e38f; });
  k.fill([](auto...) { return 1.f; });
  for (const auto& backend : cpu::backends()) {
    if (!backend.available()) continue;
    const Quantized keys = cpu::quantize_with(backend, k, Role::key, GetParam().recipe, {});
    const Quantized queries = cpu::quantize_with(backend, q, Role::query, GetParam().recipe, {.keys = &keys});
    for (std::int64_t t = 0; t < 3 && queries.correction.data; ++t) EXPECT_EQ(number(queries.correction, 0, 0, t, 0), 0) << backend.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Quantize, EveryMethod, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

TEST(Quantize, ARotationKeepsScores) {
  // The oracle's rotation is orthogonal: rotated INT8 products are near the products they stand for.
  Random random(14);
  for (const std::int64_t dim : {1, 2, 6, 33, 64, 72, 80, 96, 128, 256}) {
    const Array q = normal(random, DType::f32, {1, 1, 64, dim}), k = normal(random, DType::f32, {1, 1, 64, dim});
    Recipe recipe = recipes::chitu;
    recipe.key.centre = Centre::none;
    const std::vector<float> a = restored(q, Role::query, recipe), b = restored(k, Role::key, recipe);
    double error = 0, size = 0;
    for (std::int64_t i = 0; i < 64; ++i)
      for (std::int64_t j = 0; j < 64; ++j) {
        double exact = 0, rotated = 0;
        for (std::int64_t c = 0; c < dim; ++c) {
          exact += double{q.get(0, 0, i, c)} * k.get(0, 0, j, c);
          rotated += double{a[static_cast<std::size_t>(i * dim + c)]} * b[static_cast<std::size_t>(j * dim + c)];
        }
        error += std::fabs(exact - rotated);
        size += std::fabs(exact);
      }
    EXPECT_LE(error / size, 0.03) << "dim " << dim;
  }
}

// λ has a floor of a sixteenth of its mean, which may lie below the smallest maximum of a scale.
TEST(Quantize, TinyValuesWithAnEmptyChannel) {
  Random random(62);
  const Array q = normal(random, DType::f32, {1, 1, 40, 16}), k = normal(random, DType::f32, q.shape());
  Array v(DType::f32, q.shape());
  v.fill([&](auto, auto, auto, std::int64_t c) { return c == 3 ? 0.f : 3e-30f * (1 + std::fabs(random.normal())); });
  const Result expected = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipes::exact}),
               got = attend(q.tensor(), k.tensor(), v.tensor(), {.recipe = recipes::chitu});
  EXPECT_LE(relative_l1(got.out.numbers(), expected.out.numbers()), .02);
}

}  // namespace
}  // namespace chitu::test
