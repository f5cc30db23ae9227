#include "planner/activations/hf/hf_layers.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "planner/activations/adapters.h"
#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_experts.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// The function of the one activation below `name`.
std::string_view function_of(const UnitView& block, std::string_view name) {
  const Module* found = block.first_of(ModuleKind::activation, name);
  if (found == nullptr) throw NotModelled(fmt::format("{} without an activation function", name));
  return found->function;
}

Value activated(const UnitView& block, std::string_view name, std::string_view layer, const Value& x) {
  const Value gate = linear(x, block[fmt::format("{}.{}", name, layer)]);
  return activate(gate, function_of(block, name));
}

Value gated(const UnitView& block, std::string_view name, const Value& x) {
  const Value gate = activated(block, name, "gate_proj", x);
  return mul(gate, linear(x, block[fmt::format("{}.up_proj", name)]));
}

// x * rsqrt(mean(x^2) + eps)
Value divided_by_rms(const Value& x) {
  const Value inverse = [&] {
    Value variance = pow(x);
    variance = mean(variance);
    variance = shift(variance);
    return rsqrt(variance);
  }();
  return mul(x, inverse);
}

}  // namespace

Value linear(const Value& x, const Parameters& layer) {
  const Value result = base_linear(x, layer);
  return layer.adapter.a.defined() ? peft_adapted(x, result, layer) : result;
}

Value gated_mlp(const UnitView& block, std::string_view name, const Value& x) {
  const Value product = gated(block, name, x);
  return linear(product, block[fmt::format("{}.down_proj", name)]);
}

Value plain_mlp(const UnitView& block, std::string_view name, std::string_view up, std::string_view down,
                const Value& x) {
  const Value inner = activated(block, name, up, x);
  return linear(inner, block[fmt::format("{}.{}", name, down)]);
}

Value rms_norm(const Parameters& layer, const Value& x) {
  Value wide = to(x, DType::f32);
  Value variance = pow(wide);
  variance = mean(variance);
  wide = mul(wide, [&] {
    const Value shifted = shift(variance);
    return rsqrt(shifted);
  }());
  return mul(layer.weight, to(wide, x.dtype()));
}

Value rms_norm_in_fp32(const Parameters& layer, const Value& x) {
  Value wide = to(x, DType::f32);
  Value variance = pow(wide);
  variance = mean(variance);
  wide = mul(wide, [&] {
    const Value shifted = shift(variance);
    return rsqrt(shifted);
  }());
  const Value weighted = mul(layer.weight, wide);
  return to(weighted, x.dtype());
}

Value gemma_norm(const Parameters& layer, const Value& x) {
  Value output = divided_by_rms(to(x, DType::f32));
  output = mul(output, [&] {
    const Value weight = to(layer.weight, DType::f32);
    return shift(weight);
  }());
  return to(output, x.dtype());
}

Value l2_norm(const Value& x) {
  return to(divided_by_rms(to(x, DType::f32)), x.dtype());
}

Value layer_norm(const Parameters& layer, const Value& x) {
  if (!layer.weight.defined()) x.tape().passes(layer.module->name, x);
  return layer_norm(x, layer.weight, layer.bias);
}

Value olmo_norm(const Parameters&, const Value& x) {
  const Value output = layer_norm(to(x, DType::f32), Value(), Value());
  return to(output, x.dtype());
}

Value cohere_norm(const Parameters& layer, const Value& x) {
  Value wide = to(x, DType::f32);
  const Value middle = mean(wide);
  Value variance = sub(wide, middle);
  variance = pow(variance);
  variance = mean(variance);
  {
    const Value centred = sub(wide, middle);
    const Value inverse = [&] {
      const Value shifted = shift(variance);
      return rsqrt(shifted);
    }();
    wide = mul(centred, inverse);
  }
  wide = mul(to(layer.weight, DType::f32), wide);
  return to(wide, x.dtype());
}

Value nemotron_norm(const Parameters& layer, const Value& x) {
  return layer_norm(x, shift(layer.weight), layer.bias);
}

RotaryTables make_rotary(ForwardContext& context, std::uint64_t features, Rotation rotation) {
  Tape& tape = context.tape;
  const NoGrad no_grad(tape);
  const std::uint64_t s = context.tokens();
  // Positions that are counted are the same for all texts, those of a batch each text's own.
  const std::uint64_t texts = context.setup.parallel.context > 1 ? context.batch() : 1;
  const Value positions = tape.allocate("to", {texts, 1, s}, DType::f32);
  const Value frequencies = tape.allocate("matmul", {texts, features / 2, s}, DType::f32);
  if (rotation == Rotation::complex) {
    const Value ones = tape.allocate("ones", frequencies.shape(), DType::f32);
    return {scale(tape.allocate("polar", {1, 1, s, features}, DType::f32)), {}};
  }
  Value both = frequencies.viewed({texts, 1, s, features / 2});
  if (rotation != Rotation::halves) both = tape.allocate("cat", {texts, 1, s, features}, DType::f32);
  const Value cos = scale(unary("cos", both));
  const Value sin = scale(unary("sin", both));
  if (rotation == Rotation::wide_tables) return {cos, sin};
  const DType dtype = context.setup.policy.parameter;
  return {to(cos, dtype), to(sin, dtype)};
}

namespace {

Shape halved(const Value& x) {
  Shape half = x.shape();
  half.back() /= 2;
  return half;
}

// torch.cat((-second half, first half)); of neighbours instead of halves it is a stack of the same size.
Value rotate_half(const Value& x) {
  const Value first = slice(x, halved(x));
  const Value second = slice(x, halved(x));
  return cat(std::array{neg(second), first}, x.shape());
}

}  // namespace

Value rotate(const Value& x, const RotaryTables& tables) {
  const Value straight = mul(x, tables.cos);
  const Value across = mul(rotate_half(x), tables.sin);
  return add(straight, across);
}

void rotate(Value& q, Value& k, const RotaryTables& tables, Rotation rotation) {
  const DType dtype = q.dtype();
  const DType inside = rotation == Rotation::interleaved ? DType::f32 : dtype;
  const auto [narrow_q, narrow_k] = [&] {
    const Value wide_q = to(q, inside);
    const Value wide_k = to(k, inside);
    const Value rotated_q = rotate(wide_q, tables);
    const Value rotated_k = rotate(wide_k, tables);
    // Else they stay what the tables made of them: fp32 under autocast.
    const bool cast_back = rotation == Rotation::interleaved || rotation == Rotation::wide_tables;
    Value back_q = cast_back ? to(rotated_q, dtype) : rotated_q;
    Value back_k = cast_back ? to(rotated_k, dtype) : rotated_k;
    return std::pair(std::move(back_q), std::move(back_k));
  }();
  q = narrow_q;
  k = narrow_k;
}

void rotate_part(Value& q, Value& k, const RotaryTables& tables, std::uint64_t features, RotatedParts order) {
  const auto parts = [&](const Value& x) {
    Shape first = x.shape();
    Shape rest = x.shape();
    first.back() = features;
    rest.back() -= features;
    Value rotated = slice(x, first);
    Value kept = slice(x, rest);
    return std::pair(std::move(rotated), std::move(kept));
  };
  auto [q_part, q_rest] = parts(q);
  auto [k_part, k_rest] = parts(k);
  if (order == RotatedParts::one_by_one) {
    const auto joined = [&](const Value& part, const Value& rest, const Shape& shape) {
      return cat(std::array{rotate(part, tables), rest}, shape);
    };
    const Value rotated_q = joined(q_part, q_rest, q.shape());
    k = joined(k_part, k_rest, k.shape());
    q = rotated_q;
    return;
  }
  rotate(q_part, k_part, tables);
  q = cat(std::array{q_part, q_rest}, q.shape());
  k = cat(std::array{k_part, k_rest}, k.shape());
}

Value next_words(ForwardContext& context) {
  const Shape tokens{context.batch() * context.tokens()};
  if (context.setup.parallel.context > 1) return context.tape.outside(tokens, DType::i64);
  Value padded = context.tape.allocate("labels", {context.batch(), context.tokens() + 1}, DType::i64);
  return context.batch() == 1 ? padded : context.tape.allocate("labels", tokens, DType::i64);
}

Value causal_loss(ForwardContext& context, const Value& logits) {
  const Value wide = to(logits, DType::f32);
  const Value labels = next_words(context);
  return cross_entropy(view(wide, {context.batch() * context.tokens(), logits.size(-1)}), labels);
}

namespace {

// Checkpointing with adapters asks for this (peft's enable_input_require_grads).
bool embedding_requires_grad(const ForwardContext& context) {
  const auto& runs = context.held.runs;
  return context.client.recompute != RecomputeKind::none &&
         std::any_of(runs.begin(), runs.end(), [](const UnitRun& run) {
           return std::any_of(run.tensors.begin(), run.tensors.end(),
                              [](const Tensor& tensor) { return tensor.name.find(".lora_A.") != std::string::npos; });
         });
}

}  // namespace

Value embedding_output(const ForwardContext& context, const Value& x) {
  if (!embedding_requires_grad(context) || x.requires_grad()) return x;
  return x.tape().leaf(x);
}

namespace {

void make_masks(ForwardContext& context, const CausalLm& model, const AttentionSizes& sizes) {
  if (model.mask != nullptr || model.older_mask) {
    context.shared.mask = model.mask != nullptr ? model.mask(context) : make_older_mask(context, false, sizes.window);
    context.shared.window_mask = context.shared.mask;
    return;
  }
  const bool windowed = sizes.window != 0;
  const bool images = model.masks_of_images;
  const bool asked = windowed && (sizes.whole.empty() ||
                                  std::find(sizes.whole.begin(), sizes.whole.end(), false) != sizes.whole.end());
  const bool whole = model.masks != Masks::one || !windowed;
  const bool window = model.masks == Masks::both || (model.masks == Masks::one ? windowed : asked);
  if (whole) context.shared.mask = make_causal_mask(context, 0, images);
  if (window) context.shared.window_mask = make_causal_mask(context, sizes.window, images);
}

// The name of a module in this model: a bare base model has no "model." before it.
std::string_view placed(const ForwardContext& context, std::string_view module) {
  constexpr std::string_view base = "model.";
  const bool bare = module.substr(0, base.size()) == base && has_module(context, module.substr(base.size()));
  return bare ? module.substr(base.size()) : module;
}

// What the first block reads; of a later stage of a pipeline, what has come from the one before, which waits for its gradient.
Value first_features(ForwardContext& context, const CausalLm& model) {
  Tape& tape = context.tape;
  const std::string_view name = placed(context, model.embedding);
  const auto unit = unit_with(context, name);
  if (!unit) {
    const Shape shape{context.batch(), context.tokens(), context.model.architecture.hidden};
    return Tape::requiring_grad(tape.allocate("received", shape, context.setup.policy.parameter));
  }
  if (model.embed != nullptr) return model.embed(context);
  const Value tokens = tape.outside({context.batch(), context.tokens()}, DType::i64);
  Value words = embedding(tokens, (*unit)[name].weight);
  if (model.embedding_scale == EmbeddingScale::in_module) words = scale(words);
  words = embedding_output(context, words);
  return dropout(words, dropout_rate(context, placed(context, model.embedding_dropout)));
}

// What the base model returns: its locals, the first hidden features among them, are gone by then.
Value base_model(ForwardContext& context, const CausalLm& model) {
  Tape& tape = context.tape;
  const Architecture& a = context.model.architecture;
  const AttentionSizes& sizes = attention_of(context, model.stack);
  Value embedded = first_features(context, model);
  if (model.holds_input) context.locals.push_back(embedded);
  if (model.embedding_scale == EmbeddingScale::at_once) embedded = scale(embedded);
  context.shared.positions = {tape.allocate("arange", {context.tokens()}, DType::i64)};
  make_masks(context, model, sizes);
  const std::uint64_t features = sizes.rotary_size != 0 ? sizes.rotary_size : a.head_size;
  if (model.tables != nullptr) {
    context.shared.tables = model.tables(context);
  } else if (!model.own_tables) {
    context.shared.tables = make_rotary(context, features, model.rotation);
  }
  if (model.two_tables) context.shared.window_tables = make_rotary(context, features, model.rotation);
  Value hidden = model.embedding_scale == EmbeddingScale::after_masks ? scale(embedded) : embedded;
  hidden = dropout(hidden, dropout_rate(context, placed(context, model.late_dropout)));
  hidden = run_blocks(context, model.block, std::move(hidden), model.stack);
  const std::string_view norm = placed(context, model.last_norm);
  if (const auto unit = unit_with(context, norm)) hidden = model.norm((*unit)[norm], hidden);
  return hidden;
}

}  // namespace

Value causal_lm(ForwardContext& context, const CausalLm& model) {
  Tape& tape = context.tape;
  context.never_caches = model.never_caches;
  context.hands_all_tables = model.hands_all_tables;
  Value hidden = base_model(context, model);
  context.shared = {};
  context.base_locals.clear();
  const auto head = unit_with(context, model.head);
  if (!head) {
    context.locals.clear();
    if (!context.routed.empty()) throw NotModelled("output_router_logits of layers on other ranks");
    Value loss = label_loss(context, model.head, hidden);
    tape.release_kept();
    return loss;
  }
  const Purpose before = tape.set_purpose(Purpose::loss);
  if (model.fused_loss != nullptr) {
    Value loss = model.fused_loss(context, (*head)[model.head], hidden);
    tape.release_kept();
    tape.set_purpose(before);
    return loss;
  }
  Value logits = linear(hidden, (*head)[model.head]);
  if (model.scaled_logits) logits = scale(logits);
  if (has_module(context, "logits_softcap")) {
    logits = scale(logits);
    logits = unary_of_output("tanh", logits);
    logits = scale(logits);
  }
  if (context.client.keeps_outputs && model.loss == nullptr) tape.keep(logits);
  Value loss = model.loss != nullptr ? model.loss(context, std::move(logits)) : causal_loss(context, logits);
  if (!context.routed.empty()) {
    loss = add_in_place(loss, scale(balancing_loss(context, model.routers_say)));
    context.routed.clear();
  }
  context.locals.clear();
  if (!context.client.keeps_outputs) tape.release_kept();
  tape.set_purpose(before);
  return loss;
}

}  // namespace shardplan::autograd
