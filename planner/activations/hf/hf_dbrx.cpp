// DBRX (modeling_dbrx.py of transformers 4.57): the experts of a layer below each other in three tensors, of which each takes
// its part.
#include <array>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_experts.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

Value attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("norm_attn_norm.attn.attention").attention;
  Value all = linear(hidden, block["norm_attn_norm.attn.Wqkv"]);
  if (block.has("norm_attn_norm.attn.clip_qkv")) {
    all = clamp(all, 2);
  } else if (context.attention() == AttentionKind::eager) {
    throw NotModelled("eager attention without attn_config.clip_qkv, which its class cannot compute,");
  }
  const std::uint64_t keys = sizes.kv_heads * sizes.head_size;
  const std::vector<Value> parts = split(all, std::array{sizes.heads * sizes.head_size, keys, keys});
  Heads heads{parts[0], parts[1], parts[2]};
  split(heads, sizes);
  rotate(heads.q, heads.k, make_rotary(context, sizes.head_size));
  const AttentionCall call{.mask = context.shared.mask, .dropout = dropout_rate(block, "norm_attn_norm.attn.dropout")};
  return linear(attend_repeated(context, sizes, heads, call), block["norm_attn_norm.attn.out_proj"]);
}

struct Weights {
  Value all;  // of every expert, in the model's dtype
  Value chosen;
};

// DbrxRouter
Weights route(const UnitView& block, const Value& x, const Routing& routing) {
  const Value wide = softmax_in(linear(x, block["ffn.router.layer"]), DType::f32);
  Value top = topk(wide, routing.chosen).values;
  if (routing.normalized) top = div(top, norm_of_rows(top));
  return {to(wide, x.dtype()), to(top, x.dtype())};
}

// The part of one of the three tensors that each expert has.
std::vector<Value> chunks(const UnitView& block, std::string_view name, const Routing& routing) {
  const Value all = block.tensor(name);
  const Shape one{all.size(0) / routing.experts, all.size(1)};
  return parts_of(all, std::vector<Shape>(routing.experts, one));
}

// DbrxExperts
Value experts(ForwardContext& context, const UnitView& block, const Value& x, const Value& weights,
              const Routing& routing) {
  Tape& tape = x.tape();
  Value sum = tape.allocate("zeros", x.shape(), x.dtype());
  const Value mask = tape.allocate("one_hot", {x.size(0), routing.chosen, routing.experts}, DType::i64);
  const std::vector<Value> w1 = chunks(block, "ffn.experts.mlp.w1", routing);
  const std::vector<Value> v1 = chunks(block, "ffn.experts.mlp.v1", routing);
  const std::vector<Value> w2 = chunks(block, "ffn.experts.mlp.w2", routing);
  for (std::uint64_t i = 0; i < routing.experts; ++i) {
    const std::uint64_t count = choices_of(context, i, routing, x.size(0));
    const Value chosen = chosen_by(tape, count);
    if (count == 0) continue;
    const Value mine = index_rows(x, chosen, count);
    const Value output = [&] {
      const Value gate = matmul(mine, w1[i], {count, w1[i].size(0)});
      const Value up = matmul(mine, v1[i], {count, v1[i].size(0)});
      const Value product = mul(activate(gate, block, "ffn.experts.mlp.activation_fn"), up);
      return matmul(product, w2[i], mine.shape());
    }();
    sum = index_add(sum, chosen, mul(output, index_at(weights, chosen, {count, 1})));
  }
  return sum;
}

Value feed_forward(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const Routing& routing = *block.module("ffn.experts.mlp.w1").routing;
  const Value x = view(jittered(block, "ffn.router", hidden), {hidden.size(0) * hidden.size(1), hidden.size(2)});
  const Weights weights = route(block, x, routing);
  keep_for_balance(context, routing, weights.all);
  return view(experts(context, block, x, weights.chosen, routing), hidden.shape());
}

Value dbrx_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value hidden = layer_norm(block["norm_attn_norm.norm_1"], input);
  hidden = dropout(attention(context, block, hidden), block, "resid_dropout");
  const Value residual = add(hidden, input);
  hidden = layer_norm(block["norm_attn_norm.norm_2"], residual);
  hidden = dropout(feed_forward(context, block, hidden), block, "resid_dropout");
  return add(residual, hidden);
}

Value dbrx(ForwardContext& context) {
  return causal_lm(context, {.block = dbrx_block,
                             .norm = layer_norm,
                             .embedding = "transformer.wte",
                             .embedding_dropout = "transformer.emb_dropout",
                             .last_norm = "transformer.norm_f",
                             .older_mask = true,
                             .own_tables = true,
                             .routers_say = RouterSays::probabilities});
}

}  // namespace

std::span<const HfFamily> hf_dbrx_families() {
  static constexpr HfFamily families[] = {{"dbrx", dbrx}};
  return families;
}

}  // namespace shardplan::autograd
