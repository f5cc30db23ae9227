// What BERT and its kin share (bert.cpp, deberta.cpp): encoders with LayerNorm behind each part and biases everywhere,
// and heads of more than one module. Names are those of transformers' modeling_bert.py.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "planner/families/family.h"
#include "planner/families/model.h"
#include "planner/families/model_config.h"

namespace shardplan {

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words);

// Rates of dropout: of the attention's probabilities, and of what the embedding and each part of a block give.
struct EncoderDropouts {
  double attended = 0;
  double hidden = 0;
};
// From hidden_dropout_prob and attention_probs_dropout_prob.
EncoderDropouts read_encoder_dropouts(const ModelConfig& config, double class_default);

// self.query, self.key, self.value (each with `suffix`), `positions`, self-attention, the projection from the heads and
// its norm. `positions` is what the attention has for them.
Modules attention_part(std::string_view name, const Architecture& architecture, const EncoderDropouts& rates,
                       const Modules& positions, std::string_view suffix);

// intermediate.dense, the function, output.dense and its norm.
Modules feed_forward_part(const Architecture& architecture, const EncoderDropouts& rates, const std::string& function);

// A dense layer for the first token.
Modules pooler(const std::string& dense, const std::string& function, std::uint64_t hidden);

// What predicts words: a dense layer, a norm, and a decoder with the weight of the word embedding where they are tied.
struct WordHead {
  std::string_view dense;
  std::string_view norm;
  std::string_view decoder;
  std::string_view bias;  // the parameter that is the decoder's bias too; empty where it has its own
};
inline constexpr WordHead kBertWords{"cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
                                     "cls.predictions.decoder", "cls.predictions.bias"};

// `width`: the features of a word's embedding, embeddings.word_embeddings.
void add_word_head(ModelConfig& config, ModelBuilder& model, const WordHead& head, const Architecture& architecture,
                   std::uint64_t width, const std::string& function);

// The last linear module of the file's architecture, if that is no word head. Multiple choice has one output.
void add_linear_head(const ModelConfig& config, ModelBuilder& model, const Architecture& architecture);

}  // namespace shardplan
