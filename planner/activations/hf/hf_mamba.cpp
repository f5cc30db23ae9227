// Mamba and Falcon-Mamba as transformers computes them without mamba-ssm's kernels (slow_forward of modeling_mamba.py and
// modeling_falcon_mamba.py of transformers 4.57): the recurrence token by token, every state a tensor.
#include <array>

#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// [b, channels, s] as [b x s, channels]: a copy, unless there is one text.
Value rows_of(const Value& x) {
  const Shape rows{x.size(0) * x.size(2), x.size(1)};
  const Value last = transpose(x);
  return view(x.size(0) > 1 ? last : last.laid_out(Layout::in_order), rows);
}

// F.linear on three dims that do not lie in order: a product, and a bias that is added in place.
Value added(const Value& product, const Value& bias) {
  if (!bias.defined()) return product;
  return product.tape().options().adds_in_place ? add_in_place(product, bias) : add(product, bias);
}

struct Selected {
  Value step;  // [b, s, rank]
  Value in;    // B, [b, s, state]
  Value out;   // C
};

// FalconMamba's rms_forward: in fp32, without weights.
Value plain_rms_norm(const Value& x) {
  Value wide = to(x, DType::f32);
  wide = mul(wide, [&] {
    const Value variance = shift(mean(pow(wide)));
    return rsqrt(variance);
  }());
  return to(wide, x.dtype());
}

Selected select(const UnitView& block, const Value& hidden) {
  const std::uint64_t batch = hidden.size(0);
  const std::uint64_t tokens = hidden.size(2);
  const Parameters projection = block["mixer.x_proj"];
  const std::uint64_t rank = block.module("mixer.dt_proj").input;
  const std::uint64_t state = (projection.module->output - rank) / 2;
  const Value rows = linear(rows_of(hidden), projection);
  const Value all = view(rows, {batch, tokens, projection.module->output});
  const std::vector<Value> parts = split(all, std::array{rank, state, state});
  if (!block.has("mixer.b_layernorm")) return {parts[0], parts[1], parts[2]};
  Selected selected;
  selected.in = plain_rms_norm(parts[1]);
  selected.out = plain_rms_norm(parts[2]);
  selected.step = plain_rms_norm(parts[0]);
  return selected;
}

// softplus(dt_proj(step)), [b, channels, s]
Value time_steps(const UnitView& block, const Value& step) {
  const Parameters projection = block["mixer.dt_proj"];
  const Shape shape{step.size(0), step.size(1), projection.module->output};
  const Value rows = view(step, {shape[0] * shape[1], step.size(2)});
  const Value product = view(linear(rows, projection.weight, {}, shape[2]), shape);
  return transpose(unary("softplus", added(product, projection.bias)));
}

// Token i of [b, channels, s, state]: a view, whose gradient is as large as the whole.
Value token_of(const Value& x) {
  return slice(x, {x.size(0), x.size(1), x.size(3)});
}

// y of the recurrence state = A state + B x, y = C state; [b, channels, s].
Value scan(const UnitView& block, const Value& hidden, const Value& steps, const Selected& selected) {
  Tape& tape = hidden.tape();
  const DType dtype = hidden.dtype();
  const std::uint64_t batch = hidden.size(0);
  const std::uint64_t channels = hidden.size(1);
  const std::uint64_t tokens = hidden.size(2);
  const std::uint64_t states = selected.in.size(2);
  const Shape all{batch, channels, tokens, 1};
  Value state = tape.allocate("zeros", {batch, channels, states}, dtype);
  const Value decay = neg(unary_of_output("exp", to(block.tensor("mixer.A_log"), DType::f32)));
  const Value each_step = unsqueezed(steps, all);
  const Value discrete_a = unary_of_output("exp", mul(unsqueezed(decay, {1, channels, 1, states}), each_step));
  const Value wide_in = unsqueezed(to(selected.in, DType::f32), {batch, 1, tokens, states});
  const Value discrete_b = mul(each_step, wide_in);
  const Value input = mul(discrete_b, unsqueezed(to(hidden, DType::f32), all));
  std::vector<Value> outputs;
  for (std::uint64_t i = 0; i < tokens; ++i) {
    const Value kept = mul(token_of(discrete_a), state);
    state = add(kept, token_of(input));
    const Value narrow = to(state, dtype);
    const Value out = slice(selected.out, {batch, states, 1});
    outputs.push_back(matmul(narrow, out, {batch, channels, 1}));
  }
  const Value mixed = cat(outputs, {batch, channels, tokens});
  const Value skipped = mul(hidden, unsqueezed(block.tensor("mixer.D"), {1, channels, 1}));
  return add(mixed, skipped);
}

// attention_mask, as numbers that padding is multiplied with.
Value masked(const ForwardContext& context, const Value& x) {
  if (context.client.mask == MaskKind::none) return x;
  return mul(x, context.tape.outside({x.size(0), 1, x.size(2)}, DType::i64));
}

Value mixer(ForwardContext& context, const UnitView& block, const Value& x) {
  const std::uint64_t batch = x.size(0);
  const std::uint64_t tokens = x.size(1);
  const Parameters kernel = block["mixer.conv1d"];
  const std::uint64_t channels = kernel.module->output;
  const Value projected = transpose(linear(x, block["mixer.in_proj"]));
  const Shape half{batch, channels, tokens};
  const std::vector<Value> halves = parts_of(projected, std::array{half, half});
  Value hidden = masked(context, halves[0]);
  const std::uint64_t padded = tokens + kernel.weight.size(-1) - 1;
  hidden = convolution(hidden, kernel.weight, kernel.bias, {batch, channels, padded});
  hidden = activate(slice(hidden, half).laid_out(Layout::with_gaps), block, "mixer.act");
  hidden = masked(context, hidden);
  const Selected selected = select(block, hidden);
  const Value steps = time_steps(block, selected.step);
  const Value scanned = scan(block, hidden, steps, selected);
  const Value gated = mul(scanned, activate(halves[1], block, "mixer.gate_act"));
  const Parameters out = block["mixer.out_proj"];
  const Value rows = linear(rows_of(gated), out.weight, {}, out.module->output);
  return added(view(rows, {batch, tokens, out.module->output}), out.bias);
}

Value mamba_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const DType dtype = block["norm"].weight.dtype();
  Value hidden = rms_norm(block["norm"], to(input, dtype));
  const bool wide = block.has("residual") && block.module("residual").function == "fp32";
  const Value residual = wide ? to(input, DType::f32) : input;
  hidden = mixer(context, block, hidden);
  return add(residual, hidden);
}

// Logits of all tokens but the last are copied, and so are the labels.
Value shifted_loss(ForwardContext& context, const Value& logits) {
  const std::uint64_t batch = context.batch();
  const std::uint64_t tokens = context.tokens() - 1;
  const std::uint64_t words = logits.size(-1);
  const Value shifted = contiguous(slice(logits, {batch, tokens, words}));
  const Value labels = context.tape.allocate("labels", {batch * tokens}, DType::i64);
  return cross_entropy(view(shifted, {batch * tokens, words}), labels);
}

Value mamba(ForwardContext& context) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "embeddings");
  const UnitView words = required_unit(context, base + "embeddings");
  Value hidden =
      embedding(tape.outside({context.batch(), context.tokens()}, DType::i64), words[base + "embeddings"].weight);
  hidden = run_blocks(context, mamba_block, std::move(hidden));
  const UnitView last = required_unit(context, base + "norm_f");
  hidden = rms_norm(last[base + "norm_f"], hidden);
  const UnitView head = required_unit(context, "lm_head");
  const Purpose before = tape.set_purpose(Purpose::loss);
  const Value logits = to(linear(to(hidden, head["lm_head"].weight.dtype()), head["lm_head"]), DType::f32);
  Value loss = shifted_loss(context, logits);
  tape.set_purpose(before);
  return loss;
}

}  // namespace

std::span<const HfFamily> hf_mamba_families() {
  static constexpr HfFamily families[] = {{"mamba", mamba}, {"falcon_mamba", mamba}};
  return families;
}

}  // namespace shardplan::autograd
