#include "planner/activations/hf/hf_layers.h"

#include <array>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

Value linear(const Value& x, const Parameters& layer) {
  return linear(x, layer.weight, layer.bias, layer.module->output);
}

Value rms_norm(const Value& x, const Value& weight) {
  Value wide = to(x, DType::f32);
  const Value variance = mean(pow(wide));
  wide = mul(wide, rsqrt(shift(variance)));
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

void rotate(Value& q, Value& k, const ForwardContext& context) {
  const Value rotated_q = rotate(q, context.cos, context.sin);
  const Value rotated_k = rotate(k, context.cos, context.sin);
  q = rotated_q;
  k = rotated_k;
}

void make_rotary(ForwardContext& context, std::uint64_t head_size) {
  Tape& tape = context.tape;
  const NoGrad no_grad(tape);
  const std::uint64_t s = context.tokens();
  const Value positions = tape.allocate("to", {1, 1, s}, DType::f32);
  const Value frequencies = tape.allocate("matmul", {1, head_size / 2, s}, DType::f32);
  const Value both = tape.allocate("cat", {1, 1, s, head_size}, DType::f32);
  const Value cos = scale(unary("cos", both));
  const Value sin = scale(unary("sin", both));
  context.cos = to(cos, context.setup.policy.compute);
  context.sin = to(sin, context.setup.policy.compute);
}

Value causal_loss(ForwardContext& context, const Value& logits) {
  Tape& tape = context.tape;
  const Value wide = to(logits, DType::f32);
  // Labels are shifted by padding and slicing; of more than one text, the slice has gaps and is copied.
  const Value padded = tape.allocate("labels", {context.batch(), context.tokens() + 1}, DType::i64);
  const Value labels =
      context.batch() == 1 ? padded : tape.allocate("labels", {context.batch() * context.tokens()}, DType::i64);
  return cross_entropy(view(wide, {context.batch() * context.tokens(), logits.size(-1)}), labels);
}

namespace {

// What the base model returns: its locals, the first hidden features among them, are gone by then.
Value base_model(ForwardContext& context, BlockForward block) {
  Tape& tape = context.tape;
  const Architecture& a = context.model.architecture;
  Value embedded;
  if (const auto unit = unit_with(context, "model.embed_tokens")) {
    const Value tokens = tape.outside({context.batch(), context.tokens()}, DType::i64);
    embedded = embedding(tokens, (*unit)["model.embed_tokens"].weight);
  } else {
    embedded = tape.allocate("received", {context.batch(), context.tokens(), a.hidden}, context.setup.policy.compute);
  }
  const Value positions = tape.allocate("arange", {context.tokens()}, DType::i64);
  context.mask = make_causal_mask(context);
  make_rotary(context, a.head_size);
  Value hidden = run_blocks(context, block, embedded);
  if (const auto unit = unit_with(context, "model.norm")) hidden = rms_norm(hidden, (*unit)["model.norm"].weight);
  context.mask.reset();
  context.cos.reset();
  context.sin.reset();
  return hidden;
}

}  // namespace

Value causal_lm(ForwardContext& context, BlockForward block) {
  Tape& tape = context.tape;
  Value hidden = base_model(context, block);
  const auto head = unit_with(context, "lm_head");
  if (!head) return hidden;
  const Purpose before = tape.set_purpose(Purpose::loss);
  const Value logits = linear(hidden, (*head)["lm_head"]);
  Value loss = causal_loss(context, logits);
  tape.set_purpose(before);
  return loss;
}

}  // namespace shardplan::autograd
