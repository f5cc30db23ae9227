// The 16-bit conversions against independent oracles: the compiler's _Float16, and arithmetic in double for bf16.
//
// A sample of the 2^32 floats: every 251st, and all neighbours of every exponent's ends and middle. half_midpoints_test
// goes through all of them, with an oracle of another kind.
#include "base/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace shardplan {
namespace {

// Round to nearest, ties to even, of a finite value to bf16's 8 bits of significand, by arithmetic in double: adding
// and taking away 1.5 x 2^(52 + unit) leaves a multiple of 2^unit, rounded as IEEE 754 does.
std::uint16_t bf16_oracle(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 31 << 15);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  if (std::isinf(value)) return static_cast<std::uint16_t>(sign | 0x7f80);
  int exponent = 0;
  std::frexp(value, &exponent);                       // value = f x 2^exponent, 1/2 <= |f| < 1
  const int unit = std::max(exponent - 8, -126 - 7);  // the place of bf16's last bit
  const double magic = std::ldexp(1.5, 52 + unit);
  const double rounded = (static_cast<double>(value) + magic) - magic;
  if (std::fabs(rounded) >= std::ldexp(1.0, 128)) return static_cast<std::uint16_t>(sign | 0x7f80);
  const auto back = std::bit_cast<std::uint32_t>(static_cast<float>(rounded));  // exact
  return static_cast<std::uint16_t>(sign | (back >> 16 & 0x7fff));
}

std::uint16_t fp16_oracle(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  // Compilers differ in which NaN they make; ours keeps the payload's upper bits.
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16 & 0x8000) | 0x7e00 | (bits >> 13 & 0x3ff));
  return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
}

struct Mismatch {
  bool found = false;
  std::uint32_t bits = 0;
};

Mismatch compare(std::uint64_t begin, std::uint64_t end, std::uint64_t step) {
  for (std::uint64_t i = begin; i < end; i += step) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(i));
    if (fp32_to_bf16(value) != bf16_oracle(value) || fp32_to_fp16(value) != fp16_oracle(value)) {
      return {true, static_cast<std::uint32_t>(i)};
    }
  }
  return {};
}

::testing::AssertionResult same_as_oracles(std::uint64_t begin, std::uint64_t end, std::uint64_t step) {
  const Mismatch mismatch = compare(begin, end, step);
  if (!mismatch.found) return ::testing::AssertionSuccess();
  const auto value = std::bit_cast<float>(mismatch.bits);
  return ::testing::AssertionFailure() << std::hex << "0x" << mismatch.bits << ": bf16 " << fp32_to_bf16(value)
                                       << ", not " << bf16_oracle(value) << "; fp16 " << fp32_to_fp16(value) << ", not "
                                       << fp16_oracle(value);
}

TEST(Half, ToSixteenBitsAsTheOraclesDo) {
  EXPECT_TRUE(same_as_oracles(0, std::uint64_t{1} << 32, 251));
  for (std::uint64_t exponent = 0; exponent < 512; ++exponent) {  // with either sign
    const std::uint64_t edge = exponent << 23;
    EXPECT_TRUE(same_as_oracles(edge < 4096 ? 0 : edge - 4096, edge + 4096, 1));
    EXPECT_TRUE(same_as_oracles(edge + (1U << 22) - 512, edge + (1U << 22) + 512, 1));
  }
}

TEST(Half, BackIsExactForAll65536) {
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto half = static_cast<std::uint16_t>(i);
    const float from_bf16 = bf16_to_fp32(half);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(from_bf16), i << 16);
    const float from_fp16 = fp16_to_fp32(half);
    const auto expected = static_cast<float>(std::bit_cast<_Float16>(half));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(from_fp16));
      EXPECT_EQ(std::signbit(from_fp16), (i & 0x8000) != 0);
    } else {
      EXPECT_EQ(std::bit_cast<std::uint32_t>(from_fp16), std::bit_cast<std::uint32_t>(expected)) << i;
      EXPECT_EQ(fp32_to_fp16(from_fp16), half);
      EXPECT_EQ(fp32_to_bf16(from_bf16), std::isnan(from_bf16) ? half | 0x40 : half);
    }
  }
}

TEST(Half, KnownValues) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  static_assert(fp32_to_bf16(1.0F) == 0x3f80 && fp32_to_fp16(1.0F) == 0x3c00);  // usable in constant expressions
  EXPECT_EQ(fp32_to_bf16(1.00390625F), 0x3f80);                                 // a tie, to even: down
  EXPECT_EQ(fp32_to_bf16(1.01171875F), 0x3f82);                                 // a tie, to even: up
  EXPECT_EQ(fp32_to_bf16(1e-40F), 0x0001);                                      // a denormal is not flushed
  EXPECT_EQ(fp32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(fp32_to_bf16(-kInfinity), 0xff80);
  EXPECT_EQ(fp32_to_fp16(65504.0F), 0x7bff);  // the largest finite fp16
  EXPECT_EQ(fp32_to_fp16(65519.996F), 0x7bff);
  EXPECT_EQ(fp32_to_fp16(65520.0F), 0x7c00);
  EXPECT_EQ(fp32_to_fp16(0x1p-24F), 0x0001);  // the smallest
  EXPECT_EQ(fp32_to_fp16(0x1p-25F), 0x0000);  // a tie, to even
  EXPECT_EQ(fp32_to_fp16(0x1.000002p-25F), 0x0001);
  EXPECT_EQ(fp32_to_fp16(-0.0F), 0x8000);
  const auto signalling = std::bit_cast<float>(0x7f800001U);
  EXPECT_EQ(fp32_to_bf16(signalling), 0x7fc0);  // stays a NaN although its payload is cut off
  EXPECT_EQ(fp32_to_fp16(signalling), 0x7e00);
}

}  // namespace
}  // namespace shardplan
