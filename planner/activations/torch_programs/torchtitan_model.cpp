#include "planner/activations/torch_programs/torchtitan_model.h"

#include <array>

#include "planner/activations/torch_ops.h"
#include "planner/activations/torch_programs/torch_decoder.h"

namespace shardplan {
namespace autograd {
namespace {

// apply_rotary_emb on [b, s, heads, d]: complex numbers of two fp32 each; both are there before either is cast back.
void rotate(Value& q, Value& k) {
  const auto complex = [](const Value& x) { return to(x, DType::f32); };
  const auto turned = [](const Value& x) { return mul(x, x.tape().outside({1, x.size(1), 1, x.size(3)}, DType::f32)); };
  const Value complex_q = complex(q);
  const Value complex_k = complex(k);
  const Value turned_q = turned(complex_q);
  const Value turned_k = turned(complex_k);
  const Value narrow_q = to(turned_q, q.dtype());
  k = to(turned_k, k.dtype());
  q = narrow_q;
}

// Attention.forward
Value attention_of(const UnitView& block, const Value& x) {
  const AttentionSizes& sizes = attention_sizes_of(block);
  const auto heads_of = [&](const char* name, std::uint64_t heads) {
    return view(adapted_linear(block, name, x), {x.size(0), x.size(1), heads, sizes.head_size});
  };
  Value q = heads_of("self_attn.q_proj", sizes.heads);
  Value k = heads_of("self_attn.k_proj", sizes.kv_heads);
  Value v = heads_of("self_attn.v_proj", sizes.kv_heads);
  rotate(q, k);
  const Shape repeated = q.shape();
  const Value keys = sizes.heads == sizes.kv_heads ? k : copied(k, repeated);
  const Value values = sizes.heads == sizes.kv_heads ? v : copied(v, repeated);
  q = transpose(q);
  k = transpose(keys);
  v = transpose(values);
  Value mixed = scaled_dot_product_attention(q, k, v, {.mask = {}, .causal = true});
  mixed = view(transpose(mixed), {x.size(0), x.size(1), sizes.heads * sizes.head_size});
  return adapted_linear(block, "self_attn.o_proj", mixed);
}

Value whole_block(const UnitView& block, const Value& input) {
  const Value attended = add(input, attention_of(block, fp32_rms_norm(block["input_layernorm"], input)));
  const Value inner = gated_feed_forward(block, fp32_rms_norm(block["post_attention_layernorm"], attended));
  return add(attended, inner);
}

// _custom_policy: every second product is computed again.
Tape::Policy op_policy() {
  return [products = 0](std::string_view operation) mutable {
    if (operation == "linear") return ++products % 2 == 1;
    return operation == "flash attention" || operation == "efficient attention";
  };
}

Value torchtitan_block(ForwardContext& context, const UnitView& block, const Value& input) {
  if (context.client.recompute != RecomputeKind::selective) return whole_block(block, input);
  return context.tape.selective_checkpoint([block](const Value& x) { return whole_block(block, x); }, input, op_policy);
}

}  // namespace
}  // namespace autograd

std::string torchtitan_refuses(const Model& model, const Setup& setup, const ClientSetup& client) {
  if (is_of_flows(client.recompute)) return "profile torchtitan has no flows, so neither recompute invert nor adjoint";
  if (client.loss != LossKind::eager) return "profile torchtitan has its eager loss alone (--loss eager)";
  return torch_decoder_refuses(model, setup, "torchtitan");
}

void run_torchtitan(autograd::Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                    const ClientSetup& client, std::vector<SavedByUnit>* saved) {
  autograd::ForwardContext context{tape, model, held, setup, client};
  context.unfolded = !tape.options().folds;
  autograd::Value loss = [&] {
    const autograd::Value hidden = decoder_features(context, autograd::torchtitan_block);
    const auto head = unit_with(context, "lm_head");
    const autograd::Purpose before = tape.set_purpose(autograd::Purpose::loss);
    const autograd::Value logits = adapted_linear(*head, "lm_head", hidden);
    const autograd::Value rows = view(logits, {logits.size(0) * logits.size(1), logits.size(2)});
    autograd::Value result = cross_entropy(to(rows, DType::f32));
    tape.set_purpose(before);
    return result;
  }();
  if (saved != nullptr) *saved = saved_tensors(tape);
  const autograd::Value gradient = tape.allocate("gradient", loss.shape(), loss.dtype());
  tape.backward(std::move(loss), gradient);
}

}  // namespace shardplan
