// Llama and its kin (modeling_llama.py of transformers 4.5x).
#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

Value self_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("self_attn.attention").attention;
  Value q = split_heads(linear(hidden, block["self_attn.q_proj"]), sizes.heads);
  Value k = split_heads(linear(hidden, block["self_attn.k_proj"]), sizes.kv_heads);
  Value v = split_heads(linear(hidden, block["self_attn.v_proj"]), sizes.kv_heads);
  rotate(q, k, context);
  k = cached(context, k);
  v = cached(context, v);
  return linear(attend(context, q, k, v, {.mask = context.mask}), block["self_attn.o_proj"]);
}

Value mlp(const UnitView& block, const Value& x) {
  const Value gate = unary("silu", linear(x, block["mlp.gate_proj"]));
  return linear(mul(gate, linear(x, block["mlp.up_proj"])), block["mlp.down_proj"]);
}

Value llama_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value residual = input;
  Value hidden = rms_norm(input, block["input_layernorm"].weight);
  hidden = self_attention(context, block, hidden);
  hidden = add(residual, hidden);
  residual = hidden;
  hidden = rms_norm(hidden, block["post_attention_layernorm"].weight);
  hidden = mlp(block, hidden);
  return add(residual, hidden);
}

}  // namespace

std::span<const HfFamily> hf_llama_families() {
  static constexpr HfFamily families[] = {{"llama", causal_lm, llama_block}};
  return families;
}

}  // namespace shardplan::autograd
