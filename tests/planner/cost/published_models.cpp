#include "tests/planner/cost/published_models.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"
#include "planner/formats/hf_config.h"

namespace shardplan::test {
namespace {

struct Published {
  std::string_view name;
  std::uint64_t layers;
  std::string_view config;  // but the layers
};

// SimuMax 1.2, configs/models; its DeepSeek rows have one dense layer. GPT OSS: openai/gpt-oss-120b, config.json.
constexpr std::array kPublished{
    Published{
        "llama3-70b", 80,
        R"("model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 8192,
                 "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8)"},
    Published{
        "llama3-405b", 126,
        R"("model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 16384,
                 "intermediate_size": 53248, "num_attention_heads": 128, "num_key_value_heads": 16)"},
    Published{"deepseekv2", 60,
              R"("model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "vocab_size": 102400,
                 "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
                 "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
                 "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 160, "num_experts_per_tok": 6,
                 "n_shared_experts": 2, "first_k_dense_replace": 1)"},
    Published{"deepseekv3", 61,
              R"("model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 129280,
                 "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
                 "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
                 "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "num_experts_per_tok": 8,
                 "n_shared_experts": 1, "first_k_dense_replace": 1)"},
    Published{"GPT OSS 120B", 36,
              R"("model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 201088,
                 "hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8,
                 "head_dim": 64, "num_local_experts": 128, "num_experts_per_tok": 4)"},
    Published{"Qwen3_30B_a3B", 48,
              R"("model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936,
                 "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
                 "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
                 "num_experts_per_tok": 8, "tie_word_embeddings": false)"},
};

const Published* find(std::string_view name) {
  const auto found = std::find_if(kPublished.begin(), kPublished.end(),
                                  [&](const Published& published) { return published.name == name; });
  return found == kPublished.end() ? nullptr : &*found;
}

}  // namespace

bool is_published_model(std::string_view name) {
  return find(name) != nullptr;
}

Model published_model(std::string_view name, std::uint64_t layers) {
  const Published* published = find(name);
  SHARDPLAN_CHECK(published != nullptr, "no published model of that name");
  const std::uint64_t count = layers > 0 ? layers : published->layers;
  return model_from_hf_config(fmt::format("{{\"num_hidden_layers\": {}, {}}}", count, published->config),
                              std::string(name));
}

}  // namespace shardplan::test
