// Llama and its kin with the kernels of Liger (liger_kernel.transformers.apply_liger_kernel_to_llama and its kin, as they come:
// rope, rms_norm, swiglu, fused_linear_cross_entropy), at commit ead96b6. Attention stays transformers'.
#include <array>

#include "base/bytes.h"
#include "base/checked.h"
#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// Streaming multiprocessors of the A100, the GPU of compute capability 8.0 that these profiles describe: the backward of the norm
// sums the weight's gradient in a row for each.
constexpr std::uint64_t kMultiprocessors = 108;

// ops/rms_norm.py, LigerRMSNormFunction with casting_mode llama: the gradient is written over the incoming one.
Value liger_norm(const Parameters& layer, const Value& x) {
  Tape& tape = x.tape();
  Value y = tape.allocate("liger rms_norm", x.shape(), x.dtype());
  std::vector<Value> saved{x, layer.weight, tape.allocate("rstd", {x.elements() / x.size(-1)}, DType::f32)};
  const std::array inputs{x, layer.weight};
  return tape.record("liger rms_norm", inputs, std::move(y), std::move(saved),
                     [width = x.size(-1), dtype = layer.weight.dtype(), wanted = layer.weight.requires_grad()](
                         Tape& t, std::span<const Value>, std::vector<Value>& incoming) {
                       const Value rows =
                           t.workspace("dW of each multiprocessor", bytes_for(DType::f32, kMultiprocessors * width));
                       Value sum = t.allocate("dW", {width}, DType::f32);
                       if (dtype != DType::f32) sum = t.allocate("dW", {width}, dtype);
                       std::vector<Value> gradients;
                       gradients.push_back(std::move(incoming[0]));
                       gradients.push_back(wanted ? std::move(sum) : Value());
                       return gradients;
                     });
}

// ops/swiglu.py, LigerSiLUMulFunction: gradients are written over what was saved.
Value silu_and_multiply(const Value& gate, const Value& up) {
  Tape& tape = gate.tape();
  const std::array inputs{gate, up};
  return tape.record("liger swiglu", inputs, tape.allocate("liger swiglu", gate.shape(), gate.dtype()), {gate, up},
                     [](Tape&, std::span<const Value> saved, std::vector<Value>&) {
                       return std::vector<Value>(saved.begin(), saved.end());
                     });
}

Value liger_mlp(const UnitView& block, const Value& x) {
  const Value product = [&] {
    const Value gate = linear(x, block["mlp.gate_proj"]);
    return silu_and_multiply(gate, linear(x, block["mlp.up_proj"]));
  }();
  return linear(product, block["mlp.down_proj"]);
}

// ops/rope.py, LigerRopeFunction: queries and keys are rotated where they lie, and so are their gradients.
void rotate_in_place(Value& q, Value& k, const RotaryTables& tables) {
  const std::array inputs{q, k};
  std::vector<Value> rotated =
      q.tape().record("liger rope", inputs, {q.detached(), k.detached()}, {tables.cos, tables.sin},
                      [](Tape&, std::span<const Value>, std::vector<Value>& incoming) { return std::move(incoming); });
  q = std::move(rotated[0]);
  k = std::move(rotated[1]);
}

Value liger_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("self_attn.attention").attention;
  Value q = split_heads(linear(hidden, block["self_attn.q_proj"]), sizes.heads);
  Value k = split_heads(linear(hidden, block["self_attn.k_proj"]), sizes.kv_heads);
  Value v = split_heads(linear(hidden, block["self_attn.v_proj"]), sizes.kv_heads);
  rotate_in_place(q, k, context.shared.tables);
  cache(context, k, v);
  const Value mixed = attend(
      context, q, k, v, {.mask = mask_of(context, block, sizes), .dropout = dropout_rate(block, "self_attn.dropout")});
  return linear(mixed, block["self_attn.o_proj"]);
}

Value liger_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value residual = input;
  Value hidden = liger_norm(block["input_layernorm"], input);
  hidden = liger_attention(context, block, hidden);
  hidden = add(residual, hidden);
  residual = hidden;
  hidden = liger_norm(block["post_attention_layernorm"], hidden);
  hidden = liger_mlp(block, hidden);
  return add(residual, hidden);
}

std::uint64_t next_power_of_2(std::uint64_t value) {
  std::uint64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

// The chunks of ops/fused_linear_cross_entropy.py: logits of one, over which their gradient is written; those of the one before are
// still there when the next are made.
void run_chunks(Tape& tape, const Value& hidden, const Value& weight) {
  const std::uint64_t tokens = hidden.elements() / hidden.size(-1);
  const std::uint64_t words = weight.size(0);
  const std::uint64_t width = weight.size(1);
  const std::uint64_t chunk = next_power_of_2(divide_up(tokens, divide_up(words, width)));
  Value logits;
  for (std::uint64_t done = 0; done < tokens; done += chunk) {
    const std::uint64_t rows = std::min(chunk, tokens - done);
    logits = tape.allocate("logits of a chunk", {rows, words}, hidden.dtype());
    {
      const Value part = tape.allocate("gradient of a chunk", {rows, width}, hidden.dtype());
    }
    if (!weight.requires_grad()) continue;
    const Value product = tape.allocate("gradient of the head by a chunk", weight.shape(), weight.dtype());
    if (weight.dtype() != DType::f32) {
      const Value wide = tape.allocate("gradient of the head by a chunk", weight.shape(), DType::f32);
    }
  }
}

// LigerFusedLinearCrossEntropyFunction: gradients are made in the forward and kept for the backward.
Value fused_linear_cross_entropy(ForwardContext& context, const Parameters& head, const Value& hidden) {
  if (head.adapter.a.defined() || head.bias.defined()) throw NotModelled("a head with an adapter or a bias");
  Tape& tape = context.tape;
  const std::uint64_t tokens = context.batch() * context.tokens();
  const Value labels = next_words(context);
  const Value features = view(hidden, {tokens, hidden.size(-1)});
  std::vector<Value> gradients{tape.allocate("gradient of the features", features.shape(), features.dtype())};
  const Value& weight = head.weight;
  if (weight.requires_grad())
    gradients.push_back(tape.allocate("gradient of the head", weight.shape(), weight.dtype()));
  {
    const std::array losses{tape.allocate("losses", {tokens}, DType::f32),
                            tape.allocate("mask", {tokens}, DType::boolean)};
    run_chunks(tape, features, weight);
  }
  const std::array inputs{features, weight};
  return tape.record("liger fused_linear_cross_entropy", inputs, tape.allocate("loss", {}, DType::f32), gradients,
                     [](Tape&, std::span<const Value> saved, std::vector<Value>&) {
                       std::vector<Value> result(saved.begin(), saved.end());
                       result.resize(2);
                       return result;
                     });
}

Value liger_llama(ForwardContext& context) {
  return causal_lm(context, {.block = liger_block, .norm = liger_norm, .fused_loss = fused_linear_cross_entropy});
}

Value liger_qwen2(ForwardContext& context) {
  return causal_lm(context, {.block = liger_block,
                             .norm = liger_norm,
                             .masks = Masks::window_if_asked,
                             .fused_loss = fused_linear_cross_entropy});
}

}  // namespace

std::span<const HfFamily> hf_liger_families() {
  static constexpr HfFamily families[] = {{"llama", liger_llama}, {"mistral", liger_llama}, {"qwen2", liger_qwen2}};
  return families;
}

}  // namespace shardplan::autograd
