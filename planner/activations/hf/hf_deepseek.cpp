// DeepSeek and its kin (modeling_deepseek_v2.py, modeling_deepseek_v3.py of transformers 4.57): queries, keys and values from
// narrow projections, and experts beside shared ones.
#include "planner/activations/hf/hf_deepseek.h"

#include <array>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_experts.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// ---- Multi-head latent attention ----

// Neighbours that are pairs are brought to halves first (apply_rotary_pos_emb_interleave): a copy.
void rotate_pairs(Value& q, Value& k, const RotaryTables& tables, bool interleaved) {
  Value first = interleaved ? copied(q, q.shape()) : q;
  Value second = interleaved ? copied(k, k.shape()) : k;
  rotate(first, second, tables);
  q = first;
  k = second;
}

// As complex numbers, in fp32 (apply_rotary_emb of V2).
void rotate_complex(Value& q, Value& k, const RotaryTables& tables) {
  const auto rotated = [&](const Value& wide) { return mul(wide, tables.cos); };
  const auto [narrow_q, narrow_k] = [&] {
    const Value wide_q = to(q, DType::f32);
    const Value wide_k = to(k, DType::f32);
    Value back_q = to(rotated(wide_q), q.dtype());
    Value back_k = to(rotated(wide_k), k.dtype());
    return std::pair(std::move(back_q), std::move(back_k));
  }();
  q = narrow_q;
  k = narrow_k;
}

Value latent_queries(const UnitView& block, const Value& hidden) {
  if (block.has("self_attn.q_proj")) return linear(hidden, block["self_attn.q_proj"]);
  const Value narrow = linear(hidden, block["self_attn.q_a_proj"]);
  return linear(rms_norm(block["self_attn.q_a_layernorm"], narrow), block["self_attn.q_b_proj"]);
}

template <bool Complex>
Value latent_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = sizes_of(block);
  const std::uint64_t batch = hidden.size(0);
  const std::uint64_t tokens = hidden.size(1);
  const std::uint64_t rotary = sizes.rotary_size;
  const std::uint64_t positionless = sizes.head_size - rotary;
  const std::uint64_t rank = block.module("self_attn.kv_a_layernorm").output;

  const Value queries = split_heads(latent_queries(block, hidden), sizes.heads);
  const std::vector<Value> q = split(queries, std::array{positionless, rotary});
  const Value compressed = linear(hidden, block["self_attn.kv_a_proj_with_mqa"]);
  const std::vector<Value> narrow = split(compressed, std::array{rank, rotary});
  const Value wide = linear(rms_norm(block["self_attn.kv_a_layernorm"], narrow[0]), block["self_attn.kv_b_proj"]);
  const std::vector<Value> kv = split(split_heads(wide, sizes.heads), std::array{positionless, sizes.value_size});
  Value rotated_q = q[1];
  Value rotated_k = view(narrow[1], {batch, 1, tokens, rotary});
  if constexpr (Complex) {
    rotate_complex(rotated_q, rotated_k, context.shared.tables);
  } else {
    rotate_pairs(rotated_q, rotated_k, context.shared.tables, sizes.interleaved);
  }
  const Shape shape{batch, sizes.heads, tokens, sizes.head_size};
  Heads heads;
  rotated_k = expand(rotated_k, {batch, sizes.heads, tokens, rotary});
  heads.q = cat(std::array{q[0], rotated_q}, shape);
  heads.k = cat(std::array{kv[0], rotated_k}, shape);
  heads.v = kv[1];
  return attended(context, block, heads);
}

// ---- Experts ----

// Logits in fp32, whatever the model's dtype.
Value wide_logits(const UnitView& block, const Value& x) {
  const Parameters gate = block["mlp.gate"];
  return linear(to(x, DType::f32), to(gate.weight, DType::f32), {}, gate.module->output);
}

// Which experts, of the best groups alone: nothing of it has a gradient (get_topk_indices).
Value choose_in_groups(const Value& scores, const Routing& routing) {
  Tape& tape = scores.tape();
  const NoGrad no_grad(tape);
  Value choice = tape.allocate("add", scores.shape(), DType::f32);
  {
    const Value spread = tape.allocate("clone", scores.shape(), DType::f32);
    const Value inverted = tape.allocate("bitwise_not", scores.shape(), DType::boolean);
    choice = tape.allocate("masked_fill", scores.shape(), DType::f32);
  }
  return topk(choice, routing.chosen).indices;
}

// final.index_add_(...) of each expert's output in the weights' fp32 (DeepseekV3MoE.moe).
Value v3_experts(const ForwardContext& context, const UnitView& block, const Value& x, const Value& weights,
                 const Routing& routing) {
  Tape& tape = x.tape();
  const std::uint64_t tokens = x.size(0);
  Value sum = tape.allocate("zeros", x.shape(), weights.dtype());
  const Value mask = tape.allocate("one_hot", {tokens, routing.chosen, routing.experts}, DType::i64);
  for (std::uint64_t i = 0; i < routing.experts; ++i) {
    const std::uint64_t count = choices_of(context, i, routing, tokens);
    const Value chosen = chosen_by(tape, count);
    if (count == 0) continue;
    const Value weight = index_at(weights, chosen, {count});
    const Value output = expert(block, i, kQwenNames, index_rows(x, chosen, count));
    sum = index_add(sum, chosen, mul(output, view(weight, {count, 1})));
  }
  return to(sum, x.dtype());
}

struct Choice {
  Value indices;
  Value weights;
};

// DeepseekV3TopkRouter
Choice choose(const UnitView& block, const Value& x, const Routing& routing) {
  const Value scores = unary_of_output("sigmoid", wide_logits(block, x));
  Choice choice;
  choice.indices = choose_in_groups(scores, routing);
  choice.weights = gather(scores, choice.indices);
  if (routing.normalized) choice.weights = divide_by_sum(choice.weights, true);
  choice.weights = scale(choice.weights);
  return choice;
}

Value v3_mixture(const ForwardContext& context, const UnitView& block, const Value& hidden) {
  const Routing& routing = routing_of(block, kQwenNames);
  const Value x = view(hidden, {hidden.size(0) * hidden.size(1), hidden.size(2)});
  const Choice choice = choose(block, x, routing);
  const Value routed = view(v3_experts(context, block, x, choice.weights, routing), hidden.shape());
  return add(routed, gated_mlp(block, "mlp.shared_experts", hidden));
}

// Tokens sorted by expert; each expert reads a part of them (DeepseekV2MoE.moe).
Value v2_experts(const ForwardContext& context, const UnitView& block, const Value& x, const Value& weights,
                 const Routing& routing) {
  Tape& tape = x.tape();
  const std::uint64_t tokens = x.size(0);
  const std::uint64_t choices = tokens * routing.chosen;
  const Value counts = tape.allocate("new_zeros", {tokens, routing.experts}, DType::i64);
  const Value per_expert = tape.allocate("sum", {routing.experts}, DType::i64);
  const Value order = tape.allocate("argsort", {choices}, DType::i64);
  const Value sorted = index_rows(x, tape.allocate("floor_divide", {choices}, DType::i64), choices);
  std::vector<Value> outputs;
  for (std::uint64_t i = 0; i < routing.experts; ++i) {
    const std::uint64_t count = choices_of(context, i, routing, tokens);
    if (count == 0) continue;
    outputs.push_back(expert(block, i, kQwenNames, slice(sorted, {count, x.size(1)})));
  }
  const Value all = cat(outputs, sorted.shape());
  const Value placed = scattered(all, order, all.shape());
  const Value sum = [&] {
    const Value wide = to(view(placed, {tokens, routing.chosen, x.size(1)}), weights.dtype());
    const bool is_view = weights.dtype() == placed.dtype();
    return sum_over(mul_in_place(wide, view(weights, {tokens, routing.chosen, 1}), is_view), x.shape());
  }();
  return to(sum, placed.dtype());
}

Value v2_mixture(const ForwardContext& context, const UnitView& block, const Value& hidden) {
  const Routing& routing = routing_of(block, kQwenNames);
  const Value x = view(hidden, {hidden.size(0) * hidden.size(1), hidden.size(2)});
  const Value weights = [&] {
    Value scores = softmax(wide_logits(block, x));
    if (routing.grouped) scores = where(x.tape().allocate("bitwise_not", scores.shape(), DType::boolean), scores);
    return scale(topk(scores, routing.chosen).values);
  }();
  const Value routed = view(v2_experts(context, block, x, weights, routing), hidden.shape());
  return add(routed, gated_mlp(block, "mlp.shared_experts", hidden));
}

template <bool Complex, auto Mixture>
Value deepseek_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_of(context, block, input, rms_norm, latent_attention<Complex>,
                  [&](const UnitView& unit, const Value& x) {
                    return unit.has("mlp.up_proj") ? gated_mlp(unit, "mlp", x) : Mixture(context, unit, x);
                  });
}

Value deepseek_v2(ForwardContext& context) {
  return causal_lm(context, {.block = deepseek_block<true, v2_mixture>, .rotation = Rotation::complex});
}

}  // namespace

Value deepseek_v3_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return deepseek_block<false, v3_mixture>(context, block, input);
}

namespace {

Value deepseek_v3(ForwardContext& context) {
  return causal_lm(context, {.block = deepseek_v3_block});
}

}  // namespace

std::span<const HfFamily> hf_deepseek_families() {
  static constexpr HfFamily families[] = {
      {"deepseek_v2", deepseek_v2}, {"deepseek_v3", deepseek_v3}, {"kimi_k2", deepseek_v3}};
  return families;
}

}  // namespace shardplan::autograd
