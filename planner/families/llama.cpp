// Llama and its kin: rotary grouped-query attention, gated MLP, RMSNorm before each (transformers' modeling_llama.py).
#include "planner/families/decoder.h"

namespace shardplan {
namespace {

constexpr Architecture kLlama{
    .vocabulary = 32000, .hidden = 4096, .intermediate = 11008, .layers = 32, .heads = 32, .max_positions = 2048};

Model llama(ModelConfig& config) {
  const Architecture a = read_grouped_decoder(config, kLlama);
  const std::string function = config.text("hidden_act", "silu");
  ModelBuilder model(config, a);
  model.embeddings({embedding("embed_tokens", a.vocabulary, a.hidden)});
  model.blocks("layers", a.layers,
               {split_attention("self_attn", a, config.flag("attention_bias", false)),
                gated_mlp("mlp", a, function, config.flag("mlp_bias", false)), rms_norm("input_layernorm", a.hidden),
                rms_norm("post_attention_layernorm", a.hidden)});
  model.head({rms_norm("norm", a.hidden)}, "embed_tokens", false);
  return model.finish();
}

}  // namespace

std::span<const Family> llama_families() {
  static const Family families[] = {{"llama", "Llama", decoder_heads(), {}, llama}};
  return families;
}

}  // namespace shardplan
