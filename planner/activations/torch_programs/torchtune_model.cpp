#include "planner/activations/torch_programs/torchtune_model.h"

#include <algorithm>
#include <array>

#include "planner/activations/adapters.h"
#include "planner/activations/torch_ops.h"
#include "planner/activations/torch_programs/torch_decoder.h"

namespace shardplan {
namespace autograd {
namespace {

// RotaryPositionalEmbeddings.forward on [b, s, heads, d].
Value rotated(const Value& x) {
  const Value wide = to(x, DType::f32);
  Shape half = x.shape();
  half.back() /= 2;
  const Value table = x.tape().outside({1, half[1], 1, half.back()}, DType::f32);
  const auto part = [&] { return slice(wide, half); };
  const Value stacked = [&] {
    const Value first = [&] {
      const Value straight = mul(part(), table);
      const Value across = mul(part(), table);
      return sub(straight, across);
    }();
    const Value second = [&] {
      const Value straight = mul(part(), table);
      const Value across = mul(part(), table);
      return add(straight, across);
    }();
    return cat(std::array{first, second}, x.shape());
  }();
  return to(stacked, x.dtype());
}

// MultiHeadAttention.forward
Value attention_of(const UnitView& block, const Value& x) {
  const AttentionSizes& sizes = attention_sizes_of(block);
  const auto heads_of = [&](const Value& flat, std::uint64_t heads) {
    return view(flat, {x.size(0), x.size(1), heads, sizes.head_size});
  };
  Value q = heads_of(adapted_linear(block, "self_attn.q_proj", x), sizes.heads);
  q = transpose(rotated(q));
  Value k = heads_of(adapted_linear(block, "self_attn.k_proj", x), sizes.kv_heads);
  Value v = heads_of(adapted_linear(block, "self_attn.v_proj", x), sizes.kv_heads);
  k = transpose(rotated(k));
  v = transpose(v);
  k = repeat_heads(k, sizes.heads / sizes.kv_heads);
  v = repeat_heads(v, sizes.heads / sizes.kv_heads);
  Value mixed = scaled_dot_product_attention(q, k, v, {.mask = {}, .causal = true});
  mixed = view(transpose(mixed), {x.size(0), x.size(1), sizes.heads * sizes.head_size});
  return adapted_linear(block, "self_attn.o_proj", mixed);
}

Value torchtune_block(ForwardContext&, const UnitView& block, const Value& input) {
  const Value attended = [&] {
    const Value normed = fp32_rms_norm(block["input_layernorm"], input);
    const Value attention = attention_of(block, normed);
    return add(attention, input);
  }();
  const Value inner = gated_feed_forward(block, fp32_rms_norm(block["post_attention_layernorm"], attended));
  return add(attended, inner);
}

// tensor_split along the sequence.
std::vector<Value> parts_of(const Value& x, std::uint64_t count) {
  std::vector<Value> parts;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t size = x.size(1) / count + (i < x.size(1) % count ? 1 : 0);
    if (size == 0) continue;
    parts.push_back(
        x.viewed({x.size(0), size, x.size(2)}).laid_out(x.size(0) > 1 ? Layout::with_gaps : Layout::in_order));
  }
  return x.tape().record("split", std::span(&x, 1), std::move(parts), {},
                         [shape = x.shape(), dtype = x.dtype()](Tape& t, std::span<const Value>, std::vector<Value>&) {
                           std::vector<Value> gradients;
                           gradients.push_back(t.allocate("split backward", shape, dtype));
                           return gradients;
                         });
}

Value head_of(const UnitView& unit, const Value& x) {
  const Value dense = x.layout() == Layout::with_gaps ? copied(x, x.shape()) : x;
  return adapted_linear(unit, "lm_head", dense);
}

Value loss_of_logits(const Value& logits) {
  const Value rows = view(logits, {logits.size(0) * logits.size(1), logits.size(2)});
  return cross_entropy(to(rows, DType::f32));
}

// `held`: what the recipe holds on to.
Value loss_of(ForwardContext& context, const UnitView& unit, const Value& x, Value& held) {
  const ClientSetup& client = context.client;
  if (client.loss == LossKind::eager) {
    held = to(head_of(unit, x), DType::f32);
    return loss_of_logits(held);
  }
  constexpr std::uint64_t kFusedParts = 8;
  const bool fused = client.loss == LossKind::fused;
  std::vector<Value> parts = parts_of(x, fused ? kFusedParts : client.loss_chunks);
  if (!fused) {
    for (Value& part : parts) part = head_of(unit, part);
  }
  Value loss;
  for (const Value& part : parts) {
    const Value one = fused ? loss_of_logits(head_of(unit, part)) : loss_of_logits(part);
    loss = loss.defined() ? add(loss, one) : one;
  }
  return loss;
}

}  // namespace
}  // namespace autograd

std::string torchtune_refuses(const Model& model, const Setup& setup, const ClientSetup& client) {
  if (client.recompute == RecomputeKind::selective || is_of_flows(client.recompute)) {
    return "profile torchtune recomputes whole blocks alone";
  }
  const Parallelism& parallel = setup.parallel;
  if (parallel.tensor > 1 || parallel.context > 1 || parallel.pipeline > 1) {
    return "profile torchtune shares out no layer, no sequence and no stages (--tp, --cp, --pp)";
  }
  return torch_decoder_refuses(model, setup, "torchtune");
}

void run_torchtune(autograd::Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                   const ClientSetup& client, std::vector<SavedByUnit>* saved) {
  autograd::ForwardContext context{tape, model, held, setup, client};
  context.unfolded = !tape.options().folds;
  autograd::Value logits;
  autograd::Value loss = [&] {
    const autograd::Value hidden = decoder_features(context, autograd::torchtune_block);
    const auto head = unit_with(context, "lm_head");
    const autograd::Purpose before = tape.set_purpose(autograd::Purpose::loss);
    autograd::Value result = autograd::loss_of(context, *head, hidden, logits);
    tape.set_purpose(before);
    return result;
  }();
  if (saved != nullptr) *saved = saved_tensors(tape);
  const autograd::Value gradient = tape.allocate("gradient", loss.shape(), loss.dtype());
  tape.backward(std::move(loss), gradient);
}

}  // namespace shardplan
