#include "planner/activations/hf/hf_layers.h"

#include <array>

#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

Value linear(const Value& x, const Parameters& layer) {
  return linear(x, layer.weight, layer.bias, layer.module->output);
}

Value rms_norm(const Value& x, const Value& weight) {
  Value wide = to(x, DType::f32);
  {
    const Value variance = mean(pow(wide));
    wide = mul(wide, rsqrt(shift(variance)));
  }
  return mul(weight, to(wide, x.dtype()));
}

Value rotate(const Value& x, const Value& cos, const Value& sin) {
  Shape half = x.shape();
  half.back() /= 2;
  const auto rotate_half = [&] {
    const Value first = slice(x, half);
    const Value second = slice(x, half);
    return cat(std::array{neg(second), first}, x.shape());
  };
  return add(mul(x, cos), mul(rotate_half(), sin));
}

void make_rotary(ForwardContext& context, std::uint64_t head_size) {
  Tape& tape = context.tape;
  const NoGrad no_grad(tape);
  const Shape shape{1, 1, context.tokens(), head_size};
  const Value embedded = tape.allocate("rotary", shape, DType::f32);
  const Value cos = scale(unary("cos", embedded));
  const Value sin = scale(unary("sin", embedded));
  context.cos = to(cos, context.setup.policy.compute);
  context.sin = to(sin, context.setup.policy.compute);
}

Value causal_loss(ForwardContext& context, const Value& logits) {
  const Value wide = to(logits, DType::f32);
  return cross_entropy(view(wide, {context.batch() * context.tokens(), logits.size(-1)}));
}

Value causal_lm(ForwardContext& context, BlockForward block) {
  Tape& tape = context.tape;
  const Architecture& a = context.model.architecture;
  Value hidden;
  if (const auto unit = unit_with(context, "model.embed_tokens")) {
    const Value tokens = tape.outside({context.batch(), context.tokens()}, DType::i64);
    hidden = embedding(tokens, (*unit)["model.embed_tokens"].weight);
  } else {
    hidden = tape.allocate("received", {context.batch(), context.tokens(), a.hidden}, context.setup.policy.compute);
  }
  make_rotary(context, a.head_size);
  hidden = run_blocks(context, block, std::move(hidden));
  if (const auto unit = unit_with(context, "model.norm")) hidden = rms_norm(hidden, (*unit)["model.norm"].weight);
  const auto head = unit_with(context, "lm_head");
  if (!head) return hidden;
  const Purpose before = tape.set_purpose(Purpose::loss);
  const Value logits = linear(hidden, (*head)["lm_head"]);
  Value loss = causal_loss(context, logits);
  tape.set_purpose(before);
  return loss;
}

}  // namespace shardplan::autograd
