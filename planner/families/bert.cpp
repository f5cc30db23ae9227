// BERT and its kin: encoders with learned positions, LayerNorm behind each part, biases everywhere, and heads of more
// than one module.
#include "planner/families/bert.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "planner/families/decoder.h"

namespace shardplan {
namespace {

constexpr Architecture kBert{
    .vocabulary = 30522, .hidden = 768, .intermediate = 3072, .layers = 12, .heads = 12, .max_positions = 512};

Modules projections(const Architecture& a, std::string_view suffix) {
  const auto projection = [&](std::string_view name) {
    return linear(fmt::format("{}{}", name, suffix), a.hidden, a.hidden, true);
  };
  return join({projection("query"), projection("key"), projection("value")});
}

}  // namespace

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

EncoderDropouts read_encoder_dropouts(const ModelConfig& config, double class_default) {
  return {.attended = config.number("attention_probs_dropout_prob", class_default),
          .hidden = config.number("hidden_dropout_prob", class_default)};
}

Modules attention_part(std::string_view name, const Architecture& a, const EncoderDropouts& rates,
                       const Modules& positions, std::string_view suffix) {
  return below(
      name,
      join({below("self", join({projections(a, suffix), positions, attention("attention", attention_sizes(a, false)),
                                dropout("dropout", rates.attended)})),
            linear("output.dense", a.hidden, a.hidden, true), layer_norm("output.LayerNorm", a.hidden),
            dropout("output.dropout", rates.hidden)}));
}

Modules feed_forward_part(const Architecture& a, const EncoderDropouts& rates, const std::string& function) {
  return join({linear("intermediate.dense", a.hidden, a.intermediate, true),
               activation("intermediate.intermediate_act_fn", function, a.intermediate),
               linear("output.dense", a.intermediate, a.hidden, true), layer_norm("output.LayerNorm", a.hidden),
               dropout("output.dropout", rates.hidden)});
}

Modules pooler(const std::string& dense, const std::string& function, std::uint64_t hidden) {
  return join({linear(dense, hidden, hidden, true), activation("pooler.activation", function, hidden)});
}

void add_word_head(ModelConfig& config, ModelBuilder& model, const WordHead& head, const Architecture& a,
                   std::uint64_t width, const std::string& function) {
  const std::string embedding = model.whole("embeddings.word_embeddings.weight");
  const std::string weight = config.ties_embeddings(true) ? embedding : "";
  Modules decoder = linear(std::string(head.decoder), width, a.vocabulary, true);
  if (head.bias.empty()) {
    decoder = tied(std::move(decoder), weight);
  } else {
    model.add_outside(parameter(std::string(head.bias), {a.vocabulary}));
    decoder = tied(std::move(decoder), weight, std::string(head.bias));
  }
  model.add_outside(join({linear(std::string(head.dense), a.hidden, width, true),
                          activation(fmt::format("{}.activation", head.dense), function, width),
                          layer_norm(std::string(head.norm), width), decoder}));
}

void add_linear_head(const ModelConfig& config, ModelBuilder& model, const Architecture& a) {
  if (config.head().suffix == "ForMultipleChoice") model.add_outside(linear("classifier", a.hidden, 1, true));
  model.head("embeddings.word_embeddings", true);
}

namespace {

// ---- Parts that DeBERTa has not ----

Modules word_embeddings(ModelConfig& config, const Architecture& a, std::uint64_t width, const EncoderDropouts& rates) {
  return below("embeddings", join({embedding("word_embeddings", a.vocabulary, width),
                                   embedding("position_embeddings", a.max_positions, width),
                                   embedding("token_type_embeddings", config.size("type_vocab_size", 2), width),
                                   layer_norm("LayerNorm", width), dropout("dropout", rates.hidden)}));
}

// What position_embedding_type adds to self-attention: a vector for each distance between two positions.
Modules distances(ModelConfig& config, const Architecture& a) {
  if (!is_one_of(config.text("position_embedding_type", "absolute"), {"relative_key", "relative_key_query"})) return {};
  return embedding("distance_embedding", 2 * a.max_positions - 1, a.head_size);
}

bool has_cross_attention(const ModelConfig& config) {
  const bool crossed = config.flag("add_cross_attention", false);
  if (crossed && !config.flag("is_decoder", false))
    config.fail("is_decoder", "add_cross_attention needs it to be true");
  return crossed;
}

void add_encoder(ModelConfig& config, ModelBuilder& model, const Architecture& a, const EncoderDropouts& rates,
                 const std::string& function) {
  model.blocks("encoder.layer", a.layers,
               join({attention_part("attention", a, rates, distances(config, a), ""),
                     has_cross_attention(config) ? attention_part("crossattention", a, rates, {}, "") : Modules{},
                     feed_forward_part(a, rates, function)}));
}

// Before the last linear module of a head for labels: classifier_dropout, or that of hidden features where it is null.
Modules label_dropout(const ModelConfig& config, const EncoderDropouts& rates) {
  if (!is_one_of(config.head().suffix, {"ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice"}))
    return {};
  return dropout("dropout", config.has("classifier_dropout") ? config.number("classifier_dropout", 0) : rates.hidden);
}

// What RoBERTa and ELECTRA put behind the first token.
Modules classification_head(const ModelConfig& config, const Architecture& a, const EncoderDropouts& rates,
                            const std::string& function) {
  return below("classifier",
               join({linear("dense", a.hidden, a.hidden, true), activation("activation", function, a.hidden),
                     linear("out_proj", a.hidden, config.labels(), true), label_dropout(config, rates)}));
}

// ---- BERT (modeling_bert.py) ----

constexpr Head kBertHeads[] = {
    {"ForMaskedLM", "bert", "cls", HeadOutput::custom},
    {"LMHeadModel", "bert", "cls", HeadOutput::custom},
    {"ForPreTraining", "bert", "cls", HeadOutput::custom},
    {"ForNextSentencePrediction", "bert", "cls", HeadOutput::custom},
    {"Model", "", "", HeadOutput::none},
    {"ForSequenceClassification", "bert", "classifier", HeadOutput::labels, true},
    {"ForTokenClassification", "bert", "classifier", HeadOutput::labels, true},
    {"ForMultipleChoice", "bert", "classifier", HeadOutput::custom},
    {"ForQuestionAnswering", "bert", "qa_outputs", HeadOutput::labels, true},
};

void bert(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(config, kBert);
  const std::string function = config.text("hidden_act", "gelu");
  const std::string_view head = config.head().suffix;
  const EncoderDropouts rates = read_encoder_dropouts(config, 0.1);
  model.describe(a);
  model.add(word_embeddings(config, a, a.hidden, rates));
  add_encoder(config, model, a, rates, function);
  if (!is_one_of(head, {"ForMaskedLM", "LMHeadModel", "ForTokenClassification", "ForQuestionAnswering"})) {
    model.add(pooler("pooler.dense", "tanh", a.hidden));
  }
  if (is_one_of(head, {"ForMaskedLM", "LMHeadModel", "ForPreTraining"})) {
    add_word_head(config, model, kBertWords, a, a.hidden, function);
  }
  if (is_one_of(head, {"ForPreTraining", "ForNextSentencePrediction"})) {
    model.add_outside(linear("cls.seq_relationship", a.hidden, 2, true));
  }
  model.add_outside(label_dropout(config, rates));
  add_linear_head(config, model, a);
}

// ---- RoBERTa and XLM-RoBERTa: BERT with other heads (modeling_roberta.py, modeling_xlm_roberta.py) ----

constexpr Head kRobertaHeads[] = {
    {"ForMaskedLM", "roberta", "lm_head", HeadOutput::custom},
    {"ForCausalLM", "roberta", "lm_head", HeadOutput::custom},
    {"Model", "", "", HeadOutput::none},
    {"ForSequenceClassification", "roberta", "classifier", HeadOutput::custom},
    {"ForTokenClassification", "roberta", "classifier", HeadOutput::labels, true},
    {"ForMultipleChoice", "roberta", "classifier", HeadOutput::custom},
    {"ForQuestionAnswering", "roberta", "qa_outputs", HeadOutput::labels, true},
};
constexpr WordHead kRobertaWords{"lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"};

void add_roberta(ModelConfig& config, ModelBuilder& model, const Architecture& defaults) {
  const Architecture a = read_decoder(config, defaults);
  const std::string_view head = config.head().suffix;
  const EncoderDropouts rates = read_encoder_dropouts(config, 0.1);
  model.describe(a);
  model.add(word_embeddings(config, a, a.hidden, rates));
  add_encoder(config, model, a, rates, config.text("hidden_act", "gelu"));
  if (is_one_of(head, {"Model", "ForMultipleChoice"})) model.add(pooler("pooler.dense", "tanh", a.hidden));
  if (is_one_of(head, {"ForMaskedLM", "ForCausalLM"})) {
    add_word_head(config, model, kRobertaWords, a, a.hidden, "gelu");
  }
  if (head == "ForSequenceClassification") {
    model.add_outside(classification_head(config, a, rates, "tanh"));
  } else {
    model.add_outside(label_dropout(config, rates));
  }
  add_linear_head(config, model, a);
}

void roberta(ModelConfig& config, ModelBuilder& model) {
  Architecture defaults = kBert;
  defaults.vocabulary = 50265;
  add_roberta(config, model, defaults);
}

void xlm_roberta(ModelConfig& config, ModelBuilder& model) {
  add_roberta(config, model, kBert);
}

// ---- ELECTRA: an embedding of its own width; a generator, or a discriminator (modeling_electra.py) ----

constexpr Head kElectraHeads[] = {
    {"ForPreTraining", "electra", "discriminator_predictions", HeadOutput::custom},
    {"ForMaskedLM", "electra", "generator_lm_head", HeadOutput::custom},
    {"ForCausalLM", "electra", "generator_lm_head", HeadOutput::custom},
    {"Model", "", "", HeadOutput::none},
    {"ForSequenceClassification", "electra", "classifier", HeadOutput::custom},
    {"ForTokenClassification", "electra", "classifier", HeadOutput::labels, true},
    {"ForMultipleChoice", "electra", "classifier", HeadOutput::custom},
    {"ForQuestionAnswering", "electra", "qa_outputs", HeadOutput::labels, true},
};
constexpr Architecture kElectra{
    .vocabulary = 30522, .hidden = 256, .intermediate = 1024, .layers = 12, .heads = 4, .max_positions = 512};
constexpr WordHead kElectraWords{"generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head",
                                 ""};

Modules discriminator(const Architecture& a, const std::string& function) {
  return below("discriminator_predictions",
               join({linear("dense", a.hidden, a.hidden, true), activation("activation", function, a.hidden),
                     linear("dense_prediction", a.hidden, 1, true)}));
}

Modules sequence_summary(const ModelConfig& config, const Architecture& a) {
  if (config.text("summary_type", "first") == "attn") config.fail("summary_type", "its class has no attn");
  if (!config.flag("summary_use_proj", true)) return {};
  return below("sequence_summary",
               join({linear("summary", a.hidden, a.hidden, true),
                     activation("activation", config.text("summary_activation", "gelu"), a.hidden)}));
}

void electra(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(config, kElectra);
  const std::uint64_t width = config.size("embedding_size", 128);
  const std::string function = config.text("hidden_act", "gelu");
  const std::string_view head = config.head().suffix;
  const EncoderDropouts rates = read_encoder_dropouts(config, 0.1);
  model.describe(a);
  model.add(word_embeddings(config, a, width, rates));
  if (width != a.hidden) model.add(linear("embeddings_project", width, a.hidden, true));
  add_encoder(config, model, a, rates, function);
  if (head == "ForPreTraining") model.add_outside(discriminator(a, function));
  if (is_one_of(head, {"ForMaskedLM", "ForCausalLM"})) {
    add_word_head(config, model, kElectraWords, a, width, "gelu");
  }
  if (head == "ForSequenceClassification") model.add_outside(classification_head(config, a, rates, "gelu"));
  if (head == "ForTokenClassification") model.add_outside(label_dropout(config, rates));
  if (head == "ForMultipleChoice") model.add_outside(sequence_summary(config, a));
  add_linear_head(config, model, a);
}

// ---- DistilBERT: no token types, no pooler, other names (modeling_distilbert.py) ----

constexpr Alias kDistilbertAliases[] = {{"hidden_size", "dim"},
                                        {"intermediate_size", "hidden_dim"},
                                        {"num_hidden_layers", "n_layers"},
                                        {"num_attention_heads", "n_heads"}};
constexpr Head kDistilbertHeads[] = {
    {"ForMaskedLM", "distilbert", "vocab_projector", HeadOutput::custom},
    {"Model", "", "", HeadOutput::none},
    {"ForSequenceClassification", "distilbert", "classifier", HeadOutput::labels, true},
    {"ForTokenClassification", "distilbert", "classifier", HeadOutput::labels, true},
    {"ForMultipleChoice", "distilbert", "classifier", HeadOutput::custom},
    {"ForQuestionAnswering", "distilbert", "qa_outputs", HeadOutput::span, true},
};
constexpr WordHead kDistilbertWords{"vocab_transform", "vocab_layer_norm", "vocab_projector", ""};

Modules distilbert_block(const Architecture& a, const EncoderDropouts& rates, const std::string& function) {
  const Modules parts =
      join({linear("q_lin", a.hidden, a.hidden, true), linear("k_lin", a.hidden, a.hidden, true),
            linear("v_lin", a.hidden, a.hidden, true), attention("attention", attention_sizes(a, false)),
            linear("out_lin", a.hidden, a.hidden, true), dropout("dropout", rates.attended)});
  return join({below("attention", parts), layer_norm("sa_layer_norm", a.hidden),
               plain_mlp("ffn", "lin1", "lin2", a.hidden, a.intermediate, function, true),
               dropout("ffn.dropout", rates.hidden), layer_norm("output_layer_norm", a.hidden)});
}

void distilbert(ModelConfig& config, ModelBuilder& model) {
  Architecture defaults = kBert;
  defaults.layers = 6;
  const Architecture a = read_decoder(config, defaults);
  const std::string function = config.text("activation", "gelu");
  const std::string_view head = config.head().suffix;
  model.describe(a);
  const EncoderDropouts rates{.attended = config.number("attention_dropout", 0.1),
                              .hidden = config.number("dropout", 0.1)};
  const Modules positions = embedding("position_embeddings", a.max_positions, a.hidden);
  const bool sines = config.flag("sinusoidal_pos_embds", false);
  model.add(below("embeddings",
                  join({embedding("word_embeddings", a.vocabulary, a.hidden), sines ? frozen(positions) : positions,
                        layer_norm("LayerNorm", a.hidden), dropout("dropout", rates.hidden)})));
  model.blocks("transformer.layer", a.layers, distilbert_block(a, rates, function));
  if (head == "ForMaskedLM") add_word_head(config, model, kDistilbertWords, a, a.hidden, function);
  if (is_one_of(head, {"ForSequenceClassification", "ForMultipleChoice"})) {
    model.add_outside(join({linear("pre_classifier", a.hidden, a.hidden, true),
                            activation("pre_classifier.activation", "relu", a.hidden)}));
  }
  if (is_one_of(head, {"ForSequenceClassification", "ForMultipleChoice"})) {
    model.add_outside(dropout("dropout", config.number("seq_classif_dropout", 0.2)));
  }
  if (head == "ForTokenClassification") model.add_outside(dropout("dropout", rates.hidden));
  if (head == "ForQuestionAnswering") model.add_outside(dropout("dropout", config.number("qa_dropout", 0.1)));
  if (head == "ForQuestionAnswering" && config.labels() != 2) {
    config.fail(config.has("num_labels") ? "num_labels" : "id2label",
                fmt::format("expected 2 labels to answer questions, found {}", config.labels()));
  }
  add_linear_head(config, model, a);
}

// ---- ALBERT: all layers of a group are one and the same (modeling_albert.py) ----

constexpr Head kAlbertHeads[] = {
    {"ForMaskedLM", "albert", "predictions", HeadOutput::custom},
    {"ForPreTraining", "albert", "predictions", HeadOutput::custom},
    {"Model", "", "", HeadOutput::none},
    {"ForSequenceClassification", "albert", "classifier", HeadOutput::labels, true},
    {"ForTokenClassification", "albert", "classifier", HeadOutput::labels, true},
    {"ForMultipleChoice", "albert", "classifier", HeadOutput::custom},
    {"ForQuestionAnswering", "albert", "qa_outputs", HeadOutput::labels, true},
};
constexpr Architecture kAlbert{
    .vocabulary = 30000, .hidden = 4096, .intermediate = 16384, .layers = 12, .heads = 64, .max_positions = 512};
constexpr WordHead kAlbertWords{"predictions.dense", "predictions.LayerNorm", "predictions.decoder",
                                "predictions.bias"};

Modules albert_layer(ModelConfig& config, const Architecture& a, const EncoderDropouts& rates,
                     const std::string& function) {
  const Modules parts =
      join({projections(a, ""), distances(config, a), attention("attention", attention_sizes(a, false)),
            linear("dense", a.hidden, a.hidden, true), layer_norm("LayerNorm", a.hidden),
            dropout("attention_dropout", rates.attended), dropout("output_dropout", rates.hidden)});
  return join({layer_norm("full_layer_layer_norm", a.hidden), below("attention", parts),
               plain_mlp("", "ffn", "ffn_output", a.hidden, a.intermediate, function, true)});
}

void albert(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_decoder(config, kAlbert);
  a.block_uses = std::max<std::uint64_t>(a.layers / std::max<std::uint64_t>(config.size("num_hidden_groups", 1), 1), 1);
  const std::uint64_t width = config.size("embedding_size", 128);
  const std::string function = config.text("hidden_act", "gelu_new");
  const std::string_view head = config.head().suffix;
  const EncoderDropouts rates = read_encoder_dropouts(config, 0);
  model.describe(a);
  model.add(join({word_embeddings(config, a, width, rates),
                  linear("encoder.embedding_hidden_mapping_in", width, a.hidden, true)}));
  const std::uint64_t inner = config.listed("inner_group_num", 1);
  model.blocks("encoder.albert_layer_groups", config.size("num_hidden_groups", 1),
               repeated("albert_layers", inner, albert_layer(config, a, rates, function)));
  if (!is_one_of(head, {"ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"})) {
    model.add(pooler("pooler", "tanh", a.hidden));
  }
  if (is_one_of(head, {"ForMaskedLM", "ForPreTraining"})) {
    add_word_head(config, model, kAlbertWords, a, width, function);
  }
  if (head == "ForPreTraining") {
    model.add_outside(linear("sop_classifier.classifier", a.hidden, config.labels(), true));
  }
  if (is_one_of(head, {"ForPreTraining", "ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice"})) {
    model.add_outside(dropout("dropout", config.number("classifier_dropout_prob", 0.1)));
  }
  add_linear_head(config, model, a);
}

}  // namespace

std::span<const Family> bert_families() {
  static const Family families[] = {
      {"bert", "Bert", kBertHeads, {}, bert},
      {"roberta", "Roberta", kRobertaHeads, {}, roberta},
      {"xlm-roberta", "XLMRoberta", kRobertaHeads, {}, xlm_roberta},
      {"electra", "Electra", kElectraHeads, {}, electra},
      {"distilbert", "DistilBert", kDistilbertHeads, kDistilbertAliases, distilbert},
      {"albert", "Albert", kAlbertHeads, {}, albert},
  };
  return families;
}

}  // namespace shardplan
