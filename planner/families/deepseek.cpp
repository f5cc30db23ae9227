// DeepSeek and its kin: multi-head latent attention, and after the first layers experts beside shared ones.
#include <fmt/format.h>

#include "base/checked.h"
#include "planner/families/decoder.h"

namespace shardplan {
namespace {

// Queries, and keys with values, come from narrow projections. A key is `positionless` features of its head and
// `rotary` ones that all heads share.
struct LatentSizes {
  std::uint64_t query_rank = 0;  // 0: queries are projected at once
  std::uint64_t key_rank = 0;
  std::uint64_t positionless = 0;
  std::uint64_t rotary = 0;
  std::uint64_t value = 0;
};

LatentSizes read_latent(ModelConfig& config) {
  LatentSizes sizes;
  sizes.query_rank = config.count("q_lora_rank", 1536);
  sizes.key_rank = config.size("kv_lora_rank", 512);
  sizes.positionless = config.size("qk_nope_head_dim", 128);
  sizes.rotary = config.size("qk_rope_head_dim", 64);
  sizes.value = config.size("v_head_dim", 128);
  if (sizes.positionless + sizes.rotary > ModelConfig::kLargestSize) {
    config.fail("qk_nope_head_dim", fmt::format("expected at most {} together with qk_rope_head_dim, found {} and {}",
                                                ModelConfig::kLargestSize, sizes.positionless, sizes.rotary));
  }
  return sizes;
}

// What a head's keys and values are made of decides its sizes: num_key_value_heads and head_dim do not.
Architecture read_sizes(ModelConfig& config, const Architecture& defaults, const LatentSizes& sizes) {
  Architecture a;
  a.vocabulary = config.size("vocab_size", defaults.vocabulary);
  a.hidden = config.size("hidden_size", defaults.hidden);
  a.intermediate = config.size("intermediate_size", defaults.intermediate);
  a.layers = config.size("num_hidden_layers", defaults.layers);
  a.heads = config.size("num_attention_heads", defaults.heads);
  a.max_positions = config.size("max_position_embeddings", defaults.max_positions);
  a.kv_heads = a.heads;
  a.head_size = sizes.positionless + sizes.rotary;
  return a;
}

Modules latent_attention(const Architecture& a, const LatentSizes& sizes, bool bias, bool interleaved, double dropped) {
  const std::uint64_t queries = a.heads * a.head_size;
  const Modules query =
      sizes.query_rank == 0
          ? linear("q_proj", a.hidden, queries, false)
          : join({linear("q_a_proj", a.hidden, sizes.query_rank, bias), rms_norm("q_a_layernorm", sizes.query_rank),
                  linear("q_b_proj", sizes.query_rank, queries, false)});
  return below("self_attn",
               join({query, linear("kv_a_proj_with_mqa", a.hidden, sizes.key_rank + sizes.rotary, bias),
                     rms_norm("kv_a_layernorm", sizes.key_rank),
                     linear("kv_b_proj", sizes.key_rank, a.heads * (sizes.positionless + sizes.value), false),
                     attention("attention", {.heads = a.heads,
                                             .kv_heads = a.kv_heads,
                                             .head_size = a.head_size,
                                             .rotary = true,
                                             .interleaved = interleaved,
                                             .value_size = sizes.value,
                                             .rotary_size = sizes.rotary}),
                     dropout("dropout", dropped), linear("o_proj", a.heads * sizes.value, a.hidden, bias)}));
}

// The numbers of a class.
struct Defaults {
  Architecture sizes;
  std::uint64_t experts = 0;
  std::uint64_t chosen = 0;  // 0: the file has to say it
  std::uint64_t shared = 0;
  std::uint64_t intermediate = 0;  // of an expert
  std::uint64_t dense_layers = 0;
};

// V2's class chooses among groups where topk_method says so; V3's always does.
bool limits_groups(const ModelConfig& config, bool always) {
  return always || config.text("topk_method", "greedy") == "group_limited_greedy";
}

// A bias for each expert, moved by its load and not by a gradient, if there is `balancing`.
Modules experts(ModelConfig& config, const Architecture& a, const Defaults& defaults, bool balancing, bool bias) {
  const std::uint64_t count = config.listed("n_routed_experts", defaults.experts);
  if (defaults.chosen == 0) config.required_size("num_experts_per_tok");
  Routing routing = read_routing(config, "num_experts_per_tok", defaults.chosen, count);
  routing.grouped = limits_groups(config, balancing);
  routing.normalized = balancing && config.flag("norm_topk_prob", true);
  const std::uint64_t intermediate = config.size("moe_intermediate_size", defaults.intermediate);
  const std::uint64_t shared = config.count("n_shared_experts", defaults.shared);
  // None of them is a module of no features; null is no module.
  const bool has_shared = config.has("n_shared_experts") || !config.present("n_shared_experts");
  const std::string function = config.text("hidden_act", "silu");
  const auto mlp = [&](std::string_view name, std::uint64_t width) {
    return gated_mlp(name, a.hidden, width, function, bias);
  };
  return below("mlp", join({routed(repeated("experts", count, mlp("", intermediate)), routing),
                            router("gate", a.hidden, count, false),
                            balancing ? frozen(parameter("gate.e_score_correction_bias", {count})) : Modules{},
                            has_shared ? mlp("shared_experts", intermediate * shared) : Modules{}}));
}

// n_routed_experts null: no layer has experts. moe_layer_freq is the published code's; transformers' classes have
// experts in every layer behind the first ones.
void deepseek(ModelConfig& config, ModelBuilder& model, const Defaults& defaults, bool balancing, bool mlp_bias) {
  const LatentSizes latent = read_latent(config);
  const Architecture a = read_sizes(config, defaults.sizes, latent);
  const std::uint64_t first = config.count("first_k_dense_replace", defaults.dense_layers);
  const std::uint64_t step = config.present("moe_layer_freq") ? config.size("moe_layer_freq", 1) : 1;
  const bool none = config.present("n_routed_experts") && !config.has("n_routed_experts");
  const bool any = !none && round_up(first, step) < a.layers;
  const Modules attention =
      latent_attention(a, latent, config.flag("attention_bias", false), config.flag("rope_interleave", true),
                       config.number("attention_dropout", 0));
  const Modules norms = join({rms_norm("input_layernorm", a.hidden), rms_norm("post_attention_layernorm", a.hidden)});
  const Modules dense = gated_mlp("mlp", a.hidden, a.intermediate, config.text("hidden_act", "silu"), mlp_bias);
  const Modules sparse = any ? experts(config, a, defaults, balancing, mlp_bias) : Modules{};
  model.describe(a);
  model.add(embedding("embed_tokens", a.vocabulary, a.hidden));
  model.blocks(
      "layers", a.layers, [&](std::uint64_t layer) { return any && layer >= first && layer % step == 0; },
      [&](bool with_experts) { return join({attention, with_experts ? sparse : dense, norms}); });
  model.add(rms_norm("norm", a.hidden));
  model.head("embed_tokens", false);
}

// modeling_deepseek_v2.py. Its kin that balance experts without a loss (DeepSeek-VL2's) say so in topk_method.
void deepseek_v2(ModelConfig& config, ModelBuilder& model) {
  const Defaults defaults{.sizes = {.vocabulary = 32000,
                                    .hidden = 4096,
                                    .intermediate = 11008,
                                    .layers = 32,
                                    .heads = 32,
                                    .max_positions = 2048},
                          .experts = 64,
                          .shared = 2,
                          .intermediate = 1407};
  const bool balancing = config.text("topk_method", "greedy") == "noaux_tc";
  deepseek(config, model, defaults, balancing, config.flag("mlp_bias", false));
}

// Balances experts without a loss, whatever topk_method says (modeling_deepseek_v3.py). Kimi K2 is of this class.
void deepseek_v3(ModelConfig& config, ModelBuilder& model) {
  const Defaults defaults{.sizes = {.vocabulary = 129280,
                                    .hidden = 7168,
                                    .intermediate = 18432,
                                    .layers = 61,
                                    .heads = 128,
                                    .max_positions = 4096},
                          .experts = 256,
                          .chosen = 8,
                          .shared = 1,
                          .intermediate = 2048,
                          .dense_layers = 3};
  deepseek(config, model, defaults, true, false);
  // The class makes none of them, and drops their weights when it reads a checkpoint (modeling_deepseek_v3.py,
  // _keys_to_ignore_on_load_unexpected); files of weights hold them behind the last layer.
  const std::uint64_t predicted = config.count_or_none("num_nextn_predict_layers");
  if (predicted > 0) {
    config.note(
        fmt::format("num_nextn_predict_layers {}: multi-token prediction is in files of weights, not in the model's "
                    "class: not sized",
                    predicted));
  }
}

}  // namespace

std::span<const Family> deepseek_families() {
  static const Family families[] = {
      {"deepseek_v2", "DeepseekV2", decoder_heads(), {}, deepseek_v2},
      {"deepseek_v3", "DeepseekV3", decoder_heads(), {}, deepseek_v3},
      {"kimi_k2", "DeepseekV3", decoder_heads(), {}, deepseek_v3},
  };
  return families;
}

}  // namespace shardplan
