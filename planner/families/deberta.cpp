// DeBERTa 2 and 3: BERT with attention to relative positions, one table of them for all layers (transformers'
// modeling_deberta_v2.py).
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "planner/families/bert.h"
#include "planner/families/decoder.h"

namespace shardplan {
namespace {

// The first is the base model: published files name no architecture.
constexpr Head kDebertaHeads[] = {
    {"Model", "", "", HeadOutput::none},
    {"ForMaskedLM", "deberta", "cls", HeadOutput::custom},
    {"ForSequenceClassification", "deberta", "classifier", HeadOutput::labels, true},
    {"ForTokenClassification", "deberta", "classifier", HeadOutput::labels, true},
    {"ForMultipleChoice", "deberta", "classifier", HeadOutput::custom},
    {"ForQuestionAnswering", "deberta", "qa_outputs", HeadOutput::labels, true},
};
constexpr Architecture kDeberta{
    .vocabulary = 128100, .hidden = 1536, .intermediate = 6144, .layers = 24, .heads = 24, .max_positions = 512};

// "c2p|p2c".
std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (c == '|') words.emplace_back();
    if (c != '|' && c != ' ') words.back() += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return words;
}

// A list of words, or a text with bars between them.
std::vector<std::string> words(const ModelConfig& config, std::string_view attribute) {
  if (!config.has(attribute)) return {};
  return config.is_text(attribute) ? split_words(config.text(attribute, "")) : config.texts(attribute).value();
}

bool contains(const std::vector<std::string>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

Modules deberta_embeddings(ModelConfig& config, const Architecture& a, std::uint64_t width, double dropped) {
  Modules tables = embedding("word_embeddings", a.vocabulary, width);
  if (config.flag("position_biased_input", true)) {
    tables = join({tables, embedding("position_embeddings", a.max_positions, width)});
  }
  if (const std::uint64_t types = config.count("type_vocab_size", 0); types > 0) {
    tables = join({tables, embedding("token_type_embeddings", types, width)});
  }
  if (width != a.hidden) tables = join({tables, linear("embed_proj", width, a.hidden, false)});
  return below("embeddings", join({tables, layer_norm("LayerNorm", a.hidden), dropout("dropout", dropped)}));
}

// Projections of relative positions to keys and queries, where they do not use those of the content.
Modules position_projections(const ModelConfig& config, const Architecture& a) {
  if (!config.flag("relative_attention", false) || config.flag("share_att_key", false)) return {};
  const std::vector<std::string> kinds = words(config, "pos_att_type");
  return join({contains(kinds, "c2p") ? linear("pos_key_proj", a.hidden, a.hidden, true) : Modules{},
               contains(kinds, "p2c") ? linear("pos_query_proj", a.hidden, a.hidden, true) : Modules{}});
}

// Which of "c2p" and "p2c" are added to the scores of contents.
Modules position_scores(const ModelConfig& config) {
  if (!config.flag("relative_attention", false)) return {};
  return below("attention.self", residual(fmt::format("{}", fmt::join(words(config, "pos_att_type"), "|"))));
}

Modules relative_positions(ModelConfig& config, const Architecture& a) {
  Modules modules;
  if (config.flag("relative_attention", false)) {
    std::uint64_t reach = config.count_or_none("position_buckets");
    if (reach == 0) reach = config.count_or_none("max_relative_positions");
    modules = embedding("rel_embeddings", 2 * (reach > 0 ? reach : a.max_positions), a.hidden);
  }
  if (contains(split_words(config.text("norm_rel_ebd", "none")), "layer_norm")) {
    modules = join({modules, layer_norm("LayerNorm", a.hidden)});
  }
  return below("encoder", modules);
}

// Beside the first layer.
Modules convolution_of_tokens(ModelConfig& config, const Architecture& a) {
  const std::uint64_t kernel = config.present("conv_kernel_size") ? config.count("conv_kernel_size", 0) : 0;
  if (kernel == 0) return {};
  const std::uint64_t groups = config.size("conv_groups", 1);
  config.require_divisor("conv_groups", groups, "hidden_size", a.hidden);
  return below("encoder.conv", join({convolution("conv", a.hidden, a.hidden, {kernel}, true, groups),
                                     activation("conv_act", config.text("conv_act", "tanh"), a.hidden),
                                     layer_norm("LayerNorm", a.hidden)}));
}

// The newer head multiplies with the word embedding itself and owns no decoder; where embeddings are tied, its class
// ties the dense layer's weight instead, so that this has the embedding's shape.
void add_newer_word_head(ModelConfig& config, ModelBuilder& model, const Architecture& a, std::uint64_t width,
                         const std::string& function) {
  const Modules dense = config.ties_embeddings(true) ? tied(linear("dense", width, a.vocabulary, true),
                                                            model.whole("embeddings.word_embeddings.weight"))
                                                     : linear("dense", a.hidden, a.hidden, true);
  model.add_outside(below("lm_predictions.lm_head",
                          join({parameter("bias", {a.vocabulary}), dense, activation("activation", function, a.hidden),
                                layer_norm("LayerNorm", a.hidden)})));
}

void add_deberta_head(ModelConfig& config, ModelBuilder& model, const Architecture& a, std::uint64_t width,
                      const std::string& function, const EncoderDropouts& rates) {
  const std::string_view head = config.head().suffix;
  const bool legacy = config.flag("legacy", true);
  if (head == "ForMaskedLM" && legacy) add_word_head(config, model, kBertWords, a, width, function);
  if (head == "ForMaskedLM" && !legacy) add_newer_word_head(config, model, a, width, function);
  if (is_one_of(head, {"ForSequenceClassification", "ForMultipleChoice"})) {
    const std::uint64_t pooled = config.optional_size("pooler_hidden_size").value_or(a.hidden);
    if (pooled != a.hidden) {
      config.fail("pooler_hidden_size", fmt::format("expected hidden_size, {}, found {}", a.hidden, pooled));
    }
    model.add_outside(join({pooler("pooler.dense", config.text("pooler_hidden_act", "gelu"), a.hidden),
                            dropout("pooler.dropout", config.number("pooler_dropout", 0)),
                            dropout("dropout", config.number("cls_dropout", rates.hidden))}));
  }
  if (head == "ForTokenClassification") model.add_outside(dropout("dropout", rates.hidden));
  add_linear_head(config, model, a);
}

void deberta_v2(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(config, kDeberta);
  const std::uint64_t width = config.optional_size("embedding_size").value_or(a.hidden);
  const std::string function = config.text("hidden_act", "gelu");
  const std::uint64_t head_size = config.optional_size("attention_head_size").value_or(a.head_size);
  if (head_size != a.head_size) {
    config.fail("attention_head_size",
                fmt::format("expected {}, hidden_size / num_attention_heads, found {}", a.head_size, head_size));
  }
  const EncoderDropouts rates = read_encoder_dropouts(config, 0.1);
  model.describe(a);
  model.add(deberta_embeddings(config, a, width, rates.hidden));
  model.blocks(
      "encoder.layer", a.layers,
      join({attention_part("attention", a, rates, position_projections(config, a), "_proj"), position_scores(config),
            dropout("attention.self.pos_dropout", rates.hidden), feed_forward_part(a, rates, function)}));
  model.add(dropout("encoder.dropout", rates.hidden));
  model.add(join({relative_positions(config, a), convolution_of_tokens(config, a)}));
  add_deberta_head(config, model, a, width, function, rates);
}

}  // namespace

std::span<const Family> deberta_families() {
  static const Family families[] = {{"deberta-v2", "DebertaV2", kDebertaHeads, {}, deberta_v2}};
  return families;
}

}  // namespace shardplan
