// What tests/data/families/mamba.json cannot say: which parameters one token uses, and modules without tensors.
#include <gtest/gtest.h>

#include "planner/formats/hf_config.h"
#include "tests/planner/families/config_text.h"

namespace shardplan {
namespace {

using test_support::config_text;
using test_support::Keys;

const Keys kJamba{{"model_type", "\"jamba\""},  {"vocab_size", "100"},
                  {"hidden_size", "40"},        {"intermediate_size", "56"},
                  {"num_hidden_layers", "8"},   {"num_attention_heads", "4"},
                  {"num_key_value_heads", "2"}, {"max_position_embeddings", "64"},
                  {"attn_layer_period", "4"},   {"attn_layer_offset", "1"},
                  {"expert_layer_period", "2"}, {"expert_layer_offset", "0"},
                  {"num_experts", "5"},         {"num_experts_per_tok", "2"}};

Model jamba(const Keys& changes = {}) {
  return model_from_hf_config(config_text(kJamba, changes), "config.json");
}

const Module* find(const Modules& modules, ModuleKind kind) {
  for (const Module& module : modules) {
    if (module.kind == kind) return &module;
  }
  return nullptr;
}

TEST(Jamba, OneTokenUsesTheChosenExperts) {
  const Catalog catalog = jamba().catalog;
  // 4 of 8 layers have experts; a token passes by 3 of the 5.
  EXPECT_EQ(catalog.active_parameters, parameter_elements(catalog) - 4 * 3 * (3 * 40 * 56));
  EXPECT_EQ(jamba({{"num_experts", "1"}}).catalog.active_parameters, std::nullopt);
}

TEST(Jamba, AttentionIsEveryPeriodWithoutPositions) {
  std::vector<std::uint64_t> attending;
  for (const ModuleRun& run : jamba().modules) {
    const Module* attention = find(run.modules, ModuleKind::attention);
    const Module* scan = find(run.modules, ModuleKind::scan);
    EXPECT_EQ(run.numbered, (attention != nullptr) != (scan != nullptr));
    if (scan != nullptr) {
      EXPECT_EQ(scan->input, 80U * 16);
    }
    if (attention == nullptr) continue;
    EXPECT_EQ(attention->attention, (AttentionSizes{4, 2, 10, false}));
    for (std::uint64_t i = 0; i < run.count; ++i) attending.push_back(run.first_number + i);
  }
  EXPECT_EQ(attending, (std::vector<std::uint64_t>{1, 5}));
}

TEST(FalconMamba, NormsInsideTheMixerHaveNoWeights) {
  const Model model = model_from_hf_config(
      R"({"model_type": "falcon_mamba", "vocab_size": 100, "hidden_size": 40, "num_hidden_layers": 2})", "config.json");
  std::vector<std::uint64_t> widths;
  for (const Module& module : model.modules.at(1).modules) {
    if (module.kind == ModuleKind::rms_norm && module.tensors.empty()) widths.push_back(module.input);
  }
  EXPECT_EQ(widths, (std::vector<std::uint64_t>{3, 16, 16}));
}

}  // namespace
}  // namespace shardplan
