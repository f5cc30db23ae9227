// LitGPT's GPT (litgpt/model.py): one class for many models, told apart by a model_config.yaml whose keys are read here.
//
// Its one matrix for queries, keys and values is three modules here, attn.query, attn.key and attn.value: they hold the
// same elements, and adapters of one of them (lora_query ...) can be named. The head is never tied.
#include "planner/families/litgpt.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "planner/families/decoder.h"
#include "planner/formats/hf_config.h"

namespace shardplan {
namespace {

constexpr Head kHeads[] = {{"GPT", "", "", HeadOutput::none, false}};

// `unit_offset`: weighted by 1 + weight (Gemma).
Modules norm(const ModelConfig& config, std::string name, std::uint64_t width) {
  if (config.text("norm_class_name", "LayerNorm") != "RMSNorm") return layer_norm(std::move(name), width);
  Modules modules = rms_norm(std::move(name), width);
  if (config.text("mlp_class_name", "GptNeoxMLP") == "GemmaMLP") modules[0].function = "unit_offset";
  return modules;
}

Architecture read_architecture(ModelConfig& config) {
  Architecture a;
  a.vocabulary = config.size("padded_vocab_size", 50688);
  a.hidden = config.size("n_embd", 4096);
  a.layers = config.size("n_layer", 16);
  a.heads = config.size("n_head", 32);
  a.kv_heads = config.optional_size("n_query_groups").value_or(a.heads);
  config.require_divisor("n_query_groups", a.kv_heads, "n_head", a.heads);
  if (!config.has("head_size")) config.require_divisor("n_head", a.heads, "n_embd", a.hidden);
  a.head_size = config.optional_size("head_size").value_or(a.hidden / a.heads);
  a.intermediate = config.optional_size("intermediate_size").value_or(4 * a.hidden);
  a.max_positions = config.size("block_size", 4096);
  return a;
}

Modules attention_of(ModelConfig& config, const Architecture& a) {
  const bool bias = config.flag("bias", true);
  const bool input_bias = bias || config.flag("attn_bias", false);
  AttentionSizes sizes = attention_sizes(a, true);
  const auto rotated =
      static_cast<std::uint64_t>(config.factor("rotary_percentage", 0.25) * static_cast<double>(a.head_size));
  if (rotated > a.head_size) config.fail("rotary_percentage", "expected at most 1");
  sizes.rotary_size = rotated;
  if (config.has("sliding_window_size")) {
    sizes.window = config.size("sliding_window_size", 4096);
    for (const std::uint64_t in_window :
         config.counts("sliding_window_indices").value_or(std::vector<std::uint64_t>{})) {
      sizes.whole.push_back(in_window == 0);
    }
  }
  const std::uint64_t groups = a.kv_heads * a.head_size;
  const bool capped = config.has("attention_logit_softcapping");
  return below("attn", join({linear("query", a.hidden, a.heads * a.head_size, input_bias),
                             linear("key", a.hidden, groups, input_bias), linear("value", a.hidden, groups, input_bias),
                             attention("attention", sizes), capped ? activation("softcap", "tanh", a.heads) : Modules{},
                             linear("proj", a.heads * a.head_size, a.hidden, bias)}));
}

Modules mlp_of(const ModelConfig& config, const Architecture& a) {
  const bool bias = config.flag("bias", true);
  const std::string kind = config.text("mlp_class_name", "GptNeoxMLP");
  if (kind == "GptNeoxMLP") return plain_mlp("mlp", "fc", "proj", a.hidden, a.intermediate, "gelu", bias);
  if (kind != "LLaMAMLP" && kind != "GemmaMLP") {
    config.fail("mlp_class_name", fmt::format("expected GptNeoxMLP, LLaMAMLP or GemmaMLP, found {}", kind));
  }
  return below("mlp",
               join({linear("fc_1", a.hidden, a.intermediate, bias), linear("fc_2", a.hidden, a.intermediate, bias),
                     activation("act", kind == "GemmaMLP" ? "gelu" : "silu", a.intermediate),
                     multiply("gate", a.intermediate), linear("proj", a.intermediate, a.hidden, bias)}));
}

void litgpt(ModelConfig& config, ModelBuilder& model) {
  for (const char* key : {"norm_qk", "n_expert", "latent_attention"}) {
    if (config.has(key) && !config.says(key, "false")) config.fail(key, "is not known of family litgpt");
  }
  const Architecture a = read_architecture(config);
  const bool shared = config.flag("shared_attention_norm", false);
  model.describe(a);
  model.add(join({embedding("transformer.wte", a.vocabulary, a.hidden),
                  config.flag("scale_embeddings", false) ? multiply("transformer.scale", a.hidden) : Modules{}}));
  model.blocks(
      "transformer.h", a.layers,
      join({norm(config, "norm_1", a.hidden), attention_of(config, a),
            config.flag("post_attention_norm", false) ? norm(config, "post_attention_norm", a.hidden) : Modules{},
            shared ? Modules{} : norm(config, "norm_2", a.hidden), mlp_of(config, a),
            config.flag("post_mlp_norm", false) ? norm(config, "post_mlp_norm", a.hidden) : Modules{},
            config.flag("parallel_residual", true) ? residual("parallel") : Modules{}}));
  model.add(norm(config, "transformer.ln_f", a.hidden));
  model.add_outside(linear("lm_head", a.hidden, a.vocabulary, config.flag("lm_head_bias", false)));
  if (config.has("final_logit_softcapping")) model.add_outside(activation("logits_softcap", "tanh", a.vocabulary));
}

// What tells a model type apart, as litgpt/config.py says it.
struct Traits {
  std::string_view model_type;
  std::string_view settings;  // members of a JSON object
};
constexpr std::string_view kLlama =
    R"("norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": false, "bias": false)";
constexpr std::string_view kGemma =
    R"("norm_class_name": "RMSNorm", "mlp_class_name": "GemmaMLP", "parallel_residual": false, "bias": false,
       "scale_embeddings": true)";
constexpr std::string_view kGemma2 =
    R"("norm_class_name": "RMSNorm", "mlp_class_name": "GemmaMLP", "parallel_residual": false, "bias": false,
       "scale_embeddings": true, "post_attention_norm": true, "post_mlp_norm": true,
       "attention_logit_softcapping": 50.0, "final_logit_softcapping": 30.0)";
constexpr Traits kTraits[] = {{"llama", kLlama},
                              {"mistral", kLlama},
                              {"phi3", kLlama},
                              {"qwen2", R"("norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP",
                                           "parallel_residual": false, "bias": false, "attn_bias": true)"},
                              {"gemma", kGemma},
                              {"gemma2", kGemma2},
                              {"falcon", R"("bias": false)"},
                              {"phi", R"("shared_attention_norm": true, "lm_head_bias": true)"},
                              {"gpt_neox", R"("bias": true)"}};

const Modules& block_of(const Model& model) {
  for (const ModuleRun& run : model.modules) {
    if (run.numbered) return run.modules;
  }
  throw ConfigError(model.catalog.name, "", "expected a model whose blocks are known, for profile litgpt");
}

bool holds_module(const Modules& block, std::string_view name) {
  return std::any_of(block.begin(), block.end(), [&](const Module& m) { return m.name == name; });
}

}  // namespace

Model litgpt_model(const Model& model) {
  const auto traits = std::find_if(std::begin(kTraits), std::end(kTraits),
                                   [&](const Traits& t) { return t.model_type == model.catalog.family; });
  if (traits == std::end(kTraits)) {
    throw ConfigError(model.catalog.name, "", fmt::format("profile litgpt does not know {}", model.catalog.family));
  }
  const Modules& block = block_of(model);
  const auto attention =
      std::find_if(block.begin(), block.end(), [](const Module& m) { return m.attention.has_value(); });
  const AttentionSizes sizes = attention->attention.value();
  const Architecture& a = model.architecture;
  std::string text(traits->settings);
  if (traits->model_type == "falcon" && !holds_module(block, "ln_mlp")) text += R"(, "shared_attention_norm": true)";
  if (traits->model_type == "gpt_neox" && !holds_module(block, "residual")) text += R"(, "parallel_residual": false)";
  if (sizes.window > 0) {
    std::vector<int> in_window;
    for (const bool whole : sizes.whole) in_window.push_back(whole ? 0 : 1);
    text += fmt::format(R"(, "sliding_window_size": {}, "sliding_window_indices": [{}])", sizes.window,
                        fmt::join(in_window, ", "));
  }
  const double share =
      sizes.rotary_size == 0 ? 1 : static_cast<double>(sizes.rotary_size) / static_cast<double>(a.head_size);
  const std::string config = fmt::format(
      R"({{"model_type": "litgpt", "architectures": ["GPT"], "padded_vocab_size": {}, "n_embd": {}, "n_layer": {},
          "n_head": {}, "n_query_groups": {}, "head_size": {}, "intermediate_size": {}, "block_size": {},
          "rotary_percentage": {}, {}}})",
      a.vocabulary, a.hidden, a.layers, a.heads, a.kv_heads, a.head_size, a.intermediate,
      std::max<std::uint64_t>(a.max_positions, 1), share, text);
  return model_from_hf_config(config, model.catalog.name);
}

std::span<const Family> litgpt_families() {
  static const Family families[] = {{"litgpt", "", kHeads, {}, litgpt}};
  return families;
}

}  // namespace shardplan
