#include "shard/kernels/arrays.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "base/error.h"
#include "tests/shard/kernels/reference_update.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr std::size_t kLengths[] = {0, 1, 5, 31, 32, 33, 1023, 1024, 100003};

std::size_t width(DType dtype) {
  return bits(dtype) / 8;
}

// Values of every exponent that the dtype has; `start` elements into the buffer.
std::vector<std::byte> random_values(DType dtype, std::size_t start, std::size_t elements, std::mt19937& random) {
  std::vector<std::byte> bytes((start + elements) * width(dtype));
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < start + elements; ++i) {
    const int exponent =
        dtype == DType::f16 ? static_cast<int>(random() % 26) - 16 : static_cast<int>(random() % 80) - 40;
    test::store(dtype, std::ldexp(normal(random), exponent), bytes.data() + i * width(dtype));
  }
  return bytes;
}

// The order that the header promises, literally.
double reference_sum(DType dtype, const std::byte* values, std::size_t elements) {
  std::vector<double> lanes(32, 0.0);
  for (std::size_t i = 0; i < elements; ++i) {
    const double value = test::load(dtype, values + i * width(dtype));
    lanes[i % 32] += value * value;
  }
  while (lanes.size() > 1) {
    const std::size_t half = lanes.size() / 2;
    for (std::size_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
    lanes.resize(half);
  }
  return lanes[0];
}

void expect_reference_sum(DType dtype, std::size_t start, std::size_t elements, std::mt19937& random) {
  const auto bytes = random_values(dtype, start, elements, random);
  const std::byte* values = bytes.data() + start * width(dtype);
  const double expected = reference_sum(dtype, values, elements);
  for (const OptimizerKernels& kernels : optimizer_kernels()) {
    const SumOfSquares result = sum_of_squares({dtype, values, elements}, kernels);
    ASSERT_EQ(result.sum, expected) << kernels.level << " " << name(dtype) << " " << elements;
    ASSERT_TRUE(result.finite);
  }
}

TEST(SumOfSquares, EveryLevelSumsInThePromisedOrder) {
  std::mt19937 random(1);
  for (const DType dtype : kDTypes) {
    for (const std::size_t elements : kLengths) expect_reference_sum(dtype, random() % 33, elements, random);
  }
}

TEST(SumOfSquares, RandomLengthsAndOffsets) {
  test_support::check_property(150, [](std::uint32_t seed) {
    std::mt19937 random(seed);
    expect_reference_sum(kDTypes[random() % 3], random() % 70, random() % 5000, random);
    RC_ASSERT(!::testing::Test::HasFatalFailure());
  });
}

TEST(SumOfSquares, FindsOneBadElementAnywhere) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const OptimizerKernels& kernels : optimizer_kernels()) {
    for (const DType dtype : kDTypes) {
      std::vector<std::byte> bytes(133 * width(dtype));
      for (std::size_t i = 0; i < 133; ++i) {
        for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
          test::store(dtype, bad, bytes.data() + i * width(dtype));
          const SumOfSquares result = sum_of_squares({dtype, bytes.data(), 133}, kernels);
          EXPECT_FALSE(result.finite) << kernels.level << " " << name(dtype) << " " << i << " " << bad;
          EXPECT_FALSE(std::isfinite(result.sum));
        }
        test::store(dtype, 0, bytes.data() + i * width(dtype));
      }
    }
  }
}

TEST(SumOfSquares, LargestFiniteValuesAreFinite) {
  const std::vector<float> values(1000, std::numeric_limits<float>::max());
  const SumOfSquares result = sum_of_squares(std::span<const float>(values));
  EXPECT_TRUE(result.finite);
  const double square = static_cast<double>(values[0]) * static_cast<double>(values[0]);
  EXPECT_NEAR(result.sum / (1000 * square), 1, 1e-12);
}

TEST(SumOfSquares, ZerosAtTheEndChangeNoBit) {
  std::mt19937 random(2);
  std::vector<float> values(1000);
  for (float& value : values) value = std::normal_distribution<float>()(random);
  const double before = sum_of_squares(std::span<const float>(values)).sum;
  values.resize(4096, 0.0F);
  EXPECT_EQ(sum_of_squares(std::span<const float>(values)).sum, before);
}

TEST(Cast, EveryLevelConvertsAsBaseHalfDoes) {
  std::mt19937 random(3);
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      for (const std::size_t elements : kLengths) {
        const std::size_t start = random() % 33;
        const auto bytes = random_values(from, start, elements, random);
        std::vector<std::byte> expected((elements + 8) * width(to), std::byte{0x5a});
        std::vector<std::byte> result = expected;
        for (std::size_t i = 0; i < elements; ++i) {
          test::store(to, test::load(from, bytes.data() + (start + i) * width(from)),
                      expected.data() + (i + 4) * width(to));
        }
        for (const OptimizerKernels& kernels : optimizer_kernels()) {
          cast({to, result.data() + 4 * width(to), elements}, {from, bytes.data() + start * width(from), elements},
               kernels);
          ASSERT_EQ(result, expected) << kernels.level << " " << name(from) << " to " << name(to) << " " << elements;
        }
      }
    }
  }
}

TEST(Cast, EverySixteenBitValueComesBack) {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  for (const OptimizerKernels& kernels : optimizer_kernels()) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      std::vector<float> wide(halves.size());
      std::vector<std::uint16_t> back(halves.size());
      cast(std::span(wide), {dtype, std::span<const std::uint16_t>(halves)}, kernels);
      cast({dtype, std::span(back)}, std::span<const float>(wide), kernels);
      for (std::size_t i = 0; i < halves.size(); ++i) {
        ASSERT_TRUE(std::isnan(wide[i]) || back[i] == halves[i]) << kernels.level << " " << halves[i];
      }
    }
  }
}

TEST(Arrays, RefuseOtherDTypesAndLengths) {
  std::vector<float> values(4);
  const Elements whole{std::span(values)};
  EXPECT_THROW(cast(whole, ConstElements(std::span<const float>(values).first(3))), CheckFailure);
  EXPECT_THROW(cast({DType::f64, whole.data, 2}, {DType::f32, whole.data, 2}), CheckFailure);
  EXPECT_THROW(cast({DType::f32, whole.data, 2}, {DType::i8, whole.data, 2}), CheckFailure);
  EXPECT_THROW(sum_of_squares({DType::f64, whole.data, 2}), CheckFailure);
}

}  // namespace
}  // namespace shardplan
