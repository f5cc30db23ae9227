#include "tools/train/precision.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "tools/train/random.h"

namespace shardplan {
namespace {

template <typename Element>
TensorView view(std::vector<Element>& elements, DType dtype) {
  return {reinterpret_cast<std::byte*>(elements.data()), dtype, elements.size()};
}

TEST(Precision, Fp32StaysWhereItIs) {
  std::vector<float> values{1, 2, 3};
  EXPECT_EQ(in_fp32(view(values, DType::f32), nullptr), values.data());
}

TEST(Precision, EverySixteenBitPatternIsWidened) {
  std::vector<std::uint16_t> patterns(65536);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  std::vector<float> scratch(patterns.size());
  for (const DType dtype : {DType::bf16, DType::f16}) {
    EXPECT_EQ(in_fp32(view(patterns, dtype), scratch.data()), scratch.data());
    for (const std::uint16_t pattern : patterns) {
      const float expected = dtype == DType::bf16 ? bf16_to_fp32(pattern) : fp16_to_fp32(pattern);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(scratch[pattern]), std::bit_cast<std::uint32_t>(expected)) << pattern;
    }
  }
}

TEST(Precision, AGradientIsTheRoundedSum) {
  for (const std::size_t size : {1U, 7U, 64U, 1003U}) {
    std::vector<float> values(size);
    for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<float>(std::exp(6 * normal(1, i)) * normal(2, i));
    std::vector<float> wide(size, 0.25F);
    std::vector<std::uint16_t> bf16(size, fp32_to_bf16(0.25F));
    std::vector<std::uint16_t> fp16(size, fp32_to_fp16(0.25F));
    add_to_gradient(view(wide, DType::f32), values);
    add_to_gradient(view(bf16, DType::bf16), values);
    add_to_gradient(view(fp16, DType::f16), values);
    for (std::size_t i = 0; i < size; ++i) {
      ASSERT_EQ(wide[i], 0.25F + values[i]);
      ASSERT_EQ(bf16[i], fp32_to_bf16(0.25F + values[i]));
      ASSERT_EQ(fp16[i], fp32_to_fp16(0.25F + values[i]));
    }
  }
}

TEST(Precision, AnEmptyGradientIsAFrozenTensors) {
  const std::vector<float> values{1, 2};
  EXPECT_NO_THROW(add_to_gradient(TensorView{}, values));
  std::vector<float> gradient{1};
  EXPECT_THROW(add_to_gradient(view(gradient, DType::f32), values), CheckFailure);
}

TEST(Precision, OtherTypesAreRefused) {
  std::vector<double> values{1};
  EXPECT_THROW(in_fp32(view(values, DType::f64), nullptr), ConfigError);
  EXPECT_THROW(add_to_gradient(view(values, DType::f64), std::vector<float>{1}), ConfigError);
}

}  // namespace
}  // namespace shardplan
