// Mixtures of experts in the manner of Llama (modeling_mixtral.py, modeling_qwen2_moe.py, modeling_qwen3_moe.py,
// modeling_olmoe.py, modeling_gpt_oss.py of transformers 4.57).
#include <array>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_experts.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// ---- Mixtral, Qwen, OLMoE: a module for each expert ----

// Experts, or the MLP that some of Qwen's layers have.
Value experts_or_mlp(ForwardContext& context, const UnitView& block, const Value& x) {
  if (block.has("mlp.up_proj")) return gated_mlp(block, "mlp", x);
  return mixture(context, block, block.has("mlp.gate") ? kQwenNames : kMixtralNames, x);
}

Value all_experts(ForwardContext& context, const UnitView& block, const Value& x) {
  return mixture(context, block, kQwenNames, x, {.all_run = true});
}

Value qwen2_moe_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads = project(block, hidden);
  split(heads, sizes_of(block));
  rotate(heads.q, heads.k, context.shared.tables);
  return attended_repeated(context, block, heads);
}

// Norms on all queries and all keys at once.
Value olmoe_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads;
  heads.q = rms_norm(block["self_attn.q_norm"], linear(hidden, block["self_attn.q_proj"]));
  heads.k = rms_norm(block["self_attn.k_norm"], linear(hidden, block["self_attn.k_proj"]));
  heads.v = linear(hidden, block["self_attn.v_proj"]);
  clip(heads, block);
  split(heads, sizes_of(block));
  rotate(heads.q, heads.k, context.shared.tables);
  return attended_repeated(context, block, heads);
}

template <auto Attention, auto Mlp, Norm norm = rms_norm>
Value experts_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_of(context, block, input, norm, Attention,
                  [&](const UnitView& unit, const Value& x) { return Mlp(context, unit, x); });
}

Value mixtral(ForwardContext& context) {
  return causal_lm(context, {.block = experts_block<llama_attention, experts_or_mlp>});
}

Value qwen2_moe(ForwardContext& context) {
  return causal_lm(context, {.block = experts_block<qwen2_moe_attention, experts_or_mlp>, .older_mask = true});
}

Value qwen3_moe(ForwardContext& context) {
  return causal_lm(context, {.block = experts_block<qwen3_attention, experts_or_mlp>});
}

Value olmoe(ForwardContext& context) {
  return causal_lm(context, {.block = experts_block<olmoe_attention, all_experts>, .older_mask = true});
}

// ---- gpt-oss: all experts in one tensor, a learned sink beside the scores; attention is always eager ----

// _apply_rotary_emb: both halves by tables of half the features.
Value rotate_halves(const Value& x, const RotaryTables& tables) {
  const std::uint64_t half = x.size(-1) / 2;
  const std::vector<Value> halves = split(x, std::array{half, half});
  const Value first = sub(mul(halves[0], tables.cos), mul(halves[1], tables.sin));
  const Value second = add(mul(halves[1], tables.cos), mul(halves[0], tables.sin));
  return cat(std::array{first, second}, x.shape());
}

// eager_attention_forward: one more score in each row, of nothing, all in the model's dtype.
Value attention_with_sinks(const Heads& heads, const Value& sinks, const Value& mask, double dropped) {
  const auto& [q, key, value] = heads;
  const std::uint64_t times = q.size(1) / key.size(1);
  const Value k = repeat_kv(key, times);
  const Value v = repeat_kv(value, times);
  const Shape pairs{q.size(0), q.size(1), q.size(2), k.size(2)};
  Value weights = scale(batched_matmul(q, k, pairs));
  if (mask.defined()) weights = add(weights, mask);
  Shape wider = pairs;
  ++wider.back();
  Value combined = cat(std::array{weights, expand(sinks, {pairs[0], pairs[1], pairs[2], 1})}, wider);
  combined = sub(combined, largest(combined));
  const Value probabilities = softmax(combined);
  weights = dropout(slice(probabilities, pairs), dropped);
  const Value mixed = batched_matmul(weights, v, {pairs[0], pairs[1], pairs[2], v.size(-1)});
  return contiguous(transpose(mixed));
}

Value gpt_oss_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads = project_heads(block, hidden);
  const Value q = rotate_halves(heads.q, context.shared.tables);
  heads.k = rotate_halves(heads.k, context.shared.tables);
  heads.q = q;
  cache(context, heads.k, heads.v);
  const Value& mask = mask_of(context, block, sizes_of(block));
  const Value mixed =
      attention_with_sinks(heads, block.tensor("self_attn.sinks"), mask, dropout_rate(block, "self_attn.dropout"));
  return linear(view(mixed, {hidden.size(0), hidden.size(1), mixed.size(2) * mixed.size(3)}),
                block["self_attn.o_proj"]);
}

// A token's score for each expert: 0 for those that it did not choose (GptOssTopKRouter).
Value router_scores(const UnitView& block, const Value& x, std::uint64_t chosen) {
  const Value logits = linear(x, block["mlp.router"]);
  const auto [values, indices] = topk(logits, chosen);
  return scattered(softmax(values), indices, logits.shape());
}

// One expert's matrix of all; the gradient of a part is as large as the whole.
Value layer_of_expert(const Value& x, const Value& weights, const Value& biases) {
  const Shape matrix{weights.size(1), weights.size(2)};
  const Value product = matmul(x, slice(weights, matrix), {x.size(0), matrix[1]});
  return add(product, slice(biases, {matrix[1]}));
}

// down((clamp(up) + 1) * clamp(gate) * sigmoid(1.702 * clamp(gate))): gate and up alternate (GptOssExperts).
Value gpt_oss_expert(const UnitView& block, const Value& x, Value& up) {
  const Value both =
      layer_of_expert(x, block.tensor("mlp.experts.gate_up_proj"), block.tensor("mlp.experts.gate_up_proj_bias"));
  const Shape half{both.size(0), both.size(1) / 2};
  const Value gate = clamp(slice(both, half).laid_out(Layout::with_gaps), 1);
  up = clamp(slice(both, half).laid_out(Layout::with_gaps), 2);
  const Value glu = mul(gate, unary_of_output("sigmoid", scale(gate)));
  const Value product = mul(shift(up), glu);
  return layer_of_expert(product, block.tensor("mlp.experts.down_proj"), block.tensor("mlp.experts.down_proj_bias"));
}

Value gpt_oss_mlp(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Tape& tape = hidden.tape();
  const Routing& routing = *block.module("mlp.experts.gate_up_proj").routing;
  const std::uint64_t tokens = hidden.size(0) * hidden.size(1);
  const Value x = view(hidden, {tokens, hidden.size(2)});
  const Value scores = router_scores(block, x, routing.chosen);
  keep_for_balance(context, routing, scores);
  Value sum = tape.allocate("zeros", x.shape(), x.dtype());
  const Value mask = tape.allocate("one_hot", {tokens, routing.chosen, routing.experts + 1}, DType::i64);
  Value up;  // a name of the loop: the last expert's lives until the next has one
  for (std::uint64_t i = 0; i < routing.experts; ++i) {
    const std::uint64_t count = choices_of(context, i, routing, tokens);
    if (count == 0) continue;
    const Value chosen = chosen_by(tape, count);
    const Value output = gpt_oss_expert(block, index_rows(x, chosen, count), up);
    const Value weight = index_at(slice(scores, {tokens, 1}), chosen, {count, 1});
    sum = index_add(sum, chosen, mul(output, weight));
  }
  return view(sum, hidden.shape());
}

Value gpt_oss(ForwardContext& context) {
  context.always_eager = true;
  return causal_lm(context, {.block = experts_block<gpt_oss_attention, gpt_oss_mlp, rms_norm_in_fp32>,
                             .norm = rms_norm_in_fp32,
                             .rotation = Rotation::halves,
                             .masks = Masks::both});
}

}  // namespace

std::span<const HfFamily> hf_mixtral_families() {
  static constexpr HfFamily families[] = {
      {"mixtral", mixtral}, {"qwen2_moe", qwen2_moe}, {"qwen3_moe", qwen3_moe}, {"olmoe", olmoe}, {"gpt_oss", gpt_oss}};
  return families;
}

}  // namespace shardplan::autograd
