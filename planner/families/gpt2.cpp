// GPT-2: learned positions, LayerNorm before each, one projection for q, k and v, weights stored transposed
// (transformers' modeling_gpt2.py).
#include "planner/families/decoder.h"

namespace shardplan {
namespace {

constexpr Architecture kGpt2{.vocabulary = 50257, .hidden = 768, .layers = 12, .heads = 12, .max_positions = 1024};

constexpr Alias kAliases[] = {{"hidden_size", "n_embd"},
                              {"intermediate_size", "n_inner"},
                              {"num_hidden_layers", "n_layer"},
                              {"num_attention_heads", "n_head"},
                              {"max_position_embeddings", "n_positions"}};

constexpr Head kHeads[] = {
    {"LMHeadModel", "transformer", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "transformer", "score", HeadOutput::labels, false},
    {"ForTokenClassification", "transformer", "classifier", HeadOutput::labels, true},
    {"ForQuestionAnswering", "transformer", "qa_outputs", HeadOutput::span, true},
};

Modules fused_attention(const Architecture& a) {
  return below("attn", join({transposed_linear("c_attn", a.hidden, 3 * a.hidden),
                             attention("attention", attention_sizes(a, false)),
                             transposed_linear("c_proj", a.hidden, a.hidden)}));
}

// Keys and values from an encoder: in the state dict they come before the queries.
Modules cross_attention(const Architecture& a) {
  return join({below("crossattention", join({transposed_linear("c_attn", a.hidden, 2 * a.hidden),
                                             transposed_linear("q_attn", a.hidden, a.hidden),
                                             attention("attention", attention_sizes(a, false)),
                                             transposed_linear("c_proj", a.hidden, a.hidden)})),
               layer_norm("ln_cross_attn", a.hidden)});
}

Modules mlp(const Architecture& a, const std::string& function) {
  return below("mlp",
               join({transposed_linear("c_fc", a.hidden, a.intermediate), activation("act", function, a.intermediate),
                     transposed_linear("c_proj", a.intermediate, a.hidden)}));
}

void gpt2(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(config, kGpt2);
  const std::string function = config.text("activation_function", "gelu_new");
  const bool crossed = config.flag("add_cross_attention", false);
  model.describe(a);
  model.add(join({embedding("wte", a.vocabulary, a.hidden), embedding("wpe", a.max_positions, a.hidden)}));
  model.blocks("h", a.layers,
               join({layer_norm("ln_1", a.hidden), fused_attention(a), layer_norm("ln_2", a.hidden),
                     crossed ? cross_attention(a) : Modules{}, mlp(a, function)}));
  model.add(layer_norm("ln_f", a.hidden));
  model.head("wte", true);
}

}  // namespace

std::span<const Family> gpt2_families() {
  static const Family families[] = {{"gpt2", "GPT2", kHeads, kAliases, gpt2}};
  return families;
}

}  // namespace shardplan
