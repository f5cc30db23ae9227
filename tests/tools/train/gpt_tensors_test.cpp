#include "tools/train/gpt_tensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace shardplan {
namespace {

std::vector<float> initial(const GptConfig& config, std::uint64_t tensor, std::uint64_t first, std::size_t count) {
  std::vector<float> values(count);
  fill_initial(config, tensor, first, values);
  return values;
}

TEST(GptTensors, UnitsAndNames) {
  const GptConfig config{.layers = 3, .width = 32, .heads = 2, .context = 16};
  const Catalog catalog = gpt_catalog(config);
  EXPECT_EQ(unit_count(catalog), 5U);
  EXPECT_EQ(tensor_count(catalog), 2 + 3 * 12 + 3U);
  std::vector<std::string> names;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor&) { names.push_back(name); });
  EXPECT_EQ(names.front(), "token_embedding.weight");
  EXPECT_EQ(names[2], "blocks.0.norm_1.weight");
  EXPECT_EQ(names[2 + 2 * 12 + block::down_bias], "blocks.2.mlp.down.bias");
  EXPECT_EQ(names.back(), "lm_head.weight");
  EXPECT_EQ(std::set(names.begin(), names.end()).size(), names.size());
}

TEST(GptTensors, TheTiedHeadOwnsNothing) {
  GptConfig config{.layers = 2, .width = 32, .heads = 2, .context = 16};
  const Catalog tied = gpt_catalog(config);
  config.tied = false;
  const Catalog untied = gpt_catalog(config);
  EXPECT_EQ(parameter_elements(untied) - parameter_elements(tied), 256U * 32U);
  // GPT-2's count: 12 width^2 + 13 width a block.
  EXPECT_EQ(parameter_elements(tied), 256U * 32 + 16U * 32 + 2U * (12 * 32 * 32 + 13 * 32) + 2U * 32);
  EXPECT_EQ(unit_ties(tied), (std::vector<UnitTie>{{3, 0}}));
  EXPECT_TRUE(unit_ties(untied).empty());
}

TEST(GptTensors, SizesThatCannotBe) {
  EXPECT_THROW(gpt_catalog({.layers = 0}), ConfigError);
  EXPECT_THROW(gpt_catalog({.width = 0}), ConfigError);
  EXPECT_THROW(gpt_catalog({.context = 0}), ConfigError);
  EXPECT_THROW(gpt_catalog({.width = 30, .heads = 4}), ConfigError);
}

TEST(GptTensors, AnyRangeHoldsTheValuesOfTheWhole) {
  const GptConfig config{.layers = 2, .width = 32, .heads = 2, .context = 16, .tied = false, .seed = 3};
  std::uint64_t tensor = 0;
  for_each_tensor(gpt_catalog(config), [&](const std::string& name, const Tensor& of_catalog) {
    const std::size_t size = elements(of_catalog.shape);
    const std::vector<float> whole = initial(config, tensor, 0, size);
    for (const std::size_t first : {std::size_t{0}, std::size_t{1}, std::size_t{7}, size / 2, size - 1}) {
      for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{6}, size - first}) {
        if (first + count > size) continue;
        const auto from = whole.begin() + static_cast<std::ptrdiff_t>(first);
        EXPECT_EQ(initial(config, tensor, first, count),
                  std::vector<float>(from, from + static_cast<std::ptrdiff_t>(count)))
            << name << " from " << first;
      }
    }
    ++tensor;
  });
  EXPECT_THROW(initial(config, 0, std::uint64_t{256} * 32, 1), CheckFailure);
  EXPECT_THROW(initial(config, tensor, 0, 1), CheckFailure);
}

struct Moments {
  double mean = 0;
  double deviation = 0;
};

Moments moments(const std::vector<float>& values) {
  Moments result;
  for (const float value : values) result.mean += static_cast<double>(value) / static_cast<double>(values.size());
  double variance = 0;
  for (const float value : values) variance += std::pow(static_cast<double>(value) - result.mean, 2);
  result.deviation = std::sqrt(variance / static_cast<double>(values.size()));
  return result;
}

TEST(GptTensors, FirstValuesAreGpt2s) {
  const GptConfig config{.layers = 8, .width = 128, .heads = 2, .context = 64, .tied = false};
  const auto of_block = [&](std::size_t place, std::size_t count) {
    return moments(initial(config, embedding::count + 5 * block::count + place, 0, count));
  };
  constexpr std::size_t kCount = std::size_t{128} * 128;
  // Five standard errors of a mean and of a deviation over 16384 values.
  EXPECT_NEAR(of_block(block::qkv_weight, kCount).mean, 0, 0.02 * 5 / 128);
  EXPECT_NEAR(of_block(block::qkv_weight, kCount).deviation, 0.02, 0.02 * 5 / 181);
  EXPECT_NEAR(of_block(block::up_weight, kCount).deviation, 0.02, 0.02 * 5 / 181);
  EXPECT_NEAR(of_block(block::out_weight, kCount).deviation, 0.005, 0.005 * 5 / 181);
  EXPECT_NEAR(of_block(block::down_weight, kCount).deviation, 0.005, 0.005 * 5 / 181);
  for (const std::size_t norm : {block::norm_1_weight, block::norm_2_weight}) {
    EXPECT_EQ(of_block(norm, 128).mean, 1);
    EXPECT_EQ(of_block(norm, 128).deviation, 0);
  }
  for (const std::size_t bias :
       {block::norm_1_bias, block::qkv_bias, block::out_bias, block::norm_2_bias, block::up_bias, block::down_bias}) {
    EXPECT_EQ(of_block(bias, 128).mean, 0);
    EXPECT_EQ(of_block(bias, 128).deviation, 0);
  }
}

TEST(GptTensors, SeedsTensorsAndElementsDiffer) {
  GptConfig config{.layers = 2, .width = 32, .heads = 2, .context = 16, .tied = false};
  std::set<float> seen;
  std::size_t asked = 0;
  for (config.seed = 0; config.seed < 3; ++config.seed) {
    for (const std::uint64_t tensor : {0U, 1U, 4U, 16U, 40U - 12U}) {
      const std::vector<float> values = initial(config, tensor, 0, 100);
      seen.insert(values.begin(), values.end());
      asked += values.size();
    }
  }
  EXPECT_GE(seen.size(), asked - 2);  // two floats in 1500 may meet
}

}  // namespace
}  // namespace shardplan
