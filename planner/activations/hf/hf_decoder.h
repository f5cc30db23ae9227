// What Llama's kin have in common: attention behind three projections, and a block of attention and MLP behind norms.
#pragma once

#include <cstdint>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

struct Heads {
  Value q;
  Value k;
  Value v;
};

const AttentionSizes& sizes_of(const UnitView& block);  // of self_attn
std::uint64_t rotary_size(const AttentionSizes& sizes);

// q_proj, k_proj and v_proj, [b, s, heads x d] each; and split into heads, [b, heads, s, d] each.
Heads project(const UnitView& block, const Value& hidden);
// Held within bounds, each in place, where the block has them (clip_qkv).
void clip(Heads& heads, const UnitView& block);
void split(Heads& heads, const AttentionSizes& sizes);
// Both, one after the other: copies that a gradient's layout asks for are made one at a time.
Heads project_heads(const UnitView& block, const Value& hidden);
// q_norm and k_norm, head by head.
void norm_heads(Heads& heads, const UnitView& block, Norm norm);

// The cache, attention, and the projection from the heads.
Value attended(ForwardContext& context, const UnitView& block, Heads& heads);
// The same with keys and values repeated before any kernel is asked for; attention by itself, [b, s, h x d].
Value attend_repeated(ForwardContext& context, const AttentionSizes& sizes, Heads& heads, const AttentionCall& call);
Value attended_repeated(ForwardContext& context, const UnitView& block, Heads& heads);
// Those of the layers that see a window, where they differ.
const RotaryTables& tables_of(const ForwardContext& context, const UnitView& block);

Value llama_attention(ForwardContext& context, const UnitView& block, const Value& hidden);
Value qwen3_attention(ForwardContext& context, const UnitView& block, const Value& hidden);  // with norms of heads

// x + attention(norm(x)), then x + mlp(norm(x)).
template <typename Attention, typename Mlp>
Value block_of(ForwardContext& context, const UnitView& block, const Value& input, Norm norm, Attention attention,
               Mlp mlp) {
  Value residual = input;
  Value hidden = norm(block["input_layernorm"], input);
  hidden = attention(context, block, hidden);
  hidden = add(residual, hidden);
  residual = hidden;
  hidden = norm(block["post_attention_layernorm"], hidden);
  hidden = mlp(block, hidden);
  return add(residual, hidden);
}

// x + first(attention(x)), then x + second(mlp(x)): norms of these names behind both.
template <typename Attention, typename Mlp>
Value block_with_norms_behind(ForwardContext& context, const UnitView& block, const Value& input, Norm norm,
                              std::string_view first, std::string_view second, Attention attention, Mlp mlp) {
  Value residual = input;
  Value hidden = attention(context, block, input);
  hidden = norm(block[first], hidden);
  hidden = add(residual, hidden);
  residual = hidden;
  hidden = mlp(block, hidden);
  hidden = norm(block[second], hidden);
  return add(residual, hidden);
}

}  // namespace shardplan::autograd
