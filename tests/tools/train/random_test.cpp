#include "tools/train/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

namespace shardplan {
namespace {

TEST(Random, IsSplitMix64) {
  // The first numbers of the published generator with seed 0: its state moves by the constant that a word is added to.
  constexpr std::uint64_t kGamma = 0x9e3779b97f4a7c15U;
  EXPECT_EQ(random_bits(0), 0xe220a8397b1dcdafU);
  EXPECT_EQ(random_bits(kGamma), 0x6e789e6aa1b965f4U);
  EXPECT_EQ(random_bits(2 * kGamma), 0x06c45d188009454fU);
}

TEST(Random, KeysDifferByWordsAndTheirOrder) {
  const std::set<std::uint64_t> different{random_bits(1), random_bits(1, 0), random_bits(0, 1), random_bits(1, 1),
                                          random_bits(0, 0)};
  EXPECT_EQ(different.size(), 5U);
}

TEST(Random, UniformStaysInsideItsInterval) {
  EXPECT_GT(uniform(0), 0);
  EXPECT_LT(uniform(std::numeric_limits<std::uint64_t>::max()), 1);
}

TEST(Random, NormalIsBoxMullers) {
  for (std::uint64_t i = 0; i < 1000; i += 2) {
    const double a = normal(7, i);
    const double b = normal(7, i + 1);
    EXPECT_NEAR(a * a + b * b, -2 * std::log(uniform(random_bits(7, i))), 1e-12);
    double angle = std::atan2(b, a) / (2 * std::numbers::pi);
    if (angle < 0) angle += 1;
    EXPECT_NEAR(angle, uniform(random_bits(7, i + 1)), 1e-12);
  }
}

TEST(Random, NormalHasItsMoments) {
  constexpr std::uint64_t kCount = 200000;
  double moments[5] = {};
  double neighbours = 0;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const double x = normal(3, i);
    for (int power = 1; power <= 4; ++power) moments[power] += std::pow(x, power) / kCount;
    neighbours += x * normal(3, i + 1) / kCount;
  }
  // Five standard errors: sqrt(E[x^2p] / count).
  const double error = 5 / std::sqrt(static_cast<double>(kCount));
  EXPECT_NEAR(moments[1], 0, error);
  EXPECT_NEAR(moments[2], 1, error * std::sqrt(2.0));
  EXPECT_NEAR(moments[3], 0, error * std::sqrt(15.0));
  EXPECT_NEAR(moments[4], 3, error * std::sqrt(96.0));
  EXPECT_NEAR(neighbours, 0, error);
}

}  // namespace
}  // namespace shardplan
