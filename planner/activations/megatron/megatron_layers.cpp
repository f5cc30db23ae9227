#include "planner/activations/megatron/megatron_layers.h"

#include <algorithm>
#include <array>

#include "base/checked.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// Of a rank: heads of keys and values are never fewer than one.
std::uint64_t part(std::uint64_t count, std::uint64_t ranks) {
  return std::max<std::uint64_t>(count / ranks, 1);
}

LinearOptions after_norm(const MegatronContext& context) {
  return {.recomputed_input = context.selects(&MegatronClient::Modules::layernorm)};
}

// M transformer/attention.py: with per-tensor scales of this step the projection keeps what attention keeps.
LinearOptions after_attention(const MegatronContext& context) {
  const Fp8Recipe recipe = context.megatron().fp8;
  return {.original_input = recipe != Fp8Recipe::none && recipe != Fp8Recipe::delayed};
}

// A view of heads that do not lie evenly is copied to be reshaped (attention.py:1918).
bool query_is_copied(std::uint64_t heads, std::uint64_t groups) {
  return heads > groups && groups > 1;
}

// A norm of its own for each head, of a dense copy (attention.py, q_layernorm).
Value norm_heads(MegatronContext& context, const MegatronLayer& layer, const Value& x, std::uint64_t heads) {
  const Value rows = view(contiguous(x), {x.size(0) * heads, layer.head});
  return view(norm(context, rows, layer.rms_norm), x.shape());
}

Value self_attention(MegatronContext& context, const MegatronLayer& layer, const Value& x) {
  const std::uint64_t heads = layer.heads / context.tensor();
  const std::uint64_t groups = part(layer.kv_heads, context.tensor());
  const std::array widths{heads * layer.head, groups * layer.head, groups * layer.value};
  CoreAttention sizes{.heads = heads,
                      .kv_heads = groups,
                      .head = layer.head,
                      .value = layer.value,
                      .queries = context.tokens.sequence,
                      .keys = context.tokens.sequence,
                      .q_view = true,
                      .k_view = true,
                      .v_view = true};
  std::vector<Value> qkv;
  {
    const Value mixed = column_linear(context, x, widths[0] + widths[1] + widths[2], after_norm(context));
    qkv = split(mixed, widths);
  }
  if (layer.qk_norm) {
    qkv[0] = norm_heads(context, layer, qkv[0], heads);
    qkv[1] = norm_heads(context, layer, qkv[1], groups);
    sizes.q_view = sizes.k_view = false;
  }
  if (layer.rotary) {
    qkv[0] = rotate(context, qkv[0], heads, layer.head);
    qkv[1] = rotate(context, qkv[1], groups, layer.head);
    sizes.q_view = sizes.k_view = false;
  } else if (sizes.q_view && query_is_copied(heads, groups)) {
    qkv[0] = contiguous(qkv[0]);
    sizes.q_view = false;
  }
  const Value mixed_values = core_attention(context, qkv[0], qkv[1], qkv[2], sizes);
  return row_linear(context, mixed_values, x.size(-1), after_attention(context));
}

// The positions of keys are shared by all heads: one for each token.
Value latent_attention(MegatronContext& context, const MegatronLayer& layer, const Value& x) {
  const MegatronLayer::Latent& latent = *layer.latent;
  const std::uint64_t heads = layer.heads / context.tensor();
  const std::uint64_t plain = layer.head - latent.rotary;
  const bool again = context.selects(&MegatronClient::Modules::mla_up_projection);
  const auto up = [&](const Value& compressed, std::uint64_t output) {
    return column_linear(context, latent.norms ? norm(context, compressed, layer.rms_norm) : compressed, output);
  };
  const LinearOptions whole{.whole = true, .recomputed_input = after_norm(context).recomputed_input};
  Value query;
  if (latent.query_rank > 0) {
    query = up(column_linear(context, x, latent.query_rank, whole), heads * layer.head);
  } else {
    query = column_linear(context, x, heads * layer.head, after_norm(context));
  }
  Value keys_and_values;
  Value positions;
  {
    const std::array widths{latent.key_rank, latent.rotary};
    std::vector<Value> combined = split(column_linear(context, x, latent.key_rank + latent.rotary, whole), widths);
    positions = combined[1];
    if (context.splits_sequence()) {
      positions = context.tape.record("gather", std::span(&combined[1], 1),
                                      context.allocate("gathered", {context.tokens.tokens, latent.rotary}), {},
                                      [shape = combined[1].shape(), dtype = context.dtype](
                                          Tape& tape, std::span<const Value>, std::vector<Value>&) {
                                        std::vector<Value> gradients;
                                        gradients.push_back(tape.allocate("scattered", shape, dtype));
                                        return gradients;
                                      });
    }
    keys_and_values = up(combined[0], heads * (plain + layer.value));
  }
  context.use.rotary_bytes = std::max(context.use.rotary_bytes, 4 * context.tokens.sequence * latent.rotary);
  // Fused, queries are rotated in place (fused_mla_yarn_rope_apply.py:335); keys and values are new (:811). Else queries
  // are put together anew: as large.
  const std::array inputs{query, keys_and_values, positions};
  std::vector<Value> outputs;
  outputs.push_back(context.megatron().rope_fusion ? query : context.allocate("latent query", query.shape()));
  outputs.push_back(context.allocate("latent key", query.shape()));
  outputs.push_back(context.allocate("latent value", {query.size(0), heads * layer.value}));
  std::vector<Value> saved;
  saved.push_back(positions);
  std::vector<Value> qkv =
      context.tape.record("latent rope", inputs, std::move(outputs), std::move(saved),
                          [shapes = std::array{query.shape(), keys_and_values.shape(), positions.shape()},
                           dtype = context.dtype](Tape& tape, std::span<const Value>, std::vector<Value>&) {
                            std::vector<Value> gradients;
                            for (const Shape& shape : shapes)
                              gradients.push_back(tape.allocate("latent rope backward", shape, dtype));
                            return gradients;
                          });
  query.reset();
  keys_and_values.reset();
  const CoreAttention sizes{.heads = heads,
                            .kv_heads = heads,
                            .head = layer.head,
                            .value = layer.value,
                            .queries = context.tokens.sequence,
                            .keys = context.tokens.sequence,
                            .recomputed_inputs = again};
  const Value mixed = core_attention(context, qkv[0], qkv[1], qkv[2], sizes);
  qkv.clear();
  return row_linear(context, mixed, x.size(-1), after_attention(context));
}

Value cross_attention(MegatronContext& context, const MegatronLayer& layer, const Value& x, const Value& encoded) {
  const std::uint64_t heads = layer.heads / context.tensor();
  const std::array widths{heads * layer.head, heads * layer.value};
  const Value query = column_linear(context, x, heads * layer.head);
  const std::vector<Value> kv = split(column_linear(context, encoded, widths[0] + widths[1]), widths);
  const CoreAttention sizes{.heads = heads,
                            .kv_heads = heads,
                            .head = layer.head,
                            .value = layer.value,
                            .queries = context.tokens.sequence,
                            .keys = kv[0].size(0) / context.tokens.batch,
                            .k_view = true,
                            .v_view = true};
  return row_linear(context, core_attention(context, query, kv[0], kv[1], sizes), x.size(-1));
}

Value mlp(MegatronContext& context, const Value& x, std::uint64_t width, bool gated, bool bias,
          const LinearOptions& options) {
  const std::uint64_t mine = width / context.tensor();
  Value inner = column_linear(context, x, gated ? 2 * mine : mine, options);
  inner = mlp_activation(context, std::move(inner), mine, gated, bias);
  return row_linear(context, inner, x.size(-1));
}

// Routing: the product with the gate keeps its 16-bit input (M moe/moe_utils.py:1382); logits, scores, probabilities and
// the map of who goes where are [tokens, experts].
Value route(MegatronContext& context, const MegatronLayer::Experts& experts, const Value& x) {
  Tape& tape = context.tape;
  const DType dtype = context.megatron().router_fp32 ? DType::f32 : context.dtype;
  const Shape shape{x.size(0), experts.experts};
  context.use.te_products = true;
  std::vector<Value> saved;
  saved.push_back(x);
  saved.push_back(tape.allocate("router logits", shape, dtype));
  saved.push_back(tape.allocate("router scores", shape, DType::f32));
  saved.push_back(tape.allocate("routing map", shape, DType::boolean));
  // What drops tokens multiplies by a mask (M moe/moe_utils.py, apply_router_token_dropping).
  if (context.client.expert_load.capacity_factor) saved.push_back(tape.allocate("kept map", shape, DType::boolean));
  Value probabilities = tape.allocate("probabilities", shape, dtype);
  saved.push_back(probabilities);
  return tape.record("router", std::span(&x, 1), std::move(probabilities), std::move(saved),
                     [shape, dtype, input = x.shape(), compute = context.dtype](Tape& backward, std::span<const Value>,
                                                                                std::vector<Value>&) {
                       const Value logits = backward.allocate("router backward", shape, dtype);
                       std::vector<Value> gradients;
                       gradients.push_back(backward.allocate("router backward", input, compute));
                       return gradients;
                     });
}

// Pairs of a token and an expert that this rank computes, and those of its own tokens, which it sends.
struct RoutedPairs {
  std::uint64_t computed = 0;
  std::uint64_t sent = 0;
};
RoutedPairs routed_pairs(const MegatronContext& context, const MegatronLayer::Experts& experts) {
  const Parallelism& p = context.setup.parallel;
  const ExpertLoad& load = context.client.expert_load;
  Choices choices{.experts = experts.experts, .chosen = experts.chosen, .tokens = context.tokens.split};
  const std::uint64_t sent = pairs_of_first(experts.experts, choices, load);
  choices.senders = p.expert * resolved_expert_tensor(p);
  return {.computed = pairs_of_first(part(experts.experts, p.expert), choices, load), .sent = sent};
}

struct Dispatched {
  Value tokens;         // [pairs, h], by expert
  Value probabilities;  // [pairs, 1]
};

// Each pair travels to the rank of its expert and is put in order there: what is on the way is dropped; the index of the
// permutation stays (M moe/token_dispatcher.py, moe_utils.py permute).
Dispatched dispatch(MegatronContext& context, const Value& x, const Value& probabilities, const RoutedPairs& routed) {
  Tape& tape = context.tape;
  const Parallelism& p = context.setup.parallel;
  const std::uint64_t pairs = routed.computed;
  const std::uint64_t features = x.size(-1);
  const std::uint64_t group = p.expert * resolved_expert_tensor(p);
  const bool exchanges = context.megatron().token_dispatcher == TokenDispatcher::all_to_all;
  if (!exchanges && group > 1) {
    context.use_global_buffer(bytes_for(context.dtype, x.elements() * group).count());
  }
  std::vector<Value> outputs;
  {
    Value sent;
    if (exchanges) sent = context.allocate("permuted tokens", {routed.sent, features});
    Value received;
    if (exchanges && group > 1) received = context.allocate("received tokens", {pairs, features});
    sent.reset();
    outputs.push_back(context.allocate("tokens of experts", {pairs, features}));
  }
  outputs.push_back(tape.allocate("permuted probabilities", {pairs, 1}, probabilities.dtype()));
  std::vector<Value> saved;
  saved.push_back(tape.allocate("permutation", {pairs}, DType::i64));
  const std::array inputs{x, probabilities};
  std::vector<Value> results =
      tape.record("dispatch", inputs, std::move(outputs), std::move(saved),
                  [shape = x.shape(), pairs, features, dtype = context.dtype, routed = probabilities.shape(),
                   of_routed = probabilities.dtype()](Tape& backward, std::span<const Value>, std::vector<Value>&) {
                    const Value unpermuted = backward.allocate("dispatch backward", {pairs, features}, dtype);
                    std::vector<Value> gradients;
                    gradients.push_back(backward.allocate("dispatch backward", shape, dtype));
                    gradients.push_back(backward.allocate("dispatch backward", routed, of_routed));
                    return gradients;
                  });
  return {std::move(results[0]), std::move(results[1])};
}

// Experts of this rank in a grouped product or one after the other: views of one input and one output (TE
// module/grouped_linear.py:250).
Value expert_linear(MegatronContext& context, const Value& x, std::uint64_t output, std::uint64_t experts,
                    const LinearOptions& options = {}) {
  const bool fused = context.megatron().gradient_accumulation_fusion;
  const std::uint64_t input = x.size(-1);
  const std::uint64_t made = context.megatron().grouped_gemm ? experts : 1;  // gradients of weights at once
  if (context.megatron().transformer_engine) {
    context.use.te_products = true;
  } else {
    context.use.torch_products = true;
  }
  if (fused) context.use.stand_ins.emplace(output, input);
  std::vector<Value> saved;
  if (!options.recomputed_input) saved.push_back(x);
  return context.tape.record(
      "expert linear", std::span(&x, 1), context.allocate("expert linear", {x.size(0), output}), std::move(saved),
      [shape = x.shape(), input, output, made, fused, again = options.recomputed_input, dtype = context.dtype](
          Tape& tape, std::span<const Value>, std::vector<Value>&) {
        const Value recomputed = again ? tape.allocate("recomputed", shape, dtype) : Value();
        std::vector<Value> gradients;
        gradients.push_back(tape.allocate("expert linear backward", shape, dtype));
        if (!fused) {
          const Purpose before = tape.set_purpose(Purpose::gradient);
          const Value of_weights = tape.allocate("weight gradients of experts", {made, output, input}, dtype);
          tape.set_purpose(before);
        }
        return gradients;
      });
}

// silu(gate) x value x probability in one kernel keeps the product and the probabilities (M fusions/fused_bias_swiglu.py:270);
// else every factor is a tensor, and with fp32 probabilities the last product too, for a moment (moe/experts.py). `again`: they
// are dropped and computed anew (recompute module moe_act), which keeps what the kernel would.
Value weighted_activation(MegatronContext& context, Value x, const Value& probabilities, std::uint64_t width,
                          bool gated, bool again) {
  if (again || (gated && context.megatron().bias_activation_fusion)) {
    const std::array inputs{x, probabilities};
    std::vector<Value> saved{x, probabilities};
    return context.tape.record(
        "weighted activation", inputs, context.allocate("weighted activation", {x.size(0), width}), std::move(saved),
        [shapes = std::array{x.shape(), probabilities.shape()}, dtype = context.dtype, routed = probabilities.dtype()](
            Tape& tape, std::span<const Value>, std::vector<Value>&) {
          std::vector<Value> gradients;
          gradients.push_back(tape.allocate("weighted activation backward", shapes[0], dtype));
          gradients.push_back(tape.allocate("weighted activation backward", shapes[1], routed));
          return gradients;
        });
  }
  Value active;
  if (gated) {
    const std::array<std::uint64_t, 2> halves{width, width};
    const std::vector<Value> parts = split(x, halves);
    x.reset();
    active = mul(unary("silu", parts[0]), parts[1]);
  } else {
    active = unary("activation", x);
    x.reset();
  }
  return to(mul(active, probabilities), context.dtype);
}

// Back to the order of tokens, each the sum of what its experts made. In deterministic mode by index_add_, which saves its
// source (moe/moe_utils.py, unpermute).
Value combine(MegatronContext& context, const Value& outputs, std::uint64_t tokens) {
  const Parallelism& p = context.setup.parallel;
  const std::uint64_t features = outputs.size(-1);
  const std::uint64_t group = p.expert * resolved_expert_tensor(p);
  Value wide;
  if (context.megatron().token_dispatcher == TokenDispatcher::all_gather && context.megatron().router_fp32) {
    wide = context.tape.allocate("sums in fp32", {tokens * group, features}, DType::f32);
  } else if (group > 1) {
    wide = context.allocate("tokens on their way back", outputs.shape());
  }
  std::vector<Value> saved;
  if (context.megatron().deterministic_mode) saved.push_back(outputs);
  return context.tape.record(
      "combine", std::span(&outputs, 1), context.allocate("combine", {tokens, features}), std::move(saved),
      [shape = outputs.shape(), dtype = context.dtype](Tape& tape, std::span<const Value>, std::vector<Value>&) {
        std::vector<Value> gradients;
        gradients.push_back(tape.allocate("combine backward", shape, dtype));
        return gradients;
      });
}

Value mixture_of_experts(MegatronContext& context, const MegatronLayer& layer, const Value& x) {
  const MegatronLayer::Experts& experts = *layer.experts;
  const Parallelism& p = context.setup.parallel;
  const std::uint64_t width = experts.ffn / resolved_expert_tensor(p);
  const std::uint64_t mine = part(experts.experts, p.expert);
  const bool again = context.selects(&MegatronClient::Modules::moe_activation);
  Value output;
  {
    const Value probabilities = route(context, experts, x);
    Dispatched dispatched = dispatch(context, x, probabilities, routed_pairs(context, experts));
    Value inner = expert_linear(context, dispatched.tokens, layer.gated ? 2 * width : width, mine);
    dispatched.tokens.reset();
    inner = weighted_activation(context, std::move(inner), dispatched.probabilities, width, layer.gated, again);
    const Value outputs = expert_linear(context, inner, x.size(-1), mine, {.recomputed_input = again});
    inner.reset();
    output = combine(context, outputs, x.size(0));
  }
  if (experts.shared_ffn == 0) return output;
  const auto shared = [&context, &layer](const Value& input) {
    return mlp(context, input, layer.experts->shared_ffn, layer.gated, false, {});
  };
  const bool recomputed = context.selects(&MegatronClient::Modules::shared_experts);
  return add(output, recomputed ? context.tape.reentrant_checkpoint(shared, x) : shared(x));
}

Value feed_forward(MegatronContext& context, const MegatronLayer& layer, const Value& hidden) {
  const auto normed_mlp = [&context, &layer](const Value& input) {
    return mlp(context, norm(context, input, layer.rms_norm), layer.ffn, layer.gated, layer.bias, after_norm(context));
  };
  if (!layer.experts) {
    return context.selects(&MegatronClient::Modules::mlp) ? context.tape.reentrant_checkpoint(normed_mlp, hidden)
                                                          : normed_mlp(hidden);
  }
  const auto experts = [&context, &layer](const Value& input) { return mixture_of_experts(context, layer, input); };
  const Value normed = norm(context, hidden, layer.rms_norm);
  return context.selects(&MegatronClient::Modules::moe) ? context.tape.reentrant_checkpoint(experts, normed)
                                                        : experts(normed);
}

}  // namespace

Value megatron_layer_forward(MegatronContext& context, const MegatronLayer& layer, const LayerInputs& inputs) {
  Value hidden = inputs.hidden;
  const auto attend = [&](const Value& x) {
    const Value normed = norm(context, x, layer.rms_norm);
    return layer.latent ? latent_attention(context, layer, normed) : self_attention(context, layer, normed);
  };
  hidden = bias_dropout_add(context, attend(hidden), hidden, layer.bias);
  if (layer.cross_attention) {
    const Value normed = norm(context, hidden, layer.rms_norm);
    hidden = bias_dropout_add(context, cross_attention(context, layer, normed, inputs.encoded), hidden, layer.bias);
  }
  return bias_dropout_add(context, feed_forward(context, layer, hidden), hidden, layer.bias);
}

}  // namespace shardplan::autograd
