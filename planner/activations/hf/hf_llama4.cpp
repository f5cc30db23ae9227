// Llama 4 (modeling_llama4.py of transformers 4.57), its language model alone or behind images. Every token passes every expert,
// times a score that is 0 for those that it did not choose. Chunks of attention in layers with positions, all tokens in those
// without.
#include <array>
#include <utility>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_images.h"
#include "planner/activations/hf/hf_llama4.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// Llama4TextRMSNorm
Value llama4_norm(const Parameters& layer, const Value& x) {
  return mul(l2_norm(x), layer.weight);
}

// apply_rotary_emb: complex products in fp32.
void rotate_complex(Value& q, Value& k, const Value& table) {
  const auto [narrow_q, narrow_k] = [&] {
    const Value rotated_q = mul(to(q, DType::f32), table);
    const Value rotated_k = mul(to(k, DType::f32), table);
    Value back_q = to(rotated_q, q.dtype());
    Value back_k = to(rotated_k, k.dtype());
    return std::pair(std::move(back_q), std::move(back_k));
  }();
  q = narrow_q;
  k = narrow_k;
}

// Queries of layers without positions grow with their place in the text.
Value tempered(ForwardContext& context, const Value& q) {
  const Value scales = context.tape.allocate("add", {1, q.size(1), 1, 1}, DType::f32);
  return to(mul(q, scales), q.dtype());
}

Value attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = sizes_of(block);
  const auto heads_of = [&](std::string_view layer, std::uint64_t heads) {
    return view(linear(hidden, block[layer]), {hidden.size(0), hidden.size(1), heads, sizes.head_size});
  };
  Heads heads;
  heads.q = heads_of("self_attn.q_proj", sizes.heads);
  heads.k = heads_of("self_attn.k_proj", sizes.kv_heads);
  heads.v = transpose(heads_of("self_attn.v_proj", sizes.kv_heads));
  if (sizes.rotary) {
    rotate_complex(heads.q, heads.k, context.shared.tables.cos.viewed({1, hidden.size(1), 1, sizes.head_size}));
  }
  if (block.has("self_attn.qk_norm.q")) {
    heads.q = l2_norm(heads.q);
    heads.k = l2_norm(heads.k);
  }
  if (block.has("self_attn.attn_scale")) heads.q = tempered(context, heads.q);
  heads.q = transpose(heads.q);
  heads.k = transpose(heads.k);
  if (context.attention() != AttentionKind::eager) return attended(context, block, heads);
  cache(context, heads.k, heads.v);
  const std::uint64_t times = sizes.heads / sizes.kv_heads;
  const Value k = repeat_kv(heads.k, times);
  const Value v = repeat_kv(heads.v, times);
  const Value mixed =
      eager_attention(context, heads.q, k, v,
                      {.mask = mask_of(context, block, sizes), .dropout = dropout_rate(block, "self_attn.dropout")});
  return linear(mixed, block["self_attn.o_proj"]);
}

// Llama4Router, as a column of all tokens' scores for each expert, one below the other.
Value scores_of(const Value& logits, const Value& x, const Routing& routing) {
  const auto [values, indices] = topk(logits, routing.chosen);
  const Value scattered_values = scattered(values, indices, logits.shape());
  const Value scores = to(unary_of_output("sigmoid", to(scattered_values, DType::f32)), x.dtype());
  return copied(scores, {routing.experts * x.size(0), 1});
}

// Llama4TextExperts
Value experts(const UnitView& block, const Value& x, const Routing& routing) {
  const Value up_and_gate = block.tensor("feed_forward.experts.gate_up_proj");
  const Value down = block.tensor("feed_forward.experts.down_proj");
  const std::uint64_t tokens = x.size(0) / routing.experts;
  const Value each = view(x, {routing.experts, tokens, x.size(1)});
  const Value both = matmul(each, up_and_gate, {routing.experts, tokens, up_and_gate.size(2)});
  const std::uint64_t width = both.size(2) / 2;
  const std::vector<Value> halves = split(both, std::array{width, width});
  return matmul(mul(halves[1], activate(halves[0], block, "feed_forward.experts.act_fn")), down, each.shape());
}

Value mixture(const UnitView& block, const Value& hidden) {
  const Routing& routing = *block.module("feed_forward.experts.gate_up_proj").routing;
  const Value x = view(hidden, {hidden.size(0) * hidden.size(1), hidden.size(2)});
  const Value logits = linear(x, block["feed_forward.router"]);
  const Value scores = scores_of(logits, x, routing);
  Value routed = copied(x, {routing.experts * x.size(0), x.size(1)});
  routed = mul(routed, scores);
  const Value all = experts(block, routed, routing);
  const Value shared = gated_mlp(block, "feed_forward.shared_expert", x);
  // The gradient of a sum is one tensor, seen as often as there are summands: behind a view it is written out.
  const Value said = simple("view", all, all.viewed({routed.size(0), x.size(1)}));
  return view(add_in_place(shared, sum_over(said, x.shape())), hidden.shape());
}

Value feed_forward(const UnitView& block, const Value& x) {
  return block.has("feed_forward.router") ? mixture(block, x) : gated_mlp(block, "feed_forward", x);
}

Value llama4_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const Value attended =
      attention(context, block, llama4_norm(block["input_layernorm"], input));  // until the block ends
  const Value residual = add(input, attended);
  const Value hidden = feed_forward(block, llama4_norm(block["post_attention_layernorm"], residual));
  return add(residual, hidden);
}

Value llama4_text(ForwardContext& context) {
  return causal_lm(context,
                   {.block = llama4_block, .norm = llama4_norm, .rotation = Rotation::complex, .masks = Masks::both});
}

Value text_and_images(ForwardContext& context) {
  return text_with_images(context,
                          {.embedding = "language_model.model.embed_tokens", .features = llama4_image_features});
}

Value loss_of_most(ForwardContext& context, Value logits) {
  const Value held = std::move(logits);
  if (context.client.keeps_outputs) context.tape.keep(held);
  return shifted_loss(context, held);
}

// Llama4ForConditionalGeneration
Value llama4(ForwardContext& context) {
  return causal_lm(context, {.block = llama4_block,
                             .stack = "language_model.model.layers",
                             .embed = text_and_images,
                             .holds_input = true,
                             .norm = llama4_norm,
                             .embedding = "language_model.model.embed_tokens",
                             .last_norm = "language_model.model.norm",
                             .head = "language_model.lm_head",
                             .rotation = Rotation::complex,
                             .loss = loss_of_most,
                             .masks = Masks::both});
}

}  // namespace

std::span<const HfFamily> hf_llama4_families() {
  static constexpr HfFamily families[] = {{"llama4", llama4}, {"llama4_text", llama4_text}};
  return families;
}

}  // namespace shardplan::autograd
