// Mixtures of experts: decoders in the manner of Llama, with a router and many experts in place of the MLP.
#include <set>

#include "planner/families/decoder.h"

namespace shardplan {
namespace {

void describe_and_embed(ModelBuilder& model, const Architecture& a) {
  model.describe(a);
  model.add(embedding("embed_tokens", a.vocabulary, a.hidden));
}

void norm_and_head(ModelBuilder& model, const Architecture& a) {
  model.add(rms_norm("norm", a.hidden));
  model.head("embed_tokens", false);
}

std::string function_of(const ModelConfig& config) {
  return config.text("hidden_act", "silu");
}

// How many of `experts` a token passes, and whether what all routers say is a term of the loss.
Routing read_balanced(ModelConfig& config, std::uint64_t chosen_by_default, std::uint64_t experts) {
  Routing routing = read_routing(config, "num_experts_per_tok", chosen_by_default, experts);
  routing.balanced = config.flag("output_router_logits", false);
  return routing;
}

// Noise that what the router and the experts read is multiplied by in training.
Modules input_jitter(const ModelConfig& config, std::string_view attribute) {
  return dropout("input_jitter", config.has(attribute) ? config.number(attribute, 0) : 0);
}

// The same of DbrxRouter, which multiplies where a width is said, 0 too.
Modules noise_of_any_width(const ModelConfig& config, std::string_view attribute) {
  if (!config.has(attribute)) return {};
  Modules noise = dropout("input_jitter", 1);
  noise.front().rate = config.number(attribute, 0);
  return noise;
}

// w2(act(w1(x)) * w3(x)) for each expert.
Modules block_sparse_moe(ModelConfig& config, const Architecture& a, std::uint64_t experts_by_default,
                         std::string_view jitter) {
  const std::uint64_t experts = config.listed("num_local_experts", experts_by_default);
  Routing routing = read_balanced(config, 2, experts);
  routing.normalized = true;
  const Modules expert =
      join({linear("w1", a.hidden, a.intermediate, false), linear("w2", a.intermediate, a.hidden, false),
            linear("w3", a.hidden, a.intermediate, false), activation("act_fn", function_of(config), a.intermediate),
            multiply("gate", a.intermediate)});
  return below("block_sparse_moe", join({input_jitter(config, jitter), router("gate", a.hidden, experts, false),
                                         routed(repeated("experts", experts, expert), routing)}));
}

// modeling_mixtral.py
void mixtral(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 32000,
                                                       .hidden = 4096,
                                                       .intermediate = 14336,
                                                       .layers = 32,
                                                       .heads = 32,
                                                       .kv_heads = 8,
                                                       .max_positions = 131072});
  describe_and_embed(model, a);
  model.blocks("layers", a.layers,
               join({windowed(split_attention("self_attn", a, {.dropout = config.number("attention_dropout", 0)}),
                              read_window(config, 0)),
                     block_sparse_moe(config, a, 8, "router_jitter_noise"), norms_before(a)}));
  norm_and_head(model, a);
}

// Mixtral with LayerNorm, and biases that the file may ask for, the head's too (modeling_phimoe.py).
void phimoe(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_width(config, {.vocabulary = 32064,
                                                     .hidden = 4096,
                                                     .intermediate = 6400,
                                                     .layers = 32,
                                                     .heads = 32,
                                                     .kv_heads = 8,
                                                     .max_positions = 131072});
  const bool bias = config.flag("attention_bias", false);
  describe_and_embed(model, a);
  const Modules attention =
      windowed(split_attention("self_attn", a,
                               {.bias = bias, .output_bias = bias, .dropout = config.number("attention_dropout", 0)}),
               read_window(config, 0));
  model.blocks("layers", a.layers,
               join({attention, block_sparse_moe(config, a, 16, "input_jitter_noise"),
                     layer_norm("input_layernorm", a.hidden), layer_norm("post_attention_layernorm", a.hidden)}));
  model.add(layer_norm("norm", a.hidden));
  model.head("embed_tokens", false);
  if (config.head().output != HeadOutput::custom) return;
  Modules head = linear("lm_head", a.hidden, a.vocabulary, config.flag("lm_head_bias", false));
  const bool tied_head = config.ties_embeddings(false);
  model.add_outside(tied_head ? tied(std::move(head), model.whole("embed_tokens.weight")) : std::move(head));
}

// One window for all layers, if it is asked for.
AttentionWindow read_window_if_used(ModelConfig& config) {
  return config.flag("use_sliding_window", false) ? read_window(config, 4096) : AttentionWindow{};
}

// The blocks of Qwen's mixtures. Experts are in every decoder_sparse_step-th layer that mlp_only_layers does not list,
// and in none where there are none; the other layers have an MLP.
void qwen_blocks(ModelConfig& config, ModelBuilder& model, const Architecture& a, const Modules& attention,
                 const Modules& experts) {
  const std::uint64_t step = config.size("decoder_sparse_step", 1);
  const auto listed = config.counts("mlp_only_layers").value_or(std::vector<std::uint64_t>{});
  const std::set<std::uint64_t> dense(listed.begin(), listed.end());
  const auto sparse = [&](std::uint64_t layer) {
    return !experts.empty() && (layer + 1) % step == 0 && !dense.contains(layer);
  };
  const Modules mlp = gated_mlp("mlp", a.hidden, a.intermediate, function_of(config), false);
  model.blocks("layers", a.layers, sparse,
               [&](bool with_experts) { return join({attention, with_experts ? experts : mlp, norms_before(a)}); });
}

// Unlike the others, these may have no experts at all.
std::uint64_t read_qwen_experts(ModelConfig& config, std::uint64_t class_default) {
  const bool none = config.present("num_experts") && config.count("num_experts", 0) == 0;
  return none ? 0 : config.listed("num_experts", class_default);
}

Modules router_and_experts(const ModelConfig& config, const Routing& routing, std::uint64_t hidden,
                           std::uint64_t intermediate) {
  return join({router("gate", hidden, routing.experts, false),
               gated_experts("experts", routing, hidden, intermediate, function_of(config))});
}

// One more expert for all tokens, with a gate of its own.
Modules shared_expert(ModelConfig& config, const Architecture& a) {
  const std::uint64_t intermediate = config.count("shared_expert_intermediate_size", 5632);
  return join({gated_mlp("shared_expert", a.hidden, intermediate, function_of(config), false),
               linear("shared_expert_gate", a.hidden, 1, false), activation("shared_expert_act", "sigmoid", 1),
               multiply("shared_expert_scale", a.hidden)});
}

// Biases on queries, keys and values; a shared expert (modeling_qwen2_moe.py).
void qwen2_moe(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 151936,
                                                       .hidden = 2048,
                                                       .intermediate = 5632,
                                                       .layers = 24,
                                                       .heads = 16,
                                                       .kv_heads = 16,
                                                       .max_positions = 32768});
  Modules experts;
  if (const std::uint64_t count = read_qwen_experts(config, 60); count > 0) {
    Routing routing = read_balanced(config, 4, count);
    routing.normalized = config.flag("norm_topk_prob", false);
    const std::uint64_t intermediate = config.size("moe_intermediate_size", 1408);
    experts =
        below("mlp", join({router_and_experts(config, routing, a.hidden, intermediate), shared_expert(config, a)}));
  }
  describe_and_embed(model, a);
  qwen_blocks(config, model, a,
              windowed(split_attention(
                           "self_attn", a,
                           {.bias = config.flag("qkv_bias", true), .dropout = config.number("attention_dropout", 0)}),
                       read_window_if_used(config)),
              experts);
  norm_and_head(model, a);
}

// Norms on queries and keys, head by head; no shared expert (modeling_qwen3_moe.py).
void qwen3_moe(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 151936,
                                                       .hidden = 2048,
                                                       .intermediate = 6144,
                                                       .layers = 24,
                                                       .heads = 32,
                                                       .kv_heads = 4,
                                                       .max_positions = 32768});
  Modules experts;
  if (const std::uint64_t count = read_qwen_experts(config, 128); count > 0) {
    Routing routing = read_balanced(config, 8, count);
    routing.normalized = config.flag("norm_topk_prob", false);
    const std::uint64_t intermediate = config.size("moe_intermediate_size", 768);
    experts = below("mlp", router_and_experts(config, routing, a.hidden, intermediate));
  }
  const bool bias = config.flag("attention_bias", false);
  describe_and_embed(model, a);
  qwen_blocks(
      config, model, a,
      windowed(split_attention("self_attn", a,
                               {.bias = bias,
                                .output_bias = bias,
                                .norms = join({rms_norm("q_norm", a.head_size), rms_norm("k_norm", a.head_size)}),
                                .dropout = config.number("attention_dropout", 0)}),
               read_window_if_used(config)),
      experts);
  norm_and_head(model, a);
}

// Norms on all queries and all keys at once (modeling_olmoe.py).
void olmoe(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_width(
      config,
      {.vocabulary = 50304, .hidden = 2048, .intermediate = 2048, .layers = 16, .heads = 16, .max_positions = 4096});
  const std::uint64_t experts = config.listed("num_experts", 64);
  Routing routing = read_balanced(config, 8, experts);
  routing.normalized = config.flag("norm_topk_prob", false);
  const bool bias = config.flag("attention_bias", false);
  const Modules norms = join({rms_norm("q_norm", a.hidden), rms_norm("k_norm", a.kv_heads * a.head_size)});
  describe_and_embed(model, a);
  model.blocks(
      "layers", a.layers,
      join({split_attention(
                "self_attn", a,
                {.bias = bias, .output_bias = bias, .norms = norms, .dropout = config.number("attention_dropout", 0)}),
            clipped_projections(config, a), below("mlp", router_and_experts(config, routing, a.hidden, a.intermediate)),
            norms_before(a)}));
  norm_and_head(model, a);
}

Routing fused(Routing routing) {
  routing.fused = true;
  return routing;
}

// Gate and up in one tensor, features last. The activation is x sigmoid(1.702 x), whatever hidden_act says.
Modules gpt_oss_experts(const Routing& routing, const Architecture& a) {
  const std::uint64_t n = routing.experts;
  return routed(
      below(
          "experts",
          join({fused_experts("gate_up_proj", routing, a.hidden, 2 * a.intermediate, {n, a.hidden, 2 * a.intermediate}),
                parameter("gate_up_proj_bias", {n, 2 * a.intermediate}),
                activation("act_fn", "quick_gelu", n * a.intermediate), multiply("gate", n * a.intermediate),
                fused_experts("down_proj", routing, a.intermediate, a.hidden, {n, a.intermediate, a.hidden}),
                parameter("down_proj_bias", {n, a.hidden})})),
      fused(routing));
}

// Biases everywhere, and a learned sink of attention for each head (modeling_gpt_oss.py).
void gpt_oss(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 201088,
                                                       .hidden = 2880,
                                                       .intermediate = 2880,
                                                       .layers = 36,
                                                       .heads = 64,
                                                       .kv_heads = 8,
                                                       .head_size = 64,
                                                       .max_positions = 131072});
  const std::uint64_t experts = config.size("num_local_experts", 128);
  const Routing routing = read_balanced(config, 4, experts);
  const bool bias = config.flag("attention_bias", true);
  describe_and_embed(model, a);
  const AttentionWindow window = read_windows(config, 128, a.layers, [](std::uint64_t i) { return (i + 1) % 2 == 0; });
  model.blocks(
      "layers", a.layers,
      join({parameter("self_attn.sinks", {a.heads}),
            windowed(
                split_attention("self_attn", a,
                                {.bias = bias, .output_bias = bias, .dropout = config.number("attention_dropout", 0)}),
                window),
            below("mlp", join({router("router", a.hidden, experts, true), gpt_oss_experts(routing, a)})),
            norms_before(a)}));
  norm_and_head(model, a);
}

// w2(act(w1(x)) * v1(x)), the experts one below the other.
Modules dbrx_experts(const Routing& routing, const Architecture& a, const std::string& function) {
  const std::uint64_t rows = routing.experts * a.intermediate;
  return routed(below("experts.mlp", join({fused_experts("w1", routing, a.hidden, a.intermediate, {rows, a.hidden}),
                                           fused_experts("v1", routing, a.hidden, a.intermediate, {rows, a.hidden}),
                                           activation("activation_fn", function, rows), multiply("gate", rows),
                                           fused_experts("w2", routing, a.intermediate, a.hidden, {rows, a.hidden})})),
                fused(routing));
}

Modules dbrx_attention(const ModelConfig& config, const Architecture& a) {
  const std::uint64_t keys_and_values = 2 * a.kv_heads * a.head_size;
  const std::uint64_t projected = a.hidden + keys_and_values;
  const Modules attn =
      join({linear("Wqkv", a.hidden, projected, false),
            config.has("clip_qkv") ? activation("clip_qkv", "clamp", projected) : Modules{},
            attention("attention", attention_sizes(a, true)), dropout("dropout", config.number("attn_pdrop", 0)),
            linear("out_proj", a.hidden, a.hidden, false)});
  return below("norm_attn_norm", join({layer_norm("norm_1", a.hidden, false), below("attn", attn),
                                       layer_norm("norm_2", a.hidden, false)}));
}

// LayerNorm without biases, one projection for q, k and v; attention and experts have configs of their own
// (modeling_dbrx.py).
void dbrx(ModelConfig& config, ModelBuilder& model) {
  Architecture a =
      read_decoder(config, {.vocabulary = 32000, .hidden = 2048, .layers = 24, .heads = 16, .max_positions = 2048});
  ModelConfig attn = config.nested("attn_config", config.family(), "Model");
  ModelConfig ffn = config.nested("ffn_config", config.family(), "Model");
  a.kv_heads = attn.size("kv_n_heads", 1);
  attn.require_divisor("kv_n_heads", a.kv_heads, "n_heads", a.heads);
  a.intermediate = ffn.size("ffn_hidden_size", 3584);
  const std::uint64_t experts = ffn.size("moe_num_experts", 4);
  Routing routing = read_routing(ffn, "moe_top_k", 1, experts);
  routing.normalized = !ffn.present("moe_normalize_expert_weights") || ffn.has("moe_normalize_expert_weights");
  routing.balanced = config.flag("output_router_logits", false);
  const std::string function =
      ffn.has("ffn_act_fn") ? ffn.nested("ffn_act_fn", ffn.family(), "Model").text("name", "silu") : "silu";
  if (config.ties_embeddings(false)) {
    config.fail("tie_word_embeddings", "expected false, found true: DBRX's class has no tied embeddings");
  }
  model.describe(a);
  model.add(join({embedding("wte", a.vocabulary, a.hidden), dropout("emb_dropout", config.number("emb_pdrop", 0))}));
  model.blocks("blocks", a.layers,
               join({dbrx_attention(attn, a), dropout("resid_dropout", config.number("resid_pdrop", 0)),
                     below("ffn", join({below("router", noise_of_any_width(ffn, "moe_jitter_eps")),
                                        router("router.layer", a.hidden, experts, false),
                                        dbrx_experts(routing, a, function)}))}));
  model.add(layer_norm("norm_f", a.hidden, false));
  model.head("wte", false);
}

constexpr Head kPhimoeHeads[] = {
    {"ForCausalLM", "model", "lm_head", HeadOutput::custom, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
};

constexpr Head kDbrxHeads[] = {
    {"ForCausalLM", "transformer", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
};

constexpr Alias kDbrxAliases[] = {{"hidden_size", "d_model"},
                                  {"num_hidden_layers", "n_layers"},
                                  {"num_attention_heads", "n_heads"},
                                  {"max_position_embeddings", "max_seq_len"}};

}  // namespace

std::span<const Family> mixtral_families() {
  static const Family families[] = {
      {"dbrx", "Dbrx", kDbrxHeads, kDbrxAliases, dbrx},
      {"gpt_oss", "GptOss", decoder_heads(), {}, gpt_oss},
      {"mixtral", "Mixtral", mistral_heads(), {}, mixtral},
      {"olmoe", "Olmoe", decoder_heads(), {}, olmoe},
      {"phimoe", "Phimoe", kPhimoeHeads, {}, phimoe},
      {"qwen2_moe", "Qwen2Moe", mistral_heads(), {}, qwen2_moe},
      {"qwen3_moe", "Qwen3Moe", decoder_heads(), {}, qwen3_moe},
  };
  return families;
}

}  // namespace shardplan
