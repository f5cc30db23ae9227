// What tests/data/families/deepseek.json cannot say of DeepSeek: notes.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include "planner/formats/hf_config.h"

namespace shardplan {
namespace {

Model deepseek(int predicted) {
  return model_from_hf_config(
      fmt::format(
          R"({{"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 100, "hidden_size": 40,
      "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 6,
      "max_position_embeddings": 64, "q_lora_rank": 20, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
      "v_head_dim": 10, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2,
      "moe_intermediate_size": 12, "first_k_dense_replace": 1, "tie_word_embeddings": false,
      "num_nextn_predict_layers": {}}})",
          predicted),
      "test");
}

TEST(DeepSeek, MultiTokenPredictionIsNotedAndNotSized) {
  const Model model = deepseek(1);
  ASSERT_EQ(model.catalog.notes.size(), 1U);
  EXPECT_NE(model.catalog.notes[0].find("num_nextn_predict_layers 1"), std::string::npos) << model.catalog.notes[0];
  EXPECT_NE(model.catalog.notes[0].find("not sized"), std::string::npos);
  EXPECT_EQ(deepseek(0).catalog.notes, std::vector<std::string>{});
  EXPECT_EQ(parameter_elements(model.catalog), parameter_elements(deepseek(0).catalog));
}

}  // namespace
}  // namespace shardplan
