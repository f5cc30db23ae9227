#include "planner/activations/hf/hf_decoder.h"

#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

const AttentionSizes& sizes_of(const UnitView& block) {
  return *block.module("self_attn.attention").attention;
}

std::uint64_t rotary_size(const AttentionSizes& sizes) {
  return sizes.rotary_size != 0 ? sizes.rotary_size : sizes.head_size;
}

Heads project(const UnitView& block, const Value& hidden) {
  Heads heads;
  heads.q = linear(hidden, block["self_attn.q_proj"]);
  heads.k = linear(hidden, block["self_attn.k_proj"]);
  heads.v = linear(hidden, block["self_attn.v_proj"]);
  return heads;
}

void clip(Heads& heads, const UnitView& block) {
  if (!block.has("self_attn.clip_qkv")) return;
  for (Value* x : {&heads.q, &heads.k, &heads.v}) *x = clamp(*x, 2);  // what it was is copied first
}

void split(Heads& heads, const AttentionSizes& sizes) {
  heads.q = split_heads(heads.q, sizes.heads);
  heads.k = split_heads(heads.k, sizes.kv_heads);
  heads.v = split_heads(heads.v, sizes.kv_heads);
}

Heads project_heads(const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = sizes_of(block);
  Heads heads;
  heads.q = split_heads(linear(hidden, block["self_attn.q_proj"]), sizes.heads);
  heads.k = split_heads(linear(hidden, block["self_attn.k_proj"]), sizes.kv_heads);
  heads.v = split_heads(linear(hidden, block["self_attn.v_proj"]), sizes.kv_heads);
  return heads;
}

void norm_heads(Heads& heads, const UnitView& block, Norm norm) {
  heads.q = norm(block["self_attn.q_norm"], heads.q);
  heads.k = norm(block["self_attn.k_norm"], heads.k);
}

Value attended(ForwardContext& context, const UnitView& block, Heads& heads) {
  cache(context, heads.k, heads.v);
  const AttentionCall call{.mask = mask_of(context, block, sizes_of(block)),
                           .dropout = dropout_rate(block, "self_attn.dropout"),
                           .softcap = block.has("self_attn.softcap")};
  const Value mixed = attend(context, heads.q, heads.k, heads.v, call);
  return linear(mixed, block["self_attn.o_proj"]);
}

Value attend_repeated(ForwardContext& context, const AttentionSizes& sizes, Heads& heads, const AttentionCall& call) {
  cache(context, heads.k, heads.v);
  heads.k = repeat_kv(heads.k, sizes.heads / sizes.kv_heads);
  heads.v = repeat_kv(heads.v, sizes.heads / sizes.kv_heads);
  if (call.mask.defined() && context.attention() != AttentionKind::eager) {
    const bool expanded = sizes.kv_heads == 1 && sizes.heads > 1;
    for (Value* x : {&heads.q, &heads.k, &heads.v}) {
      if (x->layout() != Layout::in_order || (expanded && x != &heads.q)) *x = contiguous(*x);
    }
  }
  return attend(context, heads.q, heads.k, heads.v, call);
}

Value attended_repeated(ForwardContext& context, const UnitView& block, Heads& heads) {
  const AttentionSizes& sizes = sizes_of(block);
  const Value mixed =
      attend_repeated(context, sizes, heads,
                      {.mask = mask_of(context, block, sizes), .dropout = dropout_rate(block, "self_attn.dropout")});
  return linear(mixed, block["self_attn.o_proj"]);
}

const RotaryTables& tables_of(const ForwardContext& context, const UnitView& block) {
  return context.shared.window_tables.cos.defined() && in_window(block, sizes_of(block)) ? context.shared.window_tables
                                                                                         : context.shared.tables;
}

Value llama_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads = project_heads(block, hidden);
  rotate(heads.q, heads.k, context.shared.tables);
  return attended(context, block, heads);
}

Value qwen3_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = sizes_of(block);
  Heads heads;
  heads.q = rms_norm(block["self_attn.q_norm"], split_heads(linear(hidden, block["self_attn.q_proj"]), sizes.heads));
  heads.k = rms_norm(block["self_attn.k_norm"], split_heads(linear(hidden, block["self_attn.k_proj"]), sizes.kv_heads));
  heads.v = split_heads(linear(hidden, block["self_attn.v_proj"]), sizes.kv_heads);
  rotate(heads.q, heads.k, context.shared.tables);
  return attended(context, block, heads);
}

}  // namespace shardplan::autograd
