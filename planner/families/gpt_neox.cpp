// GPT-NeoX and its kin: LayerNorm, a plain MLP, and one projection for queries, keys and values (GPT-NeoX, BLOOM,
// Falcon, MPT) or three with biases (OPT, Phi).
#include <fmt/format.h>

#include "base/checked.h"
#include "planner/families/decoder.h"

namespace shardplan {
namespace {

// BLOOM's positions are in its attention alone: seq_length is only what it was trained with.
constexpr Alias kBloomAliases[] = {{"hidden_size", "n_embed"},
                                   {"num_hidden_layers", "n_layer"},
                                   {"num_attention_heads", "n_head"},
                                   {"max_position_embeddings", "seq_length"}};
constexpr Alias kFalconAliases[] = {{"hidden_size", "n_embed"}, {"intermediate_size", "ffn_hidden_size"}};
constexpr Alias kMptAliases[] = {{"hidden_size", "d_model"},
                                 {"num_hidden_layers", "n_layers"},
                                 {"num_attention_heads", "n_heads"},
                                 {"max_position_embeddings", "max_seq_len"}};
constexpr Alias kOptAliases[] = {{"intermediate_size", "ffn_dim"}};

constexpr Head kNeoxHeads[] = {
    {"ForCausalLM", "gpt_neox", "embed_out", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "gpt_neox", "score", HeadOutput::labels, false},
    {"ForTokenClassification", "gpt_neox", "classifier", HeadOutput::labels, true},
    {"ForQuestionAnswering", "gpt_neox", "qa_outputs", HeadOutput::span, true},
};
// BLOOM, Falcon, MPT.
constexpr Head kTransformerHeads[] = {
    {"ForCausalLM", "transformer", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "transformer", "score", HeadOutput::labels, false},
    {"ForTokenClassification", "transformer", "classifier", HeadOutput::labels, true},
    {"ForQuestionAnswering", "transformer", "qa_outputs", HeadOutput::span, true},
};
constexpr Head kOptHeads[] = {
    {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
    {"ForQuestionAnswering", "model", "qa_outputs", HeadOutput::span, true},
};
constexpr Head kPhiHeads[] = {
    {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, true},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
    {"ForTokenClassification", "model", "score", HeadOutput::labels, true, 0.1},
};

struct FusedOptions {
  std::string input = "query_key_value";
  std::string output = "dense";
  bool bias = true;
  bool rotary = false;
  std::uint64_t rotary_size = 0;  // of each head's features; 0 is all
  Modules dropouts{};
};

Modules fused_attention(std::string_view name, const Architecture& a, const FusedOptions& options) {
  const std::uint64_t width = (a.heads + 2 * a.kv_heads) * a.head_size;
  AttentionSizes sizes = attention_sizes(a, options.rotary);
  sizes.rotary_size = options.rotary_size;
  return below(name, join({linear(options.input, a.hidden, width, options.bias), attention("attention", sizes),
                           linear(options.output, a.hidden, a.hidden, options.bias), options.dropouts}));
}

Modules megatron_mlp(const Architecture& a, const std::string& function, bool bias) {
  return plain_mlp("mlp", "dense_h_to_4h", "dense_4h_to_h", a.hidden, a.intermediate, function, bias);
}

// int(share * head_size), as the classes compute it, in whole pairs; 0 where that is all of it.
std::uint64_t rotated_features(const ModelConfig& config, std::string_view attribute, double share,
                               std::uint64_t head_size) {
  const double features = share * static_cast<double>(head_size);
  if (!(features >= 1) || features > static_cast<double>(head_size)) {
    config.fail(attribute, fmt::format("expected a share of the {} features of a head, found {}", head_size, share));
  }
  const std::uint64_t rotated = round_up(static_cast<std::uint64_t>(features), std::uint64_t{2});
  return rotated >= head_size ? 0 : rotated;
}

// Rotary on a part of each head; attention and MLP side by side, each behind its own norm (modeling_gpt_neox.py).
void gpt_neox(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(
      config,
      {.vocabulary = 50432, .hidden = 6144, .intermediate = 24576, .layers = 44, .heads = 64, .max_positions = 2048});
  const double dropped = config.number("hidden_dropout", 0);
  const FusedOptions options{
      .bias = config.flag("attention_bias", true),
      .rotary = true,
      .rotary_size = rotated_features(config, "rotary_pct", config.factor("rotary_pct", 0.25), a.head_size),
      .dropouts = dropout("attention_dropout", config.number("attention_dropout", 0))};
  const bool parallel = config.flag("use_parallel_residual", true);
  model.describe(a);
  model.add(join({embedding("embed_in", a.vocabulary, a.hidden), dropout("emb_dropout", dropped)}));
  model.blocks("layers", a.layers,
               join({layer_norm("input_layernorm", a.hidden), layer_norm("post_attention_layernorm", a.hidden),
                     dropout("post_attention_dropout", dropped), dropout("post_mlp_dropout", dropped),
                     fused_attention("attention", a, options), megatron_mlp(a, config.text("hidden_act", "gelu"), true),
                     parallel ? residual("parallel") : Modules{}}));
  model.add(layer_norm("final_layer_norm", a.hidden));
  model.head("embed_in", false);
}

Architecture read_bloom(ModelConfig& config) {
  Architecture a;
  a.vocabulary = config.size("vocab_size", 250880);
  a.hidden = config.size("hidden_size", 64);
  a.intermediate = 4 * a.hidden;
  a.layers = config.size("num_hidden_layers", 2);
  a.heads = config.size("num_attention_heads", 8);
  config.require_divisor("num_attention_heads", a.heads, "hidden_size", a.hidden);
  a.kv_heads = a.heads;
  a.head_size = a.hidden / a.heads;
  a.max_positions = config.optional_size("max_position_embeddings").value_or(0);
  return a;
}

// ALiBi, a norm behind the embedding, an MLP that is always four times as wide (modeling_bloom.py).
void bloom(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_bloom(config);
  const double dropped = config.number("hidden_dropout", 0);
  const bool normed = config.flag("apply_residual_connection_post_layernorm", false);
  const Modules dropouts =
      join({dropout("attention_dropout", config.number("attention_dropout", 0)), dropout("hidden_dropout", dropped)});
  model.describe(a);
  model.add(
      join({embedding("word_embeddings", a.vocabulary, a.hidden), layer_norm("word_embeddings_layernorm", a.hidden)}));
  model.blocks(
      "h", a.layers,
      join({layer_norm("input_layernorm", a.hidden), fused_attention("self_attention", a, {.dropouts = dropouts}),
            layer_norm("post_attention_layernorm", a.hidden), megatron_mlp(a, "bloom_gelu", true),
            dropout("mlp.hidden_dropout", dropped), normed ? residual("normed") : Modules{}}));
  model.add(layer_norm("ln_f", a.hidden));
  model.head("word_embeddings", true);
}

// Falcon's heads of keys and values: num_kv_heads counts in the new architecture alone.
std::uint64_t falcon_kv_heads(const ModelConfig& config, std::uint64_t heads, bool new_architecture) {
  if (!new_architecture) return config.flag("multi_query", true) ? 1 : heads;
  const std::uint64_t kv_heads = config.optional_size("num_kv_heads").value_or(heads);
  config.require_divisor("num_kv_heads", kv_heads, "num_attention_heads", heads);
  return kv_heads;
}

Modules falcon_norms(const ModelConfig& config, const Architecture& a, bool new_architecture) {
  if (!config.flag("parallel_attn", true))
    return join({layer_norm("post_attention_layernorm", a.hidden), layer_norm("input_layernorm", a.hidden)});
  const std::uint64_t norms = config.optional_size("num_ln_in_parallel_attn").value_or(new_architecture ? 2 : 1);
  if (norms == 2) return join({layer_norm("ln_attn", a.hidden), layer_norm("ln_mlp", a.hidden)});
  return layer_norm("input_layernorm", a.hidden);
}

// Few heads of keys and values, one, two or parallel norms, and no bias unless the file has it (modeling_falcon.py).
void falcon(ModelConfig& config, ModelBuilder& model) {
  Architecture a =
      read_decoder(config, {.vocabulary = 65024, .hidden = 4544, .layers = 32, .heads = 71, .max_positions = 2048});
  const bool new_architecture = config.flag("new_decoder_architecture", false);
  const bool bias = config.flag("bias", false);
  const bool rotary = !config.flag("alibi", false);
  const Modules dropouts = dropout("attention_dropout", config.number("attention_dropout", 0));
  const bool parallel = new_architecture || config.flag("parallel_attn", true);
  a.kv_heads = falcon_kv_heads(config, a.heads, new_architecture);
  model.describe(a);
  model.add(embedding("word_embeddings", a.vocabulary, a.hidden));
  model.blocks(
      "h", a.layers,
      join({fused_attention("self_attention", a, {.bias = bias, .rotary = rotary, .dropouts = dropouts}),
            megatron_mlp(a, config.text("activation", "gelu"), bias), falcon_norms(config, a, new_architecture),
            dropout("hidden_dropout", config.number("hidden_dropout", 0)),
            parallel ? residual("parallel") : Modules{}}));
  model.add(layer_norm("ln_f", a.hidden));
  model.head("word_embeddings", true);
}

struct MptAttention {
  double dropped = 0;  // for attention and for what comes out of each part alike
  bool clips = false;
};

// What attn_config says. The class takes both kinds of attention for the first one.
MptAttention read_mpt_attention(const ModelConfig& config) {
  if (!config.has("attn_config")) return {};
  const ModelConfig attention = config.nested("attn_config", config.family(), "Model");
  const std::string type = attention.text("attn_type", "multihead_attention");
  if (type != "multihead_attention" && type != "multiquery_attention") {
    attention.fail("attn_type",
                   fmt::format(R"(expected "multihead_attention" or "multiquery_attention", found "{}")", type));
  }
  return {.dropped = attention.number("attn_pdrop", 0),
          .clips = attention.has("clip_qkv") && attention.factor("clip_qkv", 1) > 0};
}

// ALiBi, no bias anywhere, an MLP that is four times as wide whatever expansion_ratio says (modeling_mpt.py).
void mpt(ModelConfig& config, ModelBuilder& model) {
  Architecture a =
      read_decoder(config, {.vocabulary = 50368, .hidden = 2048, .layers = 24, .heads = 16, .max_positions = 2048});
  a.intermediate = 4 * a.hidden;
  a.use_cache = false;
  const auto [dropped, clips] = read_mpt_attention(config);
  const Modules clip = clips ? activation("clip_qkv", "clamp", 3 * a.hidden) : Modules{};
  model.describe(a);
  model.add(embedding("wte", a.vocabulary, a.hidden));
  model.blocks("blocks", a.layers,
               join({layer_norm("norm_1", a.hidden, false),
                     fused_attention("attn", a,
                                     {.input = "Wqkv",
                                      .output = "out_proj",
                                      .bias = false,
                                      .dropouts = join({clip, dropout("attn_dropout", dropped)})}),
                     layer_norm("norm_2", a.hidden, false),
                     plain_mlp("ffn", "up_proj", "down_proj", a.hidden, a.intermediate, "gelu", false),
                     dropout("ffn.hidden_dropout", dropped), dropout("resid_attn_dropout", dropped)}));
  model.add(layer_norm("norm_f", a.hidden, false));
  model.head("wte", true);
}

// Learned positions behind two unused rows; tokens may be narrower than the blocks, with projections in and out
// (modeling_opt.py).
void opt(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(
      config,
      {.vocabulary = 50272, .hidden = 768, .intermediate = 3072, .layers = 12, .heads = 12, .max_positions = 2048});
  const std::uint64_t token = config.optional_size("word_embed_proj_dim").value_or(a.hidden);
  const bool bias = config.flag("enable_bias", true);
  const bool affine = config.flag("layer_norm_elementwise_affine", true);
  const bool norm_before = config.flag("do_layer_norm_before", true);
  const bool final_norm = norm_before && !config.flag("_remove_final_layer_norm", false);
  const auto norm = [&](const std::string& name) {
    return affine ? layer_norm(name, a.hidden) : plain_norm(name, a.hidden);
  };
  const auto square = [&](const std::string& name) { return linear(name, a.hidden, a.hidden, bias); };
  const Modules self_attention =
      join({square("k_proj"), square("v_proj"), square("q_proj"), attention("attention", attention_sizes(a, false)),
            square("out_proj"), dropout("dropout", config.number("attention_dropout", 0))});

  model.add(join({embedding("decoder.embed_tokens", a.vocabulary, token),
                  embedding("decoder.embed_positions", a.max_positions + 2, a.hidden)}));
  if (token != a.hidden) {
    model.add(join(
        {linear("decoder.project_out", a.hidden, token, false), linear("decoder.project_in", token, a.hidden, false)}));
  }
  if (final_norm) model.add(norm("decoder.final_layer_norm"));
  model.blocks(
      "decoder.layers", a.layers,
      join({below("self_attn", self_attention), norm("self_attn_layer_norm"),
            plain_mlp("", "fc1", "fc2", a.hidden, a.intermediate, config.text("activation_function", "relu"), bias),
            norm("final_layer_norm"), dropout("dropout", config.number("dropout", 0.1)),
            norm_before ? Modules{} : residual("normed")}));
  Architecture projected = a;  // what the head gets
  projected.hidden = token;
  model.describe(projected);
  model.head("decoder.embed_tokens", true);
  model.describe(a);
}

Modules phi_norms(const ModelConfig& config, const Architecture& a) {
  if (!config.flag("qk_layernorm", false)) return {};
  config.require_divisor("num_attention_heads", a.heads, "hidden_size", a.hidden);
  const std::uint64_t width = a.hidden / a.heads;
  if (a.head_size != width) {
    config.fail("head_dim",
                fmt::format("expected {}, the width of the norms of qk_layernorm, found {}", width, a.head_size));
  }
  return join({layer_norm("q_layernorm", width), layer_norm("k_layernorm", width)});
}

Modules phi_attention(ModelConfig& config, const Architecture& a) {
  Modules modules = split_attention(
      "self_attn", a, {.bias = true, .output_bias = true, .output = "dense", .norms = phi_norms(config, a)});
  for (Module& module : modules) {
    if (!module.attention) continue;
    const double share = config.factor("partial_rotary_factor", 0.5);
    module.attention->rotary_size = rotated_features(config, "partial_rotary_factor", share, a.head_size);
  }
  return join({modules, dropout("self_attn.attention_dropout", config.number("attention_dropout", 0))});
}

// Attention and MLP behind one norm, grouped queries, biases everywhere: the head has one too (modeling_phi.py).
void phi(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(
      config,
      {.vocabulary = 51200, .hidden = 2048, .intermediate = 8192, .layers = 24, .heads = 32, .max_positions = 2048});
  model.describe(a);
  model.add(join(
      {embedding("embed_tokens", a.vocabulary, a.hidden), dropout("embed_dropout", config.number("embd_pdrop", 0))}));
  model.blocks(
      "layers", a.layers,
      join({phi_attention(config, a),
            plain_mlp("mlp", "fc1", "fc2", a.hidden, a.intermediate, config.text("hidden_act", "gelu_new"), true),
            layer_norm("input_layernorm", a.hidden), dropout("resid_dropout", config.number("resid_pdrop", 0))}));
  model.add(layer_norm("final_layernorm", a.hidden));
  model.head("embed_tokens", false);
}

}  // namespace

std::span<const Family> gpt_neox_families() {
  static const Family families[] = {
      {"gpt_neox", "GPTNeoX", kNeoxHeads, {}, gpt_neox},
      {"bloom", "Bloom", kTransformerHeads, kBloomAliases, bloom},
      {"falcon", "Falcon", kTransformerHeads, kFalconAliases, falcon},
      {"mpt", "Mpt", kTransformerHeads, kMptAliases, mpt},
      {"opt", "OPT", kOptHeads, kOptAliases, opt},
      {"phi", "Phi", kPhiHeads, {}, phi},
  };
  return families;
}

}  // namespace shardplan
