// Llama and its kin: rotary grouped-query attention, gated MLP, RMSNorm before each (transformers' modeling_llama.py).
#include "planner/families/decoder.h"

namespace shardplan {
namespace {

constexpr Architecture kLlama{
    .vocabulary = 32000, .hidden = 4096, .intermediate = 11008, .layers = 32, .heads = 32, .max_positions = 2048};

void llama(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, kLlama);
  const std::string function = config.text("hidden_act", "silu");
  model.describe(a);
  model.add(embedding("embed_tokens", a.vocabulary, a.hidden));
  const bool bias = config.flag("attention_bias", false);
  model.blocks("layers", a.layers,
               join({split_attention("self_attn", a, {.bias = bias, .output_bias = bias}),
                     gated_mlp("mlp", a.hidden, a.intermediate, function, config.flag("mlp_bias", false)),
                     rms_norm("input_layernorm", a.hidden), rms_norm("post_attention_layernorm", a.hidden)}));
  model.add(rms_norm("norm", a.hidden));
  model.head("embed_tokens", false);
}

}  // namespace

std::span<const Family> llama_families() {
  static const Family families[] = {{"llama", "Llama", decoder_heads(), {}, llama}};
  return families;
}

}  // namespace shardplan
