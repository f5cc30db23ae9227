// GPT-2 and its kin: blocks "h" with LayerNorm before attention and a plain MLP, below "transformer".
#include <fmt/format.h>

#include "planner/families/decoder.h"

namespace shardplan {
namespace {

// The class of gpt_bigcode has the same.
constexpr Architecture kGpt2{.vocabulary = 50257, .hidden = 768, .layers = 12, .heads = 12, .max_positions = 1024};

constexpr Alias kAliases[] = {{"hidden_size", "n_embd"},
                              {"intermediate_size", "n_inner"},
                              {"num_hidden_layers", "n_layer"},
                              {"num_attention_heads", "n_head"},
                              {"max_position_embeddings", "n_positions"}};
constexpr Alias kNeoAliases[] = {{"num_hidden_layers", "num_layers"}, {"num_attention_heads", "num_heads"}};

constexpr std::string_view kDoubleHeads = "DoubleHeadsModel";
constexpr Head kGpt2Heads[] = {
    {"LMHeadModel", "transformer", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {kDoubleHeads, "transformer", "lm_head", HeadOutput::vocabulary, false},
    {"ForSequenceClassification", "transformer", "score", HeadOutput::labels, false},
    {"ForTokenClassification", "transformer", "classifier", HeadOutput::labels, true},
    {"ForQuestionAnswering", "transformer", "qa_outputs", HeadOutput::span, true},
};
constexpr Head kBigcodeHeads[] = {
    {"ForCausalLM", "transformer", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "transformer", "score", HeadOutput::labels, false},
    {"ForTokenClassification", "transformer", "classifier", HeadOutput::labels, true},
};
constexpr Head kNeoHeads[] = {
    {"ForCausalLM", "transformer", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "transformer", "score", HeadOutput::labels, false},
    {"ForTokenClassification", "transformer", "classifier", HeadOutput::labels, true},
    {"ForQuestionAnswering", "transformer", "qa_outputs", HeadOutput::span, true},
};
// Question answering puts out num_labels, not a span.
constexpr Head kGptjHeads[] = {
    {"ForCausalLM", "transformer", "lm_head", HeadOutput::vocabulary, true},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "transformer", "score", HeadOutput::labels, false},
    {"ForQuestionAnswering", "transformer", "qa_outputs", HeadOutput::labels, true},
};

// A linear module with a bias, as GPT-2 (transposed_linear) or as everyone else has it.
using Projection = Modules (*)(std::string name, std::uint64_t input, std::uint64_t output);

Modules biased_linear(std::string name, std::uint64_t input, std::uint64_t output) {
  return linear(std::move(name), input, output, true);
}

// Rates of dropout: of what the embedding, the attention's probabilities and each part of a block give.
struct Dropouts {
  double embedded = 0;
  double attended = 0;
  double residual = 0;
};

Dropouts read_dropouts(const ModelConfig& config, double class_default) {
  return {.embedded = config.number("embd_pdrop", class_default),
          .attended = config.number("attn_pdrop", class_default),
          .residual = config.number("resid_pdrop", class_default)};
}

Modules attention_dropouts(const Dropouts& rates) {
  return join({dropout("attn_dropout", rates.attended), dropout("resid_dropout", rates.residual)});
}

Modules fused_attention(const Architecture& a, Projection project, const Dropouts& rates) {
  return below("attn", join({project("c_attn", a.hidden, a.hidden + 2 * a.kv_heads * a.head_size),
                             attention("attention", attention_sizes(a, false)), project("c_proj", a.hidden, a.hidden),
                             attention_dropouts(rates)}));
}

// Keys and values from an encoder: in the state dict they come before the queries.
Modules cross_attention(const Architecture& a, Projection project) {
  return join({below("crossattention",
                     join({project("c_attn", a.hidden, 2 * a.hidden), project("q_attn", a.hidden, a.hidden),
                           attention("attention", attention_sizes(a, false)), project("c_proj", a.hidden, a.hidden)})),
               layer_norm("ln_cross_attn", a.hidden)});
}

// Queries come last in the state dict.
Modules split_attention_keys_first(std::string_view name, const Architecture& a, const AttentionSizes& sizes,
                                   bool output_bias, const Dropouts& rates) {
  return below(name, join({linear("k_proj", a.hidden, a.hidden, false), linear("v_proj", a.hidden, a.hidden, false),
                           linear("q_proj", a.hidden, a.hidden, false), attention("attention", sizes),
                           linear("out_proj", a.hidden, a.hidden, output_bias), attention_dropouts(rates)}));
}

void positioned_decoder(ModelConfig& config, ModelBuilder& model, const Architecture& a, Projection project,
                        std::string_view class_function, const Dropouts& rates, const Modules& attention,
                        const Modules& crossed = {}) {
  const std::string function = config.text("activation_function", class_function);
  const Modules mlp =
      below("mlp", join({project("c_fc", a.hidden, a.intermediate), activation("act", function, a.intermediate),
                         project("c_proj", a.intermediate, a.hidden), dropout("dropout", rates.residual)}));
  model.describe(a);
  model.add(join({embedding("wte", a.vocabulary, a.hidden), embedding("wpe", a.max_positions, a.hidden),
                  dropout("drop", rates.embedded)}));
  model.blocks("h", a.layers,
               join({layer_norm("ln_1", a.hidden), attention, layer_norm("ln_2", a.hidden), crossed, mlp}));
  model.add(layer_norm("ln_f", a.hidden));
  model.head("wte", true);
}

// Weights are stored transposed (modeling_gpt2.py).
void gpt2(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(config, kGpt2);
  const Dropouts rates = read_dropouts(config, 0.1);
  const bool crossed = config.flag("add_cross_attention", false);
  positioned_decoder(config, model, a, transposed_linear, "gelu_new", rates,
                     fused_attention(a, transposed_linear, rates),
                     crossed ? cross_attention(a, transposed_linear) : Modules{});
  if (config.head().suffix == kDoubleHeads && config.flag("summary_use_proj", true)) {
    const std::uint64_t width = config.flag("summary_proj_to_labels", true) ? 1 : a.hidden;
    model.add_outside(biased_linear("multiple_choice_head.summary", a.hidden, width));
  }
}

// One head of keys and values for all queries, unless multi_query is false (modeling_gpt_bigcode.py).
void gpt_bigcode(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_decoder(config, kGpt2);
  const bool multi_query = config.flag("multi_query", true);
  const bool crossed = config.flag("add_cross_attention", false);
  if (multi_query && crossed) config.fail("add_cross_attention", "expected false with multi_query, found true");
  if (multi_query) a.kv_heads = 1;
  const Dropouts rates = read_dropouts(config, 0.1);
  positioned_decoder(config, model, a, biased_linear, "gelu_pytorch_tanh", rates,
                     fused_attention(a, biased_linear, rates), crossed ? cross_attention(a, biased_linear) : Modules{});
}

// Every other layer looks back over a window only; that is a mask, no tensor.
void require_attention_layers(const ModelConfig& config, std::uint64_t layers) {
  const auto kinds = config.texts("attention_layers");
  if (!kinds) return;
  if (kinds->size() != layers) {
    config.fail("attention_layers",
                fmt::format("expected {} entries, one for each layer, found {}", layers, kinds->size()));
  }
  for (const std::string& kind : *kinds) {
    if (kind != "global" && kind != "local") {
      config.fail("attention_layers", fmt::format(R"(expected "global" or "local", found "{}")", kind));
    }
  }
}

// Queries, keys and values on their own, without biases (modeling_gpt_neo.py).
void gpt_neo(ModelConfig& config, ModelBuilder& model) {
  const Architecture a =
      read_decoder(config, {.vocabulary = 50257, .hidden = 2048, .layers = 24, .heads = 16, .max_positions = 2048});
  require_attention_layers(config, a.layers);
  const Dropouts rates{.embedded = config.number("embed_dropout", 0),
                       .attended = config.number("attention_dropout", 0),
                       .residual = config.number("resid_dropout", 0)};
  positioned_decoder(config, model, a, biased_linear, "gelu_new", rates,
                     split_attention_keys_first("attn.attention", a, attention_sizes(a, false), true, rates));
}

// The first rotary_dim features of each head, all of them where that is null.
std::uint64_t rotary_features(const ModelConfig& config, std::uint64_t head_size) {
  const std::uint64_t features =
      config.present("rotary_dim") ? config.optional_size("rotary_dim").value_or(head_size) : 64;
  if (features > head_size) {
    config.fail("rotary_dim", fmt::format("expected at most the {} features of a head, found {}", head_size, features));
  }
  return features == head_size ? 0 : features;
}

// Rotary; attention and MLP are parallel, behind one norm; the head has a bias (modeling_gptj.py).
void gptj(ModelConfig& config, ModelBuilder& model) {
  const Architecture a =
      read_decoder(config, {.vocabulary = 50400, .hidden = 4096, .layers = 28, .heads = 16, .max_positions = 2048});
  const std::string function = config.text("activation_function", "gelu_new");
  const Dropouts rates = read_dropouts(config, 0);
  AttentionSizes sizes = attention_sizes(a, true);
  sizes.rotary_size = rotary_features(config, a.head_size);
  model.describe(a);
  model.add(join({embedding("wte", a.vocabulary, a.hidden), dropout("drop", rates.embedded)}));
  model.blocks("h", a.layers,
               join({layer_norm("ln_1", a.hidden), split_attention_keys_first("attn", a, sizes, false, rates),
                     plain_mlp("mlp", "fc_in", "fc_out", a.hidden, a.intermediate, function, true),
                     dropout("mlp.dropout", rates.residual)}));
  model.add(layer_norm("ln_f", a.hidden));
  model.head("wte", false);
}

}  // namespace

std::span<const Family> gpt2_families() {
  static const Family families[] = {
      {"gpt2", "GPT2", kGpt2Heads, kAliases, gpt2},
      {"gpt_bigcode", "GPTBigCode", kBigcodeHeads, kAliases, gpt_bigcode},
      {"gpt_neo", "GPTNeo", kNeoHeads, kNeoAliases, gpt_neo},
      {"gptj", "GPTJ", kGptjHeads, kAliases, gptj},
  };
  return families;
}

}  // namespace shardplan
