// DeBERTa 2 and 3 (modeling_deberta_v2.py of transformers 4.57): scores of contents, and of contents with the distances between
// tokens, which one table for all layers has. Its attention is eager in every profile.
#include <fmt/format.h>

#include <array>
#include <string>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_bert.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// transpose_for_scores: [b, s, h x d] to [b x h, s, d].
Value rows_of_heads(const Value& x, std::uint64_t heads) {
  const Value split = split_heads(x, heads);
  const Value apart = split.layout() == Layout::in_order ? split : contiguous(split);
  return view(apart, {x.size(0) * heads, x.size(1), x.size(2) / heads});
}

Value projected(const UnitView& block, const std::string& name, const Value& x, std::uint64_t heads) {
  return rows_of_heads(linear(x, block[name]), heads);
}

// A projection of all distances, for each sample: [b x h, n, d].
Value projected_distances(const UnitView& block, const std::string& name, const Value& table, std::uint64_t heads,
                          std::uint64_t rows) {
  const Value one = projected(block, name, table, heads);
  return copied(one, {rows, one.size(1), one.size(2)});
}

// x y^T of all rows: `y` [rows, n, d].
Value products(const Value& x, const Value& y) {
  return matmul(x, view(y, {y.size(0), y.size(2), y.size(1)}), {x.size(0), x.size(1), y.size(1)});
}

// Of products with all distances, those of each pair of tokens.
Value of_pairs(const Value& all, const Value& distances) {
  const std::uint64_t tokens = all.size(1);
  const Value places = [&] {
    const Value sum = all.tape().allocate("add", distances.shape(), DType::i64);
    return all.tape().allocate("clamp", distances.shape(), DType::i64);
  }();
  return gather(all, places.viewed({all.size(0), tokens, tokens}));
}

// disentangled_attention_bias: content with position, and position with content.
Value scores_of_distances(ForwardContext& context, const UnitView& block, const Value& q, const Value& k) {
  const std::string self = "attention.self.";
  const std::uint64_t heads = block.module(self + "attention").attention->heads;
  const std::string& kinds = block.module(self + "residual").function;
  const bool of_content = kinds.find("c2p") != std::string::npos;
  const bool of_position = kinds.find("p2c") != std::string::npos;
  if (!of_content && !of_position) throw NotModelled("relative attention without c2p and p2c");
  const bool own = block.has(self + "pos_key_proj") || block.has(self + "pos_query_proj");
  const Value rate_applied = dropout(context.shared.bias, block, self + "pos_dropout");
  const Value table = unsqueezed(rate_applied, {1, rate_applied.size(0), rate_applied.size(1)});
  const auto distances = [&](const char* owned, const char* shared) {
    return projected_distances(block, self + (own ? owned : shared), table, heads, q.size(0));
  };
  Value queries;
  if (!own || of_position) queries = distances("pos_query_proj", "query_proj");
  Value keys;
  if (!own || of_content) keys = distances("pos_key_proj", "key_proj");
  Value score;
  Value content;  // variables that hold it until all is done
  Value position;
  if (of_content) {
    content = [&] { return of_pairs(products(q, keys), context.shared.distances); }();
    score = shift(scale(content));  // score = 0; score += ...
  }
  if (of_position) {
    position = [&] { return of_pairs(products(k, queries), context.shared.distances); }();
    const Value more = scale(position);
    score = score.defined() ? add_in_place(score, more) : shift(more);
  }
  return score;
}

// DisentangledSelfAttention
Value self_attention(ForwardContext& context, const UnitView& block, const Value& x) {
  Tape& tape = context.tape;
  const std::string self = "attention.self.";
  const std::uint64_t heads = block.module(self + "attention").attention->heads;
  const Value mixed = [&] {
    const Value q = projected(block, self + "query_proj", x, heads);
    const Value k = projected(block, self + "key_proj", x, heads);
    const Value v = projected(block, self + "value_proj", x, heads);
    const std::uint64_t tokens = q.size(1);
    Value scores = [&] { return products(q, scale(k)); }();
    if (context.shared.bias.defined()) {
      const Value more = scores_of_distances(context, block, q, k);
      scores = add(scores, more);
    }
    scores = view(scores, {x.size(0), heads, tokens, tokens});
    const Value seen = tape.allocate("to", {x.size(0), 1, tokens, tokens}, DType::boolean);
    scores = where(tape.allocate("bitwise_not", seen.shape(), DType::boolean), scores);
    const Value probabilities = dropout(softmax(scores), block, self + "dropout");
    const Value rows = matmul(view(probabilities, {q.size(0), tokens, tokens}), v, q.shape());
    const Value apart = transpose(view(rows, {x.size(0), heads, tokens, q.size(2)}));
    return view(apart.layout() == Layout::in_order ? apart : contiguous(apart), x.shape());
  }();
  return mixed;
}

Value deberta_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const Value attended = [&] {
    const Value mixed = self_attention(context, block, input);
    return output_part(block, "attention.output.", mixed, input);
  }();
  const Value inner =
      activate(linear(attended, block["intermediate.dense"]), block, "intermediate.intermediate_act_fn");
  return output_part(block, "output.", inner, attended);
}

// `mask`: of the batch, or one of ones, in fp32.
Value embeddings(ForwardContext& context, const std::string& base, const Value& mask) {
  Tape& tape = context.tape;
  const Shape tokens{context.batch(), context.tokens()};
  const std::string name = base + "embeddings.";
  const UnitView unit = required_unit(context, name + "word_embeddings");
  const auto table = [&](const char* which, const Value& ids) { return embedding(ids, unit[name + which].weight); };
  Value sum = table("word_embeddings", tape.outside(tokens, DType::i64));
  const auto plus = [&](const char* which, const Value& ids) {
    if (!unit.has(name + which)) return;
    const Value more = table(which, ids);
    sum = add(sum, more);
  };
  plus("position_embeddings", tape.outside({1, context.tokens()}, DType::i64));
  const Value types = tape.allocate("zeros", tokens, DType::i64);
  plus("token_type_embeddings", types);
  if (unit.has(name + "embed_proj")) sum = linear(sum, unit[name + "embed_proj"]);
  sum = layer_norm(unit[name + "LayerNorm"], sum);
  const Value wide = mask.dtype() == sum.dtype() ? mask : tape.allocate("to", tokens, sum.dtype());
  sum = mul(sum, wide.viewed({tokens[0], tokens[1], 1}));
  return dropout(sum, dropout_rate(context, name + "dropout"));
}

// The table of distances, with a norm of its own if the model has one; undefined where attention knows no distances.
Value table_of_distances(ForwardContext& context, const std::string& base) {
  const std::string name = base + "encoder.rel_embeddings";
  const auto unit = unit_with(context, name);
  if (!unit) return {};
  const Value table = (*unit)[name].weight;
  const std::string norm = base + "encoder.LayerNorm";
  const auto of_norm = unit_with(context, norm);
  return of_norm ? layer_norm((*of_norm)[norm], table) : table;
}

// Of the last features of all tokens, behind the blocks.
Value deberta_encoder(ForwardContext& context, const std::string& base) {
  Tape& tape = context.tape;
  if (has_module(context, base + "encoder.conv.conv")) throw NotModelled("a convolution beside the first layer");
  const bool given = context.client.mask != MaskKind::none;
  const Shape tokens{context.batch(), context.tokens()};
  const Value mask = given ? tape.outside(tokens, DType::i64) : tape.allocate("ones", tokens, DType::f32);
  Value hidden = embeddings(context, base, mask);
  context.shared.mask = tape.allocate("mul", {tokens[0], 1, tokens[1], tokens[1]}, mask.dtype());
  context.shared.bias = table_of_distances(context, base);
  if (context.shared.bias.defined()) context.shared.distances = tape.allocate("to", {tokens[1], tokens[1]}, DType::i64);
  hidden = run_blocks(context, deberta_block, std::move(hidden), base + "encoder.layer");
  context.shared = {};
  return hidden;
}

// Without a head what is trained is the sum of the features.
Value deberta(ForwardContext& context) {
  if (has_module(context, "lm_predictions.lm_head.dense")) throw NotModelled("the newer head of words");
  if (has_module(context, "qa_outputs")) throw NotModelled("a head for answers");
  const std::string base = prefix_of(context, "embeddings.word_embeddings");
  const Value hidden = deberta_encoder(context, base);
  const bool has_head = has_module(context, "classifier") || has_module(context, "cls.predictions.decoder");
  return has_head ? encoder_loss(context, hidden) : total(hidden);
}

}  // namespace

std::span<const HfFamily> hf_deberta_families() {
  static constexpr HfFamily families[] = {{"deberta-v2", deberta}};
  return families;
}

}  // namespace shardplan::autograd
