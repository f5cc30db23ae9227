// The 16-bit conversions against their definition: a float becomes the nearest of the 65536 values, so all floats
// between the two midpoints around a value become that value, and a midpoint becomes the even one of its neighbours.
//
// The oracle rounds nothing: it walks through the values and computes midpoints, which are exact. Every midpoint and
// both of its neighbours are checked in every run; of the floats between them every 251st, or all with
// SHARDPLAN_TEST_ALL=1.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <thread>

#include "base/half.h"
#include "tests/support/whole_grid.h"

namespace shardplan {
namespace {

constexpr std::uint32_t kSignBit = 0x8000'0000U;
constexpr std::uint32_t kInfinityBits = 0x7f80'0000U;

// A 16-bit format: a sign, `15 - fraction_bits` bits of exponent, a fraction.
struct Format {
  const char* name;
  int fraction_bits;
  std::uint16_t (*narrow)(float);
  float (*widen)(std::uint16_t);

  std::uint32_t infinity() const { return 0x7fffU >> fraction_bits << fraction_bits; }
  std::uint32_t quiet_bit() const { return 1U << (fraction_bits - 1); }
  unsigned dropped_bits() const { return static_cast<unsigned>(23 - fraction_bits); }

  // Infinity counts as the power of two that follows the largest finite value: IEEE 754 rounds as if it were that.
  double value(std::uint32_t magnitude) const {
    const auto bias = static_cast<int>(infinity() >> (fraction_bits + 1));
    const auto exponent = static_cast<int>(magnitude >> fraction_bits);
    const auto fraction = static_cast<double>(magnitude & ((1U << fraction_bits) - 1U));
    const double leading = exponent == 0 ? 0.0 : std::ldexp(1.0, fraction_bits);
    return std::ldexp(leading + fraction, std::max(exponent, 1) - bias - fraction_bits);
  }
  double midpoint_above(std::uint32_t magnitude) const { return (value(magnitude) + value(magnitude + 1)) / 2; }
};

constexpr Format kFormats[] = {{"bf16", 7, fp32_to_bf16, bf16_to_fp32}, {"fp16", 10, fp32_to_fp16, fp16_to_fp32}};

struct Mismatches {
  std::uint64_t count = 0;
  std::string first;

  void note(std::uint32_t input, std::uint32_t expected, std::uint32_t actual) {
    if (count++ > 0) return;
    std::ostringstream text;
    text << std::hex << "float 0x" << input << " gives 0x" << actual << ", not 0x" << expected;
    first = text.str();
  }
};

// 251 is prime: it meets every residue of every power of two.
const std::uint32_t kStride = test_support::whole_grid() ? 1 : 251;

// check(sign bit) for both signs, one of them in a thread of its own.
template <typename Check>
void expect_none(const Format& format, Check check) {
  Mismatches negative;
  std::thread other([&] { negative = check(kSignBit); });
  const Mismatches positive = check(0U);
  other.join();
  EXPECT_EQ(positive.count, 0U) << format.name << ": " << positive.first;
  EXPECT_EQ(negative.count, 0U) << format.name << ": " << negative.first;
}

TEST(HalfMidpoints, AreExactFloatsInOrder) {
  for (const Format& format : kFormats) {
    double previous = 0;
    for (std::uint32_t value = 0; value < format.infinity(); ++value) {
      const double midpoint = format.midpoint_above(value);
      ASSERT_EQ(static_cast<double>(static_cast<float>(midpoint)), midpoint) << format.name << " " << value;
      ASSERT_GT(midpoint, previous) << format.name << " " << value;
      previous = midpoint;
    }
  }
}

Mismatches compare_between_midpoints(const Format& format, std::uint32_t sign) {
  Mismatches wrong;
  const auto check = [&](std::uint32_t magnitude, std::uint32_t value) {
    const std::uint32_t actual = format.narrow(std::bit_cast<float>(sign | magnitude));
    const std::uint32_t expected = sign >> 16 | value;
    if (actual != expected) [[unlikely]]
      wrong.note(sign | magnitude, expected, actual);
  };
  std::uint32_t first = 0;
  for (std::uint32_t value = 0; value <= format.infinity(); ++value) {
    const bool last = value == format.infinity();
    const auto midpoint =
        static_cast<float>(last ? std::numeric_limits<double>::infinity() : format.midpoint_above(value));
    // Even values own the midpoint above them; infinity owns itself.
    const std::uint32_t end = std::bit_cast<std::uint32_t>(midpoint) + (value % 2 == 0 ? 1 : 0);
    for (std::uint32_t magnitude = first; magnitude < end; magnitude += kStride) check(magnitude, value);
    check(end - 1, value);
    if (end - first > 1) {
      check(first + 1, value);
      check(end - 2, value);
    }
    first = end;
  }
  return wrong;
}

TEST(HalfMidpoints, DecideEveryFloat) {
  for (const Format& format : kFormats) {
    expect_none(format, [&](std::uint32_t sign) { return compare_between_midpoints(format, sign); });
  }
}

// A NaN stays one of the same sign, quiet, with the upper bits of its payload.
TEST(HalfNans, StayNansAndBecomeQuiet) {
  for (const Format& format : kFormats) {
    expect_none(format, [&](std::uint32_t sign) {
      Mismatches wrong;
      const auto check = [&](std::uint32_t payload) {
        const std::uint32_t bits = sign | kInfinityBits | payload;
        const std::uint32_t expected =
            sign >> 16 | format.infinity() | format.quiet_bit() | payload >> format.dropped_bits();
        const std::uint32_t actual = format.narrow(std::bit_cast<float>(bits));
        if (actual != expected) wrong.note(bits, expected, actual);
      };
      for (std::uint32_t payload = 1; payload < 1U << 23; payload += kStride) check(payload);
      for (std::uint32_t bit = 0; bit < 23; ++bit) check(1U << bit);
      check((1U << 23) - 1);
      return wrong;
    });
  }
}

TEST(HalfMidpoints, EveryValueWidensToItself) {
  for (const Format& format : kFormats) {
    for (std::uint32_t bits = 0; bits < 0x1'0000U; ++bits) {
      const std::uint32_t magnitude = bits & 0x7fffU;
      if (magnitude > format.infinity()) continue;
      const float widened = format.widen(static_cast<std::uint16_t>(bits));
      const double expected =
          magnitude == format.infinity() ? std::numeric_limits<double>::infinity() : format.value(magnitude);
      ASSERT_EQ(std::fabs(static_cast<double>(widened)), expected) << format.name << " " << bits;
      ASSERT_EQ(std::signbit(widened), bits >= 0x8000U) << format.name << " " << bits;
      ASSERT_EQ(format.narrow(widened), bits) << format.name;
    }
  }
}

// The payload moves up. bf16 widens by a shift, so a signalling NaN is quiet only once it is narrowed again.
TEST(HalfNans, WidenAndComeBack) {
  for (const Format& format : kFormats) {
    for (std::uint32_t bits = 0; bits < 0x1'0000U; ++bits) {
      const std::uint32_t magnitude = bits & 0x7fffU;
      if (magnitude <= format.infinity()) continue;
      const auto widened = std::bit_cast<std::uint32_t>(format.widen(static_cast<std::uint16_t>(bits)));
      const std::uint32_t payload = (magnitude - format.infinity()) << format.dropped_bits();
      const std::uint32_t expected = (bits & 0x8000U) << 16 | kInfinityBits | payload;
      ASSERT_EQ(widened | 0x40'0000U, expected | 0x40'0000U) << format.name << " " << bits;
      ASSERT_EQ(format.narrow(std::bit_cast<float>(widened)), bits | format.quiet_bit()) << format.name;
    }
  }
}

}  // namespace
}  // namespace shardplan
