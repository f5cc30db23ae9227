// Mamba, Falcon-Mamba and Jamba as transformers computes them without mamba-ssm's kernels (slow_forward of modeling_mamba.py,
// modeling_falcon_mamba.py and modeling_jamba.py of transformers 4.57): the recurrence token by token, every state a tensor.
#include "planner/activations/hf/hf_mamba.h"

#include <fmt/format.h>

#include <array>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_experts.h"
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

constexpr std::string_view kJambaMixer = "mamba";

// The modules of a block's mixer, by their names in it.
struct Mixer {
  const UnitView& block;
  std::string_view name;  // "mixer"

  std::string whole(std::string_view part) const { return fmt::format("{}.{}", name, part); }
  bool has(std::string_view part) const { return block.has(whole(part)); }
  Parameters operator[](std::string_view part) const { return block[whole(part)]; }
  Value tensor(std::string_view part) const { return block.tensor(whole(part)); }
  const Module& module(std::string_view part) const { return block.module(whole(part)); }
};

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

Selected select(const Mixer& mixer, const Value& hidden) {
  const std::uint64_t batch = hidden.size(0);
  const std::uint64_t tokens = hidden.size(2);
  const Parameters projection = mixer["x_proj"];
  const std::uint64_t rank = mixer.module("dt_proj").input;
  const std::uint64_t state = (projection.module->output - rank) / 2;
  const Value rows = linear(rows_of(hidden), projection);
  const Value all = view(rows, {batch, tokens, projection.module->output});
  const std::vector<Value> parts = split(all, std::array{rank, state, state});
  if (!mixer.has("b_layernorm")) return {parts[0], parts[1], parts[2]};
  Selected selected;
  if (mixer["b_layernorm"].weight.defined()) {  // Jamba's
    selected.step = rms_norm(mixer["dt_layernorm"], parts[0]);
    selected.in = rms_norm(mixer["b_layernorm"], parts[1]);
    selected.out = rms_norm(mixer["c_layernorm"], parts[2]);
    return selected;
  }
  selected.in = plain_rms_norm(parts[1]);
  selected.out = plain_rms_norm(parts[2]);
  selected.step = plain_rms_norm(parts[0]);
  return selected;
}

// softplus(dt_proj(step)), [b, channels, s]
Value time_steps(const Mixer& mixer, const Value& step) {
  const Parameters projection = mixer["dt_proj"];
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
Value scan(const Mixer& mixer, const Value& hidden, const Value& steps, const Selected& selected) {
  Tape& tape = hidden.tape();
  const DType dtype = hidden.dtype();
  const std::uint64_t batch = hidden.size(0);
  const std::uint64_t channels = hidden.size(1);
  const std::uint64_t tokens = hidden.size(2);
  const std::uint64_t states = selected.in.size(2);
  const Shape all{batch, channels, tokens, 1};
  Value state = tape.allocate("zeros", {batch, channels, states}, dtype);
  const Value decay = neg(unary_of_output("exp", to(mixer.tensor("A_log"), DType::f32)));
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
  const Value skipped = mul(hidden, unsqueezed(mixer.tensor("D"), {1, channels, 1}));
  return add(mixed, skipped);
}

// attention_mask, as numbers that padding is multiplied with; Jamba leaves out one of ones.
Value masked(const ForwardContext& context, const Mixer& mixer, const Value& x) {
  const MaskKind mask = context.client.mask;
  if (mask == MaskKind::none || (mask == MaskKind::ones && mixer.name == kJambaMixer)) return x;
  return mul(x, context.tape.outside({x.size(0), 1, x.size(2)}, DType::i64));
}

Value mixed(ForwardContext& context, const Mixer& mixer, const Value& x) {
  const std::uint64_t batch = x.size(0);
  const std::uint64_t tokens = x.size(1);
  const Parameters kernel = mixer["conv1d"];
  const std::uint64_t channels = kernel.module->output;
  const Value projected = transpose(linear(x, mixer["in_proj"]));
  const Shape half{batch, channels, tokens};
  const std::vector<Value> halves = parts_of(projected, std::array{half, half});
  Value hidden = masked(context, mixer, halves[0]);
  const std::uint64_t padded = tokens + kernel.weight.size(-1) - 1;
  hidden = convolution(hidden, kernel.weight, kernel.bias, {batch, channels, padded});
  hidden = activate(slice(hidden, half).laid_out(Layout::with_gaps), mixer.module("act").function);
  hidden = masked(context, mixer, hidden);
  const Selected selected = select(mixer, hidden);
  const Value steps = time_steps(mixer, selected.step);
  const Value scanned = scan(mixer, hidden, steps, selected);
  const Value gated = mul(scanned, activate(halves[1], mixer.module("gate_act").function));
  const Parameters out = mixer["out_proj"];
  const Value rows = linear(rows_of(gated), out.weight, {}, out.module->output);
  return added(view(rows, {batch, tokens, out.module->output}), out.bias);
}

Value mamba_mixer(ForwardContext& context, const UnitView& block, const Value& x) {
  return mixed(context, {block, "mixer"}, x);
}

Value mamba_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_around(context, block, input, mamba_mixer);
}

// Logits of all tokens but the last are copied, and so are the labels.

Value mamba(ForwardContext& context) {
  return state_space_lm(context, mamba_block, shifted_loss_of_all);
}

// ---- Jamba: attention without positions in place of some mixers, experts in place of some MLPs ----

constexpr ExpertNames kJambaNames{"feed_forward", "gate_proj", "up_proj", "down_proj", "router"};

Value jamba_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads = project(block, hidden);
  split(heads, sizes_of(block));
  return attended_repeated(context, block, heads);
}

Value jamba_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value hidden = rms_norm(block["input_layernorm"], input);
  hidden = block.has("self_attn.attention") ? jamba_attention(context, block, hidden)
                                            : mixed(context, {block, kJambaMixer}, hidden);
  const Value residual = add(input, hidden);
  hidden = rms_norm(block["pre_ff_layernorm"], residual);
  hidden = block.has("feed_forward.router") ? mixture(context, block, kJambaNames, hidden)
                                            : gated_mlp(block, "feed_forward", hidden);
  return add(residual, hidden);
}

// _update_causal_mask: whichever attention is asked for, and whether or not a token is padding.
Value jamba_mask(ForwardContext& context) {
  Tape& tape = context.tape;
  const NoGrad no_grad(tape);
  const std::uint64_t s = context.tokens();
  const DType dtype = context.setup.policy.parameter;
  Value mask = tape.allocate("full", {1, 1, s, s}, dtype);
  mask = tape.allocate("triu", {1, 1, s, s}, dtype);
  if (context.client.mask == MaskKind::none) return mask.viewed({context.batch(), 1, s, s});
  return tape.allocate("clone", {context.batch(), 1, s, s}, dtype);
}

Value jamba(ForwardContext& context) {
  return causal_lm(context, {.block = jamba_block,
                             .last_norm = "model.final_layernorm",
                             .mask = jamba_mask,
                             .never_caches = true,
                             .own_tables = true});
}

}  // namespace

Value block_around(ForwardContext& context, const UnitView& block, const Value& input, BlockForward mixer) {
  const DType dtype = block["norm"].weight.dtype();
  Value hidden = rms_norm(block["norm"], to(input, dtype));
  const bool wide = block.has("residual") && block.module("residual").function == "fp32";
  const Value residual = wide ? to(input, DType::f32) : input;
  hidden = mixer(context, block, hidden);
  return add(residual, hidden);
}

Value state_space_lm(ForwardContext& context, BlockForward block,
                     Value (*loss)(ForwardContext& context, const Value& logits)) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "embeddings");
  const UnitView words = required_unit(context, base + "embeddings");
  Value hidden =
      embedding(tape.outside({context.batch(), context.tokens()}, DType::i64), words[base + "embeddings"].weight);
  hidden = run_blocks(context, block, std::move(hidden));
  const UnitView last = required_unit(context, base + "norm_f");
  hidden = rms_norm(last[base + "norm_f"], hidden);
  const UnitView head = required_unit(context, "lm_head");
  const Purpose before = tape.set_purpose(Purpose::loss);
  const Value logits = to(linear(to(hidden, head["lm_head"].weight.dtype()), head["lm_head"]), DType::f32);
  Value result = loss(context, logits);
  tape.set_purpose(before);
  return result;
}

std::span<const HfFamily> hf_mamba_families() {
  static constexpr HfFamily families[] = {{"mamba", mamba}, {"falcon_mamba", mamba}, {"jamba", jamba}};
  return families;
}

}  // namespace shardplan::autograd
