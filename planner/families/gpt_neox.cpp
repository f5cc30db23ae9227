// GPT-NeoX and its kin: LayerNorm, a plain MLP, and one projection for queries, keys and values (GPT-NeoX, BLOOM,
// Falcon, MPT) or three with biases (OPT, Phi).
#include <fmt/format.h>

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
    {"ForTokenClassification", "model", "score", HeadOutput::labels, true},
};

struct FusedOptions {
  std::string input = "query_key_value";
  std::string output = "dense";
  bool bias = true;
  bool rotary = false;
};

Modules fused_attention(std::string_view name, const Architecture& a, const FusedOptions& options) {
  const std::uint64_t width = (a.heads + 2 * a.kv_heads) * a.head_size;
  return below(name, join({linear(options.input, a.hidden, width, options.bias),
                           attention("attention", attention_sizes(a, options.rotary)),
                           linear(options.output, a.hidden, a.hidden, options.bias)}));
}

Modules megatron_mlp(const Architecture& a, const std::string& function, bool bias) {
  return plain_mlp("mlp", "dense_h_to_4h", "dense_4h_to_h", a.hidden, a.intermediate, function, bias);
}

// Rotary on a part of each head; attention and MLP side by side, each behind its own norm (modeling_gpt_neox.py).
void gpt_neox(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(
      config,
      {.vocabulary = 50432, .hidden = 6144, .intermediate = 24576, .layers = 44, .heads = 64, .max_positions = 2048});
  const bool bias = config.flag("attention_bias", true);
  model.describe(a);
  model.add(embedding("embed_in", a.vocabulary, a.hidden));
  model.blocks("layers", a.layers,
               join({layer_norm("input_layernorm", a.hidden), layer_norm("post_attention_layernorm", a.hidden),
                     fused_attention("attention", a, {.bias = bias, .rotary = true}),
                     megatron_mlp(a, config.text("hidden_act", "gelu"), true)}));
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
  model.describe(a);
  model.add(
      join({embedding("word_embeddings", a.vocabulary, a.hidden), layer_norm("word_embeddings_layernorm", a.hidden)}));
  model.blocks("h", a.layers,
               join({layer_norm("input_layernorm", a.hidden), fused_attention("self_attention", a, {}),
                     layer_norm("post_attention_layernorm", a.hidden), megatron_mlp(a, "gelu_pytorch_tanh", true)}));
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
  a.kv_heads = falcon_kv_heads(config, a.heads, new_architecture);
  model.describe(a);
  model.add(embedding("word_embeddings", a.vocabulary, a.hidden));
  model.blocks(
      "h", a.layers,
      join({fused_attention("self_attention", a, {.bias = bias, .rotary = rotary}),
            megatron_mlp(a, config.text("activation", "gelu"), bias), falcon_norms(config, a, new_architecture)}));
  model.add(layer_norm("ln_f", a.hidden));
  model.head("word_embeddings", true);
}

// The class takes both kinds of attention for the first one.
void require_mpt_attention(const ModelConfig& config) {
  if (!config.has("attn_config")) return;
  const ModelConfig attention = config.nested("attn_config", config.family(), "Model");
  const std::string type = attention.text("attn_type", "multihead_attention");
  if (type != "multihead_attention" && type != "multiquery_attention") {
    attention.fail("attn_type",
                   fmt::format(R"(expected "multihead_attention" or "multiquery_attention", found "{}")", type));
  }
}

// ALiBi, no bias anywhere, an MLP that is four times as wide whatever expansion_ratio says (modeling_mpt.py).
void mpt(ModelConfig& config, ModelBuilder& model) {
  Architecture a =
      read_decoder(config, {.vocabulary = 50368, .hidden = 2048, .layers = 24, .heads = 16, .max_positions = 2048});
  a.intermediate = 4 * a.hidden;
  require_mpt_attention(config);
  model.describe(a);
  model.add(embedding("wte", a.vocabulary, a.hidden));
  model.blocks("blocks", a.layers,
               join({layer_norm("norm_1", a.hidden, false),
                     fused_attention("attn", a, {.input = "Wqkv", .output = "out_proj", .bias = false}),
                     layer_norm("norm_2", a.hidden, false),
                     plain_mlp("ffn", "up_proj", "down_proj", a.hidden, a.intermediate, "gelu", false)}));
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
  const bool final_norm = config.flag("do_layer_norm_before", true) && !config.flag("_remove_final_layer_norm", false);
  const auto norm = [&](const std::string& name) {
    return affine ? layer_norm(name, a.hidden) : plain_norm(name, a.hidden);
  };
  const auto square = [&](const std::string& name) { return linear(name, a.hidden, a.hidden, bias); };
  const Modules self_attention = join({square("k_proj"), square("v_proj"), square("q_proj"),
                                       attention("attention", attention_sizes(a, false)), square("out_proj")});

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
            norm("final_layer_norm")}));
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

// Attention and MLP behind one norm, grouped queries, biases everywhere: the head has one too (modeling_phi.py).
void phi(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(
      config,
      {.vocabulary = 51200, .hidden = 2048, .intermediate = 8192, .layers = 24, .heads = 32, .max_positions = 2048});
  const Modules norms = phi_norms(config, a);
  model.describe(a);
  model.add(embedding("embed_tokens", a.vocabulary, a.hidden));
  model.blocks(
      "layers", a.layers,
      join({split_attention("self_attn", a, {.bias = true, .output_bias = true, .output = "dense", .norms = norms}),
            plain_mlp("mlp", "fc1", "fc2", a.hidden, a.intermediate, config.text("hidden_act", "gelu_new"), true),
            layer_norm("input_layernorm", a.hidden)}));
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
