// Phi-3.5-MoE (modeling_phimoe.py of transformers 4.57): Mixtral's blocks behind LayerNorms, with a router that draws its two
// experts at random.
#include <fmt/format.h>

#include <array>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_experts.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// Each layer has its copies of the rows that its positions name (apply_rotary_pos_emb).
RotaryTables rows_of(const RotaryTables& tables) {
  return {copied(tables.cos, tables.cos.shape()), copied(tables.sin, tables.sin.shape())};
}

Value phimoe_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = sizes_of(block);
  if (sizes.window != 0 && sizes.window <= context.tokens()) {
    throw NotModelled(fmt::format("sliding_window {} in a text of {} tokens", sizes.window, context.tokens()));
  }
  Heads heads = project(block, hidden);
  split(heads, sizes);
  rotate(heads.q, heads.k, rows_of(context.shared.tables));
  const double dropped = dropout_rate(block, "self_attn.dropout");
  const Value mixed = attend_repeated(context, sizes, heads, {.mask = context.shared.mask, .dropout = dropped});
  return linear(mixed, block["self_attn.o_proj"]);
}

// Which experts are too far behind the best of the candidates to be drawn.
Value far_behind(const Value& scores) {
  Tape& tape = scores.tape();
  const Value factor = tape.allocate("clamp", scores.shape(), scores.dtype());
  const Value distance = tape.allocate("div", scores.shape(), scores.dtype());
  return tape.allocate("gt", scores.shape(), DType::boolean);
}

// MultiplierProcessor: multiplier times a number, whose gradient goes to the scores alone.
Value multiplied(const Value& scores, const Value& multiplier, const Value& expert, const Value& gates) {
  const std::array inputs{scores, multiplier};
  Value output = multiplier.tape().allocate("mul", multiplier.shape(), multiplier.dtype());
  return scores.tape().record("sparse mixer", inputs, std::move(output), {multiplier, expert, gates},
                              [meta = meta_of(scores)](Tape& tape, std::span<const Value>, std::vector<Value>&) {
                                std::vector<Value> gradients(2);
                                gradients[0] = fresh(tape, "sparse mixer backward", meta);
                                return gradients;
                              });
}

// One expert of each token, drawn from those that are near the best.
Choice drawn(const Value& scores, const Value& candidates) {
  Tape& tape = scores.tape();
  const Value far = far_behind(scores);
  const Value near = where(far, candidates);
  const Value expert = tape.allocate("max", {scores.size(0), 1}, DType::i64);
  const Value gates = softmax(near);
  return {multiplied(scores, gather(gates, expert), expert, gates), expert};
}

// sparsemixer: the second expert is drawn from all but the first.
Choice sparse_mixer(const Routing& routing, const Value& scores, DType) {
  if (routing.chosen != 2) throw NotModelled("num_experts_per_tok other than 2, which its class ignores,");
  const Choice first = drawn(scores, scores);
  const Value others = simple("scatter", scores, like("scatter", scores), {first.experts});
  const Choice second = drawn(scores, others);
  const Shape both{scores.size(0), routing.chosen};
  return {cat(std::array{first.weights, second.weights}, both), cat(std::array{first.experts, second.experts}, both)};
}

Value phimoe_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_of(context, block, input, layer_norm, phimoe_attention, [&](const UnitView& unit, const Value& x) {
    return mixture(context, unit, kMixtralNames, x, {.choose = sparse_mixer});
  });
}

Value phimoe(ForwardContext& context) {
  return causal_lm(context, {.block = phimoe_block, .norm = layer_norm, .older_mask = true});
}

}  // namespace

std::span<const HfFamily> hf_phimoe_families() {
  static constexpr HfFamily families[] = {{"phimoe", phimoe}};
  return families;
}

}  // namespace shardplan::autograd
