// BERT and its kin (modeling_bert.py, modeling_roberta.py, modeling_electra.py, modeling_distilbert.py, modeling_albert.py
// of transformers 4.57): encoders with LayerNorm behind each part.
#include "planner/activations/hf/hf_bert.h"

#include <fmt/format.h>

#include <array>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// ---- Parts ----

Value self_attention(ForwardContext& context, const UnitView& block, const Value& hidden, const std::string& prefix,
                     std::string_view dropped = "dropout") {
  const std::uint64_t heads = block.module(prefix + "attention").attention->heads;
  const Value q = split_heads(linear(hidden, block[prefix + "query"]), heads);
  const Value k = split_heads(linear(hidden, block[prefix + "key"]), heads);
  const Value v = split_heads(linear(hidden, block[prefix + "value"]), heads);
  if (block.has(prefix + "distance_embedding")) throw NotModelled("relative positions");
  const double rate = dropout_rate(block, prefix + std::string(dropped));
  if (context.attention() == AttentionKind::eager) {
    return eager_attention(context, q, k, v, {.mask = context.shared.mask, .dropout = rate});
  }
  return attend(context, q, k, v, {.mask = context.shared.mask, .dropout = rate, .causal = false});
}

Value bert_block(ForwardContext& context, const UnitView& block, const Value& input) {
  if (block.has("crossattention.self.query")) throw NotModelled("cross attention");
  const auto attention = [&] {
    const Value mixed = self_attention(context, block, input, "attention.self.");
    return output_part(block, "attention.output.", mixed, input);
  };
  const Value attended = attention();
  const Value inner =
      activate(linear(attended, block["intermediate.dense"]), block, "intermediate.intermediate_act_fn");
  return output_part(block, "output.", inner, attended);
}

// The mask of a model that sees all tokens (get_extended_attention_mask, _prepare_4d_attention_mask_for_sdpa): eager
// attention always adds one, of keys; sdpa takes one of all pairs where tokens are padding.
Value make_encoder_mask(ForwardContext& context) {
  Tape& tape = context.tape;
  const DType dtype = context.setup.policy.parameter;
  const std::uint64_t s = context.tokens();
  if (context.attention() == AttentionKind::eager) {
    const Shape keys{context.batch(), 1, 1, s};
    const Value cast = tape.allocate("to", keys, dtype);
    const Value inverted = tape.allocate("rsub", keys, dtype);
    return tape.allocate("mul", keys, dtype);
  }
  return context.client.mask == MaskKind::padded ? padding_of_pairs(context) : Value();
}

// Positions that follow from which tokens are padding (create_position_ids_from_input_ids).
Value positions_of_tokens(ForwardContext& context) {
  Tape& tape = context.tape;
  const Shape tokens{context.batch(), context.tokens()};
  const Value mask = tape.allocate("to", tokens, DType::i32);
  const Value summed = tape.allocate("cumsum", tokens, DType::i64);
  const Value counted = tape.allocate("mul", tokens, DType::i64);
  return tape.allocate("add", tokens, DType::i64);
}

struct EncoderKind {
  bool positions_of_tokens = false;
  bool makes_mask = true;                                            // of ones, where the batch has none
  Value (*blocks)(ForwardContext& context, Value hidden) = nullptr;  // where each is not run once, in order
};

Value embeddings(ForwardContext& context, const UnitView& unit, const std::string& base, const EncoderKind& kind) {
  Tape& tape = context.tape;
  const Shape tokens{context.batch(), context.tokens()};
  const auto table = [&](std::string_view name) { return unit[fmt::format("{}embeddings.{}", base, name)]; };
  Value places;
  if (kind.positions_of_tokens) {
    places = positions_of_tokens(context);
  } else {
    places = tape.outside({1, context.tokens()}, DType::i64);  // a buffer
  }
  const Value words =
      embedding_output(context, embedding(tape.outside(tokens, DType::i64), table("word_embeddings").weight));
  Value sum;
  if (unit.has(base + "embeddings.token_type_embeddings")) {
    const Value types = embedding(tape.outside(tokens, DType::i64), table("token_type_embeddings").weight);
    sum = add(words, types);
    const Value positions = embedding(places, table("position_embeddings").weight);
    sum = add_in_place(sum, positions);
  } else {
    const Value positions = embedding(places, table("position_embeddings").weight);
    sum = add(words, positions);
  }
  sum = layer_norm(table("LayerNorm"), sum);
  return dropout(sum, dropout_rate(context, base + "embeddings.dropout"));
}

// ---- Heads ----

struct WordHead {
  std::string_view dense;
  std::string_view norm;
  std::string_view decoder;
};

constexpr std::array<WordHead, 5> kWordHeads{
    {{"cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"},
     {"lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"},
     {"generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head"},
     {"vocab_transform", "vocab_layer_norm", "vocab_projector"},
     {"predictions.dense", "predictions.LayerNorm", "predictions.decoder"}}};

Value word_logits(const UnitView& unit, const WordHead& head, const Value& hidden) {
  Value x = linear(hidden, unit[head.dense]);
  x = activate(x, unit, fmt::format("{}.activation", head.dense));
  x = layer_norm(unit[head.norm], x);
  return linear(x, unit[head.decoder]);
}

// ---- The model around the blocks ----

Value encoder(ForwardContext& context, BlockForward block, const EncoderKind& kind) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "embeddings.word_embeddings");
  const UnitView unit = required_unit(context, base + "embeddings.word_embeddings");
  Value embedded = embeddings(context, unit, base, kind);
  Value ones;
  if (context.client.mask == MaskKind::none) {
    ones = tape.allocate("ones", {context.batch(), context.tokens()}, DType::f32);
  }
  context.shared.mask = make_encoder_mask(context);
  context.returns_probabilities = true;
  for (const char* name : {"embeddings_project", "encoder.embedding_hidden_mapping_in"}) {
    const auto projection = unit_with(context, base + name);
    if (projection) embedded = linear(embedded, (*projection)[base + name]);
  }
  Value hidden = kind.blocks != nullptr ? kind.blocks(context, embedded) : run_blocks(context, block, embedded);
  context.shared.mask.reset();
  return hidden;
}

Value bert(ForwardContext& context, BlockForward block) {
  return encoder_loss(context, encoder(context, block, {}));
}

Value roberta(ForwardContext& context, BlockForward block) {
  return encoder_loss(context, encoder(context, block, {.positions_of_tokens = true}));
}

// ---- DistilBERT ----

Value distilbert_attention(ForwardContext& context, const UnitView& block, const Value& input) {
  Tape& tape = context.tape;
  const std::uint64_t heads = block.module("attention.attention").attention->heads;
  Value q = split_heads(linear(input, block["attention.q_lin"]), heads);
  const Value k = split_heads(linear(input, block["attention.k_lin"]), heads);
  const Value v = split_heads(linear(input, block["attention.v_lin"]), heads);
  if (context.attention() != AttentionKind::eager) {
    const double rate = dropout_rate(block, "attention.dropout");
    const Value mixed = attend(context, q, k, v, {.mask = context.shared.mask, .dropout = rate, .causal = false});
    return linear(mixed, block["attention.out_lin"]);
  }
  q = scale(q);
  Value scores = batched_matmul(q, k, {q.size(0), q.size(1), q.size(2), k.size(2)});
  const Value hidden = tape.allocate("eq", {context.batch(), context.tokens()}, DType::boolean);
  scores = where(hidden, scores);
  Value weights = softmax(scores);
  weights = dropout(weights, block, "attention.dropout");
  const Value mixed = contiguous(transpose(batched_matmul(weights, v, q.shape())));
  return linear(view(mixed, input.shape()), block["attention.out_lin"]);
}

Value distilbert_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value attended = distilbert_attention(context, block, input);
  attended = layer_norm(block["sa_layer_norm"], add(attended, input));
  Value inner = activate(linear(attended, block["ffn.lin1"]), block, "ffn.act");
  inner = dropout(linear(inner, block["ffn.lin2"]), block, "ffn.dropout");
  return layer_norm(block["output_layer_norm"], add(inner, attended));
}

// ---- ALBERT ----

Value albert_layer(ForwardContext& context, const UnitView& block, const std::string& name, const Value& input) {
  const auto attention = [&] {
    const Value mixed = self_attention(context, block, input, name + "attention.", "attention_dropout");
    Value hidden = linear(mixed, block[name + "attention.dense"]);
    hidden = dropout(hidden, block, name + "attention.output_dropout");
    return layer_norm(block[name + "attention.LayerNorm"], add(input, hidden));
  };
  const Value attended = attention();
  const Value output = [&] {
    const Value inner = activate(linear(attended, block[name + "ffn"]), block, name + "act");
    return linear(inner, block[name + "ffn_output"]);
  }();
  return layer_norm(block[name + "full_layer_layer_norm"], add(output, attended));
}

// A group of layers.
Value albert_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value hidden = input;
  for (std::uint64_t i = 0; block.has(fmt::format("albert_layers.{}.ffn", i)); ++i) {
    hidden = albert_layer(context, block, fmt::format("albert_layers.{}.", i), hidden);
  }
  return hidden;
}

// The one group that all layers are.
Value albert_layers(ForwardContext& context, Value hidden) {
  const std::string stack = prefix_of(context, "embeddings.word_embeddings") + "encoder.albert_layer_groups";
  if (first_blocks(context, stack).count > 1) throw NotModelled("several groups of layers");
  if (context.client.recompute != RecomputeKind::none) throw NotModelled("recomputation");
  for (std::uint64_t i = 0; i < context.model.architecture.layers; ++i) {
    hidden = run_blocks(context, albert_block, std::move(hidden), stack);
  }
  return hidden;
}

}  // namespace

Value output_part(const UnitView& block, const std::string& prefix, const Value& x, const Value& input) {
  Value hidden = linear(x, block[prefix + "dense"]);
  hidden = dropout(hidden, block, prefix + "dropout");
  return layer_norm(block[prefix + "LayerNorm"], add(hidden, input));
}

namespace {

// RobertaClassificationHead, ElectraClassificationHead
Value head_of_first_token(const UnitView& unit, const Value& hidden) {
  Value features = dropout(first_token(hidden), unit, "classifier.dropout");
  features = activate(linear(features, unit["classifier.dense"]), unit, "classifier.activation");
  return linear(dropout(features, unit, "classifier.dropout"), unit["classifier.out_proj"]);
}

// What a pooler makes of the first token; `hidden` itself where there is none.
Value pooled(const ForwardContext& context, const UnitView& unit, const Value& hidden) {
  const std::string base = unit.has("pooler.dense") ? "" : prefix_of(context, "embeddings.word_embeddings");
  const std::string pooler = base + (unit.has(base + "pooler") ? "pooler" : "pooler.dense");  // the first is ALBERT's
  if (!unit.has(pooler)) return hidden;
  const Value features = linear(dropout(first_token(hidden), unit, base + "pooler.dropout"), unit[pooler]);
  return activate(features, unit, base + "pooler.activation");
}

// Whether each token that the batch's mask leaves is the text's own, by BCEWithLogitsLoss of labels in fp32 (ElectraForPreTraining).
Value discriminator_loss(ForwardContext& context, const UnitView& unit, const std::string& name, const Value& hidden) {
  Tape& tape = context.tape;
  const Value features = activate(linear(hidden, unit[name + ".dense"]), unit, name + ".activation");
  Value logits = linear(features, unit[name + ".dense_prediction"]);
  logits = view(logits, {logits.size(0), logits.size(1)});
  if (context.client.mask != MaskKind::none) {
    logits = index_at(logits, tape.allocate("eq", logits.shape(), DType::boolean), {logits.elements()});
  }
  const Value labels = tape.allocate("to", logits.shape(), DType::f32);
  return tape.record("binary_cross_entropy_with_logits", std::span(&logits, 1), tape.allocate("loss", {}, DType::f32),
                     {logits, labels}, [meta = meta_of(logits)](Tape& t, std::span<const Value>, std::vector<Value>&) {
                       std::vector<Value> gradients;
                       gradients.push_back(fresh(t, "binary_cross_entropy_with_logits backward", meta));
                       return gradients;
                     });
}

// Of words, and of whether two texts follow one another (BertForPreTraining, AlbertForPreTraining).
Value pretraining_loss(ForwardContext& context, const UnitView& unit, const WordHead& words, std::string_view pair,
                       const Value& hidden) {
  const Value first = pooled(context, unit, hidden);
  const Value logits = word_logits(unit, words, hidden);
  const Value order = linear(dropout(first, dropout_rate(context, "dropout")), unit[pair]);
  const Value of_words = token_loss(logits);
  return add(of_words, token_loss(order));
}

// The loss of the head that the model has.
Value loss_of_head(ForwardContext& context, const Value& hidden) {
  for (const WordHead& head : kWordHeads) {
    const auto unit = unit_with(context, head.decoder);
    if (!unit) continue;
    for (const char* pair : {"cls.seq_relationship", "sop_classifier.classifier"}) {
      if (unit->has(pair)) return pretraining_loss(context, *unit, head, pair, hidden);
    }
    return token_loss(word_logits(*unit, head, hidden));
  }
  if (const auto unit = unit_with(context, "classifier.out_proj")) {
    return token_loss(head_of_first_token(*unit, hidden));
  }
  if (const auto unit = unit_with(context, "discriminator_predictions.dense")) {
    return discriminator_loss(context, *unit, "discriminator_predictions", hidden);
  }
  const UnitView unit = required_unit(context, "classifier");
  Value features = pooled(context, unit, hidden);
  if (unit.has("pre_classifier")) {
    features = activate(linear(first_token(hidden), unit["pre_classifier"]), unit, "pre_classifier.activation");
  }
  features = dropout(features, dropout_rate(context, "dropout"));
  return token_loss(linear(features, unit["classifier"]));
}

}  // namespace

Value encoder_loss(ForwardContext& context, const Value& hidden) {
  if (prefix_of(context, "embeddings.word_embeddings").empty()) {  // no head
    pool_aside(context, hidden);
    return total(hidden);
  }
  const Purpose before = context.tape.set_purpose(Purpose::loss);
  Value loss = loss_of_head(context, hidden);
  context.tape.set_purpose(before);
  return loss;
}

std::span<const HfFamily> hf_bert_families() {
  static constexpr HfFamily families[] = {
      {"bert", [](ForwardContext& context) { return bert(context, bert_block); }},
      {"roberta", [](ForwardContext& context) { return roberta(context, bert_block); }},
      {"xlm-roberta", [](ForwardContext& context) { return roberta(context, bert_block); }},
      {"electra", [](ForwardContext& context) { return bert(context, bert_block); }},
      {"distilbert", [](ForwardContext& context) { return bert(context, distilbert_block); }},
      {"albert", [](ForwardContext& context) {
         return encoder_loss(context, encoder(context, albert_block, {.blocks = albert_layers}));
       }}};
  return families;
}

}  // namespace shardplan::autograd
