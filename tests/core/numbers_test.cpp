// SPDX-License-Identifier: Apache-2.0
// Number formats against plain arithmetic in double: every number of a format, every boundary between two, and floats in between.
#include "common/numbers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cpu/backend.h"
#include "oracle.h"

namespace chitu {
namespace {

using test::oracle::Format;

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Case {
  const char* name;
  Format format;
  int bits;
  float (*to_f32)(std::uint32_t);
  std::uint32_t (*from_f32)(float);
};

const Case cases[] = {
    {"f16", test::oracle::f16, 16, [](std::uint32_t x) { return f16_to_f32(static_cast<std::uint16_t>(x)); },
     [](float x) { return std::uint32_t{f32_to_f16(x)}; }},
    {"bf16", test::oracle::bf16, 16, [](std::uint32_t x) { return bf16_to_f32(static_cast<std::uint16_t>(x)); },
     [](float x) { return std::uint32_t{f32_to_bf16(x)}; }},
    {"e4m3", test::oracle::e4m3, 8, [](std::uint32_t x) { return e4m3_to_f32(static_cast<std::uint8_t>(x)); },
     [](float x) { return std::uint32_t{f32_to_e4m3(x)}; }},
};

// What a code means, from the fields of its bits.
double meaning(const Format& f, int bits, std::uint32_t code) {
  const std::uint32_t magnitude = code & ((1u << (bits - 1)) - 1), fraction = magnitude & ((1u << f.fraction_bits) - 1);
  const auto exponent = static_cast<int>(magnitude >> f.fraction_bits);
  const double sign = code >> (bits - 1) ? -1 : 1;
  const bool top = magnitude >> f.fraction_bits == (1u << (bits - 1 - f.fraction_bits)) - 1;
  if (f.has_infinity && top) return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * infinity;
  if (!f.has_infinity && magnitude == (1u << (bits - 1)) - 1) return std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(fraction, f.smallest_exponent - f.fraction_bits);
  return sign * std::ldexp(fraction + (1u << f.fraction_bits), f.smallest_exponent + exponent - 1 - f.fraction_bits);
}

class Numbers : public testing::TestWithParam<Case> {
 protected:
  const Case& c() const { return GetParam(); }

  bool rounds_right(float x) const {
    const float rounded = c().to_f32(c().from_f32(x));
    const double expected = test::oracle::round_to(c().format, x);
    return std::isnan(x) ? std::isnan(rounded) : rounded == expected && std::signbit(rounded) == std::signbit(x);
  }
};

TEST_P(Numbers, EveryCodeMeansWhatItsBitsSay) {
  for (std::uint32_t code = 0; code < 1u << c().bits; ++code) {
    const double expected = meaning(c().format, c().bits, code);
    const float number = c().to_f32(code);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(number)) << code;
      continue;
    }
    EXPECT_EQ(number, expected) << code;
    EXPECT_EQ(std::signbit(number), std::signbit(expected)) << code;
    EXPECT_EQ(c().from_f32(number), code);  // and back
  }
}

TEST_P(Numbers, RoundsToNearestEvenAtEveryBoundary) {
  const auto last = static_cast<std::uint32_t>((1u << (c().bits - 1)) - 2);
  for (std::uint32_t code = 0; code <= last; ++code) {
    const float low = c().to_f32(code), high = c().to_f32(code + 1);
    if (!std::isfinite(low)) break;
    // Past the largest number the next would be one unit further.
    const float next = std::isfinite(high) ? high : low + (low - c().to_f32(code - 1));
    const float middle = low + (next - low) / 2;
    for (const float x : {low, low + (next - low) / 4, std::nextafter(middle, 0.f), middle, std::nextafter(middle, infinity), next})
      EXPECT_TRUE(rounds_right(x) && rounds_right(-x)) << std::hexfloat << x;
  }
}

TEST_P(Numbers, RoundsFloatsOfAllSizes) {
  std::uint64_t wrong = 0;
  for (std::uint64_t bits = 0; bits < 1ull << 32; bits += 1009)
    wrong += !rounds_right(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  EXPECT_EQ(wrong, 0u);
}

TEST_P(Numbers, LargeInfiniteAndNaN) {
  const auto sent = [&](float x) { return c().to_f32(c().from_f32(x)); };
  EXPECT_TRUE(std::isnan(sent(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(sent(std::bit_cast<float>(0xff800001u))));  // a NaN whose payload lies in the low bits alone
  const float end = c().format.has_infinity ? infinity : static_cast<float>(c().format.largest);
  EXPECT_EQ(sent(infinity), end);
  EXPECT_EQ(sent(-infinity), -end);
  EXPECT_EQ(sent(std::numeric_limits<float>::max()), end);
}

INSTANTIATE_TEST_SUITE_P(Formats, Numbers, testing::ValuesIn(cases), [](const auto& info) { return std::string(info.param.name); });

class Vectors : public testing::TestWithParam<std::size_t> {};

TEST_P(Vectors, ReadEveryHalfAsTheScalarDoes) {
  const cpu::Backend& backend = cpu::backends()[GetParam()];
  if (!backend.available()) GTEST_SKIP() << "this machine lacks the instructions of " << backend.name;
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  for (const DType type : {DType::f16, DType::bf16}) {
    std::vector<float> numbers(halves.size());
    backend.to_f32(halves.data(), type, numbers.data(), 65535);  // an odd count, so that the last ones are a tail
    for (std::size_t i = 0; i + 1 < halves.size(); ++i) {
      const float expected = load(halves.data(), type, static_cast<std::int64_t>(i));
      EXPECT_TRUE(std::isnan(expected) ? std::isnan(numbers[i])
                                       : std::bit_cast<std::uint32_t>(expected) == std::bit_cast<std::uint32_t>(numbers[i]))
          << name(type) << " " << i;
    }
    EXPECT_EQ(numbers.back(), 0) << "wrote past the count";
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Vectors, testing::Range<std::size_t>(0, cpu::backends().size()),
                         [](const auto& info) { return std::string(cpu::backends()[info.param].name); });

}  // namespace
}  // namespace chitu
