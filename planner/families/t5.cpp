// Encoders with decoders that attend to them: T5 and mT5, BART, Whisper.
#include <fmt/format.h>

#include <utility>

#include "planner/families/decoder.h"

namespace shardplan {
namespace {

// ---- T5 and mT5: RMSNorm before each part; no positions but a bias of attention, whose table the first block of each
// stack owns for all of it (transformers' modeling_t5.py, modeling_mt5.py) ----

constexpr Head kT5Heads[] = {
    {"ForConditionalGeneration", "", "lm_head", HeadOutput::vocabulary},
    {"Model", "", "", HeadOutput::none},
    {"EncoderModel", "", "", HeadOutput::none},
    {"ForSequenceClassification", "transformer", "classification_head", HeadOutput::custom},
    {"ForTokenClassification", "transformer", "classifier", HeadOutput::labels, true},
    {"ForQuestionAnswering", "", "qa_outputs", HeadOutput::labels, true},
};
constexpr Alias kT5Aliases[] = {{"hidden_size", "d_model"},
                                {"num_hidden_layers", "num_layers"},
                                {"num_attention_heads", "num_heads"},
                                {"head_dim", "d_kv"}};

struct T5Defaults {
  Architecture architecture;
  std::string_view feed_forward;
  bool tied = false;
};
constexpr T5Defaults kT5{
    {.vocabulary = 32128, .hidden = 512, .intermediate = 2048, .layers = 6, .heads = 8, .head_size = 64}, "relu", true};
constexpr T5Defaults kMt5{
    {.vocabulary = 250112, .hidden = 512, .intermediate = 1024, .layers = 8, .heads = 6, .head_size = 64},
    "gated-gelu",
    false};

Architecture read_t5(ModelConfig& config, const Architecture& defaults) {
  Architecture a;
  a.vocabulary = config.size("vocab_size", defaults.vocabulary);
  a.hidden = config.size("hidden_size", defaults.hidden);
  a.intermediate = config.size("d_ff", defaults.intermediate);
  a.layers = config.size("num_hidden_layers", defaults.layers);
  a.heads = config.size("num_attention_heads", defaults.heads);
  a.kv_heads = a.heads;
  a.head_size = config.size("head_dim", defaults.head_size);
  return a;
}

struct T5Function {
  std::string name;
  bool gated = false;
};

// feed_forward_proj is "relu" or "gated-gelu"; what a file says in dense_act_fn and is_gated_act goes before it.
T5Function read_t5_function(const ModelConfig& config, std::string_view class_default) {
  const std::string text = config.text("feed_forward_proj", class_default);
  const std::size_t dash = text.find('-');
  const bool gated = text.starts_with("gated-");
  if (dash != text.rfind('-') || (dash != std::string::npos && !gated)) {
    config.fail("feed_forward_proj",
                fmt::format(R"(expected an activation function, such as "relu" or "gated-gelu", found "{}")", text));
  }
  const std::string name = text == "gated-gelu" ? "gelu_new" : text.substr(gated ? dash + 1 : 0);
  return {.name = config.text("dense_act_fn", name), .gated = config.flag("is_gated_act", gated)};
}

Modules t5_attention(std::string_view name, const Architecture& a, double dropped, const Modules& bias) {
  const std::uint64_t inner = a.heads * a.head_size;
  return join({below(name, join({linear("q", a.hidden, inner, false), linear("k", a.hidden, inner, false),
                                 linear("v", a.hidden, inner, false), attention("attention", attention_sizes(a, false)),
                                 linear("o", inner, a.hidden, false), dropout("dropout", dropped), bias})),
               rms_norm("layer_norm", a.hidden), dropout("dropout", dropped)});
}

Modules t5_mlp(const Architecture& a, const T5Function& function, double dropped) {
  const Modules up =
      function.gated
          ? join({linear("wi_0", a.hidden, a.intermediate, false), linear("wi_1", a.hidden, a.intermediate, false)})
          : linear("wi", a.hidden, a.intermediate, false);
  const Modules gate = function.gated ? multiply("gate", a.intermediate) : Modules{};
  return join(
      {below("DenseReluDense", join({up, activation("act", function.name, a.intermediate), gate,
                                     linear("wo", a.intermediate, a.hidden, false), dropout("dropout", dropped)})),
       rms_norm("layer_norm", a.hidden), dropout("dropout", dropped)});
}

struct T5Stack {
  std::string_view name;
  std::uint64_t layers = 0;
  bool crossed = false;  // attends to the encoder's output
  std::uint64_t buckets = 0;
  double dropped = 0;
};

Modules t5_block(const Architecture& a, const T5Function& function, const T5Stack& stack, bool first) {
  const Modules bias = first ? embedding("relative_attention_bias", stack.buckets, a.heads) : Modules{};
  const Modules self = below("layer.0", t5_attention("SelfAttention", a, stack.dropped, bias));
  const Modules mlp = t5_mlp(a, function, stack.dropped);
  if (!stack.crossed) return join({self, below("layer.1", mlp)});
  return join({self, below("layer.1", t5_attention("EncDecAttention", a, stack.dropped, {})), below("layer.2", mlp)});
}

void add_t5_stack(ModelBuilder& model, const Architecture& a, const T5Function& function, const T5Stack& stack) {
  const std::string blocks = fmt::format("{}.block", stack.name);
  model.add(tied(embedding(fmt::format("{}.embed_tokens", stack.name), a.vocabulary, a.hidden),
                 model.whole("shared.weight")));
  model.blocks(blocks, 1, t5_block(a, function, stack, true));
  model.blocks(blocks, stack.layers - 1, t5_block(a, function, stack, false));
  model.add(join({rms_norm(fmt::format("{}.final_layer_norm", stack.name), a.hidden),
                  dropout(fmt::format("{}.dropout", stack.name), stack.dropped)}));
}

// A dense layer, tanh and the labels, for one token of each sequence.
Modules sequence_head(std::uint64_t hidden, std::uint64_t labels) {
  return below("classification_head", join({linear("dense", hidden, hidden, true), activation("act", "tanh", hidden),
                                            linear("out_proj", hidden, labels, true)}));
}

void add_t5(ModelConfig& config, ModelBuilder& model, const T5Defaults& defaults) {
  const Architecture a = read_t5(config, defaults.architecture);
  const T5Function function = read_t5_function(config, defaults.feed_forward);
  const std::uint64_t buckets = config.size("relative_attention_num_buckets", 32);
  const double dropped = config.number("dropout_rate", 0.1);
  const std::string_view head = config.head().suffix;
  model.describe(a);
  model.add(embedding("shared", a.vocabulary, a.hidden));
  add_t5_stack(model, a, function, {.name = "encoder", .layers = a.layers, .buckets = buckets, .dropped = dropped});
  if (head != "EncoderModel" && head != "ForTokenClassification") {
    // The class takes its default before it looks at num_hidden_layers, the other name of num_layers.
    const std::uint64_t alike = config.optional_size("num_layers").value_or(defaults.architecture.layers);
    const std::uint64_t layers = config.optional_size("num_decoder_layers").value_or(alike);
    add_t5_stack(model, a, function,
                 {.name = "decoder", .layers = layers, .crossed = true, .buckets = buckets, .dropped = dropped});
  }
  if (head == "ForSequenceClassification") model.add_outside(sequence_head(a.hidden, config.labels()));
  model.head("shared", defaults.tied);
}

void t5(ModelConfig& config, ModelBuilder& model) {
  add_t5(config, model, kT5);
}

void mt5(ModelConfig& config, ModelBuilder& model) {
  add_t5(config, model, kMt5);
}

// ---- What BART and Whisper share ----

constexpr Alias kSequenceAliases[] = {{"hidden_size", "d_model"}, {"encoder_attention_heads", "num_attention_heads"}};

// What both stacks have.
Architecture read_common(ModelConfig& config, const Architecture& defaults) {
  Architecture a;
  a.vocabulary = config.size("vocab_size", defaults.vocabulary);
  a.hidden = config.size("hidden_size", defaults.hidden);
  return a;
}

// The stack called "encoder" or "decoder"; `defaults` are the same for either.
Architecture read_stack(ModelConfig& config, const std::string& stack, const Architecture& common,
                        const Architecture& defaults) {
  Architecture a = common;
  a.intermediate = config.size(stack + "_ffn_dim", defaults.intermediate);
  a.layers = config.size(stack + "_layers", defaults.layers);
  a.heads = config.size(stack + "_attention_heads", defaults.heads);
  a.kv_heads = a.heads;
  config.require_divisor(stack + "_attention_heads", a.heads, "d_model", a.hidden);
  a.head_size = a.hidden / a.heads;
  return a;
}

// Rates of dropout: of what the embedding and each part of a layer give, of the attention's probabilities, and behind the
// function inside the MLP.
struct LayerDropouts {
  double hidden = 0;
  double attended = 0;
  double inside = 0;
};

LayerDropouts read_layer_dropouts(const ModelConfig& config, double class_default) {
  return {.hidden = config.number("dropout", class_default),
          .attended = config.number("attention_dropout", 0),
          .inside = config.number("activation_dropout", 0)};
}

struct LayerOptions {
  bool crossed = false;   // attends to the encoder's output
  bool key_bias = false;  // the other projections always have one
  std::string function{};
  LayerDropouts rates{};
};

Modules biased_attention(const std::string& name, const Architecture& a, const LayerOptions& options) {
  return join(
      {below(name,
             join({linear("k_proj", a.hidden, a.hidden, options.key_bias), linear("v_proj", a.hidden, a.hidden, true),
                   linear("q_proj", a.hidden, a.hidden, true), attention("attention", attention_sizes(a, false)),
                   linear("out_proj", a.hidden, a.hidden, true), dropout("dropout", options.rates.attended)})),
       layer_norm(name + "_layer_norm", a.hidden)});
}

Modules layer(const Architecture& a, const LayerOptions& options) {
  return join({biased_attention("self_attn", a, options),
               options.crossed ? biased_attention("encoder_attn", a, options) : Modules{},
               plain_mlp("", "fc1", "fc2", a.hidden, a.intermediate, options.function, true),
               layer_norm("final_layer_norm", a.hidden), dropout("dropout", options.rates.hidden),
               dropout("activation_dropout", options.rates.inside)});
}

// ---- BART: LayerNorm behind each part, one more behind the embedding (modeling_bart.py) ----

constexpr Architecture kBart{.vocabulary = 50265, .hidden = 1024, .intermediate = 4096, .layers = 12, .heads = 16};

// The base model's prefix is in the names: final_logits_bias, which is saved too, lies outside it.
constexpr Head kBartHeads[] = {
    {"ForConditionalGeneration", "", "lm_head", HeadOutput::vocabulary},
    {"Model", "", "", HeadOutput::none},
    {"ForCausalLM", "", "lm_head", HeadOutput::vocabulary},
    {"ForSequenceClassification", "", "classification_head", HeadOutput::custom},
    {"ForQuestionAnswering", "", "qa_outputs", HeadOutput::span, true},
};

// Positions have two extra rows, of the padding.
void add_bart_stack(ModelBuilder& model, const std::string& stack, const Modules& words, const Architecture& a,
                    const LayerOptions& options) {
  model.add(
      below(stack, join({words, embedding("embed_positions", a.max_positions + 2, a.hidden),
                         layer_norm("layernorm_embedding", a.hidden), dropout("dropout", options.rates.hidden)})));
  model.blocks(stack + ".layers", a.layers, layer(a, options));
}

void bart(ModelConfig& config, ModelBuilder& model) {
  Architecture common = read_common(config, kBart);
  common.max_positions = config.size("max_position_embeddings", 1024);
  const Architecture decoder = read_stack(config, "decoder", common, kBart);
  const LayerOptions crossed{.crossed = true,
                             .key_bias = true,
                             .function = config.text("activation_function", "gelu"),
                             .rates = read_layer_dropouts(config, 0.1)};
  const std::string_view head = config.head().suffix;
  const std::string base = head == "Model" ? "" : "model.";
  const Modules words = embedding("embed_tokens", decoder.vocabulary, decoder.hidden);
  model.describe(decoder);
  if (head == "ForCausalLM") {
    add_bart_stack(model, base + "decoder", words, decoder, crossed);
    model.head(base + "decoder.embed_tokens", true);
    return;
  }
  const Architecture encoder = read_stack(config, "encoder", common, kBart);
  const Modules shared_words = tied(words, model.whole(base + "shared.weight"));
  model.add(embedding(base + "shared", decoder.vocabulary, decoder.hidden));
  LayerOptions plain = crossed;
  plain.crossed = false;
  add_bart_stack(model, base + "encoder", shared_words, encoder, plain);
  add_bart_stack(model, base + "decoder", shared_words, decoder, crossed);
  if (head == "ForConditionalGeneration") model.buffer("final_logits_bias", {1, decoder.vocabulary});
  if (head == "ForSequenceClassification") {
    const bool named = config.has("num_labels") || config.has("id2label");
    model.add_outside(sequence_head(decoder.hidden, named ? config.labels() : 3));
  }
  model.head(base + "shared", true);
}

// ---- Whisper: an encoder of sounds, with convolutions and a fixed table of sines; LayerNorm before each part; keys
// without bias (modeling_whisper.py) ----

constexpr Architecture kWhisper{.vocabulary = 51865, .hidden = 384, .intermediate = 1536, .layers = 4, .heads = 6};

constexpr Head kWhisperHeads[] = {
    {"ForConditionalGeneration", "model", "proj_out", HeadOutput::vocabulary},
    {"Model", "", "", HeadOutput::none},
    {"ForCausalLM", "model", "proj_out", HeadOutput::vocabulary},
    {"ForAudioClassification", "", "classifier", HeadOutput::custom},
};

Architecture add_whisper_encoder(ModelConfig& config, ModelBuilder& model, const Architecture& common,
                                 const LayerOptions& options) {
  const Architecture a = read_stack(config, "encoder", common, kWhisper);
  const std::uint64_t bins = config.size("num_mel_bins", 80);
  const std::uint64_t positions = config.size("max_source_positions", 1500);
  const Modules sound =
      join({convolution("conv1", bins, a.hidden, {3}, true), activation("conv1.activation", "gelu", a.hidden),
            convolution("conv2", a.hidden, a.hidden, {3}, true), activation("conv2.activation", "gelu", a.hidden)});
  model.add(below("encoder", join({sound, frozen(embedding("embed_positions", positions, a.hidden)),
                                   dropout("dropout", options.rates.hidden)})));
  model.blocks("encoder.layers", a.layers, layer(a, options));
  model.add(layer_norm("encoder.layer_norm", a.hidden));
  return a;
}

Architecture add_whisper_decoder(ModelConfig& config, ModelBuilder& model, const Architecture& common,
                                 LayerOptions options) {
  Architecture a = read_stack(config, "decoder", common, kWhisper);
  options.crossed = true;
  a.max_positions = config.size("max_target_positions", 448);
  model.add(below("decoder", join({embedding("embed_tokens", a.vocabulary, a.hidden),
                                   embedding("embed_positions", a.max_positions, a.hidden),
                                   dropout("dropout", options.rates.hidden)})));
  model.blocks("decoder.layers", a.layers, layer(a, options));
  model.add(layer_norm("decoder.layer_norm", a.hidden));
  return a;
}

// From the encoder's output, or from a weighted sum of that of all its layers, to labels.
void add_audio_head(ModelConfig& config, ModelBuilder& model, const Architecture& encoder) {
  if (config.flag("use_weighted_layer_sum", false)) {
    const std::uint64_t layers = config.optional_size("num_hidden_layers").value_or(encoder.layers);
    model.add_outside(parameter("layer_weights", {layers + 1}));
  }
  const std::uint64_t projected = config.size("classifier_proj_size", 256);
  model.add_outside(join(
      {linear("projector", encoder.hidden, projected, true), linear("classifier", projected, config.labels(), true)}));
}

void whisper(ModelConfig& config, ModelBuilder& model) {
  const Architecture common = read_common(config, kWhisper);
  const LayerOptions options{.function = config.text("activation_function", "gelu"),
                             .rates = read_layer_dropouts(config, 0)};
  const std::string_view head = config.head().suffix;
  Architecture last;
  if (head != "ForCausalLM") last = add_whisper_encoder(config, model, common, options);
  if (head == "ForAudioClassification") {
    add_audio_head(config, model, last);
  } else {
    last = add_whisper_decoder(config, model, common, options);
  }
  model.describe(last);
  model.head("decoder.embed_tokens", true);
}

}  // namespace

std::span<const Family> t5_families() {
  static const Family families[] = {
      {"t5", "T5", kT5Heads, kT5Aliases, t5},
      {"mt5", "MT5", kT5Heads, kT5Aliases, mt5},
      {"bart", "Bart", kBartHeads, kSequenceAliases, bart},
      {"whisper", "Whisper", kWhisperHeads, kSequenceAliases, whisper},
  };
  return families;
}

}  // namespace shardplan
