// Llama and its kin: dense decoders with rotary attention, most with grouped queries, a gated MLP and RMSNorm.
#include <fmt/format.h>

#include "planner/families/decoder.h"

namespace shardplan {
namespace {

struct DecoderOptions {
  bool tied = false;  // the head to the embedding, if the file does not say
  double embedding_dropout = 0;
};

// Adds embedding, equal blocks, final norm and head.
void decoder(ModelBuilder& model, const Architecture& a, const Modules& block, Modules norm,
             const DecoderOptions& options = {}) {
  model.describe(a);
  model.add(join(
      {embedding("embed_tokens", a.vocabulary, a.hidden), dropout("embedding_dropout", options.embedding_dropout)}));
  model.blocks("layers", a.layers, block);
  model.add(std::move(norm));
  model.head("embed_tokens", options.tied);
}

// Of the probabilities.
double attention_dropout(const ModelConfig& config) {
  return config.number("attention_dropout", 0);
}

Modules self_attention(const ModelConfig& config, const Architecture& a, bool bias, Modules norms = {}) {
  return split_attention(
      "self_attn", a,
      {.bias = bias, .output_bias = bias, .norms = std::move(norms), .dropout = attention_dropout(config)});
}

Modules mlp(const ModelConfig& config, const Architecture& a, bool bias = false) {
  return gated_mlp("mlp", a.hidden, a.intermediate, config.text("hidden_act", "silu"), bias);
}

Modules query_and_key_norms(const Architecture& a) {
  return join({rms_norm("q_norm", a.head_size), rms_norm("k_norm", a.head_size)});
}

// modeling_llama.py
void llama(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(
      config,
      {.vocabulary = 32000, .hidden = 4096, .intermediate = 11008, .layers = 32, .heads = 32, .max_positions = 2048});
  decoder(model, a,
          join({self_attention(config, a, config.flag("attention_bias", false)),
                mlp(config, a, config.flag("mlp_bias", false)), norms_before(a)}),
          rms_norm("norm", a.hidden));
}

// Llama without biases, and one window for all layers (modeling_mistral.py).
void mistral(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 32000,
                                                       .hidden = 4096,
                                                       .intermediate = 14336,
                                                       .layers = 32,
                                                       .heads = 32,
                                                       .kv_heads = 8,
                                                       .max_positions = 131072});
  decoder(
      model, a,
      join({windowed(self_attention(config, a, false), read_window(config, 4096)), mlp(config, a), norms_before(a)}),
      rms_norm("norm", a.hidden));
}

// Llama with biases on queries, keys and values alone (modeling_qwen2.py).
void qwen2(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 151936,
                                                       .hidden = 4096,
                                                       .intermediate = 22016,
                                                       .layers = 32,
                                                       .heads = 32,
                                                       .kv_heads = 32,
                                                       .max_positions = 32768});
  decoder(model, a,
          join({windowed(split_attention("self_attn", a, {.bias = true, .dropout = attention_dropout(config)}),
                         read_qwen_windows(config, a.layers, 28)),
                mlp(config, a), norms_before(a)}),
          rms_norm("norm", a.hidden));
}

// Norms on queries and keys, head by head (modeling_qwen3.py).
void qwen3(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 151936,
                                                       .hidden = 4096,
                                                       .intermediate = 22016,
                                                       .layers = 32,
                                                       .heads = 32,
                                                       .kv_heads = 32,
                                                       .head_size = 128,
                                                       .max_positions = 32768});
  decoder(model, a,
          join({windowed(self_attention(config, a, config.flag("attention_bias", false), query_and_key_norms(a)),
                         read_qwen_windows(config, a.layers, 28)),
                mlp(config, a), norms_before(a)}),
          rms_norm("norm", a.hidden));
}

// Llama with other numbers: its multipliers of embeddings, residuals and logits own nothing (modeling_granite.py).
void granite(ModelConfig& config, ModelBuilder& model) {
  llama(config, model);
}

// LayerNorm without weights (modeling_olmo.py).
void olmo(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(
      config,
      {.vocabulary = 50304, .hidden = 4096, .intermediate = 11008, .layers = 32, .heads = 32, .max_positions = 2048});
  decoder(
      model, a,
      join({self_attention(config, a, config.flag("attention_bias", false)), clipped_projections(config, a),
            mlp(config, a), plain_norm("input_layernorm", a.hidden), plain_norm("post_attention_layernorm", a.hidden)}),
      plain_norm("norm", a.hidden));
}

Architecture read_olmo2(ModelConfig& config) {
  return read_grouped_decoder(
      config,
      {.vocabulary = 50304, .hidden = 4096, .intermediate = 11008, .layers = 32, .heads = 32, .max_positions = 2048});
}

// Norms after attention and MLP instead of before, and on all queries and all keys at once.
void olmo2_in_window(ModelConfig& config, ModelBuilder& model, const Architecture& a, const AttentionWindow& window) {
  decoder(model, a,
          join({windowed(self_attention(config, a, config.flag("attention_bias", false),
                                        join({rms_norm("q_norm", a.heads * a.head_size),
                                              rms_norm("k_norm", a.kv_heads * a.head_size)})),
                         window),
                mlp(config, a), rms_norm("post_attention_layernorm", a.hidden),
                rms_norm("post_feedforward_layernorm", a.hidden)}),
          rms_norm("norm", a.hidden));
}

// modeling_olmo2.py
void olmo2(ModelConfig& config, ModelBuilder& model) {
  olmo2_in_window(config, model, read_olmo2(config), {});
}

// modeling_olmo3.py
void olmo3(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_olmo2(config);
  olmo2_in_window(config, model, a,
                  read_windows(config, 4096, a.layers, [](std::uint64_t i) { return (i + 1) % 4 == 0; }));
}

// One LayerNorm for each head's queries and keys.
Modules norms_per_head(const ModelConfig& config, const Architecture& a) {
  if (a.heads > ModelConfig::kMostListed) {
    config.fail("num_attention_heads",
                fmt::format("expected at most {} heads with a norm each, found {}", ModelConfig::kMostListed, a.heads));
  }
  const Modules norm = layer_norm("", a.head_size, false);
  return join({repeated("q_layernorm.norms", a.heads, norm), repeated("k_layernorm.norms", a.kv_heads, norm)});
}

constexpr Head kStableLmHeads[] = {
    {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
    {"ForTokenClassification", "model", "score", HeadOutput::labels, true, 0.0},  // its class has a hidden_dropout
};

// LayerNorm with biases; with a parallel residual only one (modeling_stablelm.py).
void stablelm(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_width(config, {.vocabulary = 50304,
                                                     .hidden = 2560,
                                                     .intermediate = 6912,
                                                     .layers = 32,
                                                     .heads = 32,
                                                     .kv_heads = 32,
                                                     .max_positions = 4096});
  const bool parallel = config.flag("use_parallel_residual", false);
  const Modules norms = config.flag("qk_layernorm", false) ? norms_per_head(config, a) : Modules{};
  decoder(model, a,
          join({partly_rotated(config,
                               split_attention("self_attn", a,
                                               {.bias = config.flag("use_qkv_bias", false),
                                                .norms = norms,
                                                .dropout = attention_dropout(config)}),
                               0.25),
                mlp(config, a), layer_norm("input_layernorm", a.hidden),
                parallel ? Modules{} : layer_norm("post_attention_layernorm", a.hidden),
                dropout("dropout", config.number("hidden_dropout", 0))}),
          layer_norm("norm", a.hidden));
}

Modules norm_of_heads(const std::string& name, std::uint64_t heads, std::uint64_t head_size) {
  Modules norm = layer_norm(name, heads * head_size, false);
  norm[0].tensors[0].shape = {heads, head_size};
  return norm;
}

// Attention and MLP side by side after one LayerNorm without bias; tied (modeling_cohere.py).
void cohere(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(
      config,
      {.vocabulary = 256000, .hidden = 8192, .intermediate = 22528, .layers = 40, .heads = 64, .max_positions = 8192});
  const Modules norms =
      config.flag("use_qk_norm", false)
          ? join({norm_of_heads("q_norm", a.heads, a.head_size), norm_of_heads("k_norm", a.kv_heads, a.head_size)})
          : Modules{};
  decoder(model, a,
          join({self_attention(config, a, config.flag("attention_bias", false), norms), mlp(config, a),
                layer_norm("input_layernorm", a.hidden, false)}),
          layer_norm("norm", a.hidden, false), {.tied = true});
}

// Gemma differs from Llama in its wide heads, its GELU and its tied head (modeling_gemma.py).
Modules gemma_mlp(const ModelConfig& config, const Architecture& a, std::string_view attribute) {
  return gated_mlp("mlp", a.hidden, a.intermediate, config.text(attribute, "gelu_pytorch_tanh"), false);
}

void gemma(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 256000,
                                                       .hidden = 3072,
                                                       .intermediate = 24576,
                                                       .layers = 28,
                                                       .heads = 16,
                                                       .kv_heads = 16,
                                                       .head_size = 256,
                                                       .max_positions = 8192});
  decoder(model, a,
          join({self_attention(config, a, config.flag("attention_bias", false)), gemma_mlp(config, a, "hidden_act"),
                norms_before(a)}),
          rms_norm("norm", a.hidden), {.tied = true});
}

// Scores and logits, divided by a number, pass tanh and are multiplied by it again; null, or absent where the class has
// none, they do not.
bool has_softcap(const ModelConfig& config, std::string_view attribute, bool class_default) {
  return config.present(attribute) ? config.has(attribute) : class_default;
}

void cap_logits(const ModelConfig& config, ModelBuilder& model, const Architecture& a, bool class_default) {
  if (config.head().output != HeadOutput::vocabulary) return;
  if (!has_softcap(config, "final_logit_softcapping", class_default)) return;
  model.add_outside(activation("logits_softcap", "tanh", a.vocabulary));
}

// Norms before and after each (modeling_gemma2.py).
Modules gemma2_block(const ModelConfig& config, const Architecture& a, const Modules& norms,
                     const AttentionWindow& window) {
  return join({windowed(self_attention(config, a, config.flag("attention_bias", false), norms), window),
               gemma_mlp(config, a, "hidden_activation"), norms_before(a),
               rms_norm("pre_feedforward_layernorm", a.hidden), rms_norm("post_feedforward_layernorm", a.hidden)});
}

void gemma2(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 256000,
                                                       .hidden = 2304,
                                                       .intermediate = 9216,
                                                       .layers = 26,
                                                       .heads = 8,
                                                       .kv_heads = 4,
                                                       .head_size = 256,
                                                       .max_positions = 8192});
  const AttentionWindow window = read_windows(config, 4096, a.layers, [](std::uint64_t i) { return (i + 1) % 2 == 0; });
  decoder(model, a,
          join({gemma2_block(config, a, {}, window), has_softcap(config, "attn_logit_softcapping", true)
                                                         ? activation("self_attn.softcap", "tanh", a.heads)
                                                         : Modules{}}),
          rms_norm("norm", a.hidden), {.tied = true});
  cap_logits(config, model, a, true);
}

// And norms on queries and keys; attn_logit_softcapping is read and not used (modeling_gemma3.py).
void gemma3_text(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 262208,
                                                       .hidden = 2304,
                                                       .intermediate = 9216,
                                                       .layers = 26,
                                                       .heads = 8,
                                                       .kv_heads = 4,
                                                       .head_size = 256,
                                                       .max_positions = 131072});
  const std::uint64_t pattern = config.size("sliding_window_pattern", 6);
  const AttentionWindow window =
      read_windows(config, 4096, a.layers, [&](std::uint64_t i) { return (i + 1) % pattern == 0; });
  decoder(model, a, gemma2_block(config, a, query_and_key_norms(a), window), rms_norm("norm", a.hidden),
          {.tied = true});
  cap_logits(config, model, a, false);
}

// One projection for queries, keys and values, one for gate and up (modeling_phi3.py).
void phi3(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(
      config,
      {.vocabulary = 32064, .hidden = 3072, .intermediate = 8192, .layers = 32, .heads = 32, .max_positions = 4096});
  const std::uint64_t heads = a.heads * a.head_size;
  const std::string function = config.text("hidden_act", "silu");
  const double dropped = config.number("resid_pdrop", 0);
  decoder(
      model, a,
      join({linear("self_attn.qkv_proj", a.hidden, heads + 2 * a.kv_heads * a.head_size, false),
            windowed(partly_rotated(config, attention("self_attn.attention", attention_sizes(a, true)), 1),
                     read_window(config, 0)),
            dropout("self_attn.dropout", attention_dropout(config)), linear("self_attn.o_proj", heads, a.hidden, false),
            linear("mlp.gate_up_proj", a.hidden, 2 * a.intermediate, false),
            activation("mlp.activation_fn", function, a.intermediate), multiply("mlp.gate", a.intermediate),
            linear("mlp.down_proj", a.intermediate, a.hidden, false), norms_before(a),
            dropout("resid_attn_dropout", dropped), dropout("resid_mlp_dropout", dropped)}),
      rms_norm("norm", a.hidden));
}

// LayerNorm, a plain MLP, biases everywhere (modeling_starcoder2.py).
void starcoder2(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 49152,
                                                       .hidden = 3072,
                                                       .intermediate = 12288,
                                                       .layers = 30,
                                                       .heads = 24,
                                                       .kv_heads = 2,
                                                       .max_positions = 4096});
  const bool bias = config.flag("use_bias", true);
  const std::string function = config.text("hidden_act", "gelu_pytorch_tanh");
  const double dropped = config.number("residual_dropout", 0);
  decoder(model, a,
          join({windowed(self_attention(config, a, bias), read_window(config, 0)),
                plain_mlp("mlp", "c_fc", "c_proj", a.hidden, a.intermediate, function, bias),
                layer_norm("input_layernorm", a.hidden), layer_norm("post_attention_layernorm", a.hidden),
                dropout("self_attn.residual_dropout", dropped), dropout("mlp.residual_dropout", dropped)}),
          layer_norm("norm", a.hidden), {.tied = true, .embedding_dropout = config.number("embedding_dropout", 0)});
}

// LayerNorm, squared ReLU in a plain MLP (modeling_nemotron.py).
void nemotron(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(
      config,
      {.vocabulary = 256000, .hidden = 6144, .intermediate = 24576, .layers = 32, .heads = 48, .max_positions = 4096});
  const std::string function = config.text("hidden_act", "relu2");
  decoder(model, a,
          join({partly_rotated(config, self_attention(config, a, config.flag("attention_bias", false)), 0.5),
                plain_mlp("mlp", "up_proj", "down_proj", a.hidden, a.intermediate, function,
                          config.flag("mlp_bias", false)),
                layer_norm("input_layernorm", a.hidden), layer_norm("post_attention_layernorm", a.hidden)}),
          layer_norm("norm", a.hidden));
}

// Llama under other names, with one projection for queries, keys and values (internlm/internlm2_5-7b,
// modeling_internlm2.py).
void internlm2(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(
      config,
      {.vocabulary = 103168, .hidden = 4096, .intermediate = 11008, .layers = 32, .heads = 32, .max_positions = 2048});
  const bool bias = config.flag("bias", true);
  const std::uint64_t heads = a.heads * a.head_size;
  model.describe(a);
  model.add(embedding("tok_embeddings", a.vocabulary, a.hidden));
  model.blocks(
      "layers", a.layers,
      join({linear("attention.wqkv", a.hidden, heads + 2 * a.kv_heads * a.head_size, bias),
            attention("attention.attention", attention_sizes(a, true)), linear("attention.wo", heads, a.hidden, bias),
            linear("feed_forward.w1", a.hidden, a.intermediate, false),
            linear("feed_forward.w3", a.hidden, a.intermediate, false),
            activation("feed_forward.act_fn", config.text("hidden_act", "silu"), a.intermediate),
            multiply("feed_forward.gate", a.intermediate), linear("feed_forward.w2", a.intermediate, a.hidden, false),
            rms_norm("attention_norm", a.hidden), rms_norm("ffn_norm", a.hidden)}));
  model.add(rms_norm("norm", a.hidden));
  model.head("tok_embeddings", false);
}

// Llama with one projection for queries, keys and values (baichuan-inc/Baichuan2-7B-Base, modeling_baichuan.py).
void baichuan(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(
      config,
      {.vocabulary = 125696, .hidden = 4096, .intermediate = 11008, .layers = 32, .heads = 32, .max_positions = 4096});
  decoder(model, a,
          join({linear("self_attn.W_pack", a.hidden, 3 * a.hidden, false),
                attention("self_attn.attention", attention_sizes(a, true)),
                linear("self_attn.o_proj", a.hidden, a.hidden, false), mlp(config, a), norms_before(a)}),
          rms_norm("norm", a.hidden));
}

constexpr Head kGemma3Heads[] = {
    {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false},
    {"TextModel", "", "", HeadOutput::none, false},
    {"TextForSequenceClassification", "model", "score", HeadOutput::labels, false},
};

constexpr Head kInternlm2Heads[] = {
    {"ForCausalLM", "model", "output", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
};

}  // namespace

std::span<const Family> llama_families() {
  static const Family families[] = {
      {"llama", "Llama", decoder_heads(), {}, llama},
      {"mistral", "Mistral", mistral_heads(), {}, mistral},
      {"qwen2", "Qwen2", decoder_heads(), {}, qwen2},
      {"qwen3", "Qwen3", decoder_heads(), {}, qwen3},
      {"granite", "Granite", decoder_heads(), {}, granite},
      {"olmo", "Olmo", decoder_heads(), {}, olmo},
      {"olmo2", "Olmo2", decoder_heads(), {}, olmo2},
      {"olmo3", "Olmo3", decoder_heads(), {}, olmo3},
      {"stablelm", "StableLm", kStableLmHeads, {}, stablelm},
      {"cohere", "Cohere", decoder_heads(), {}, cohere},
      {"gemma", "Gemma", decoder_heads(), {}, gemma},
      {"gemma2", "Gemma2", decoder_heads(), {}, gemma2},
      {"gemma3_text", "Gemma3", kGemma3Heads, {}, gemma3_text},
      {"phi3", "Phi3", decoder_heads(), {}, phi3},
      {"starcoder2", "Starcoder2", decoder_heads(), {}, starcoder2},
      {"nemotron", "Nemotron", decoder_heads(), {}, nemotron},
      {"internlm2", "InternLM2", kInternlm2Heads, {}, internlm2},
      {"baichuan", "Baichuan", decoder_heads(), {}, baichuan},
  };
  return families;
}

}  // namespace shardplan
