// CLIP (modeling_clip.py of transformers 4.57): its encoder of images, which is trained, and that of texts, which other models
// read without training it.
#include "planner/activations/hf/hf_clip.h"

#include <array>
#include <utility>
#include <vector>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/hf/hf_patches.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

Value clip_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const std::uint64_t heads = block.module("self_attn.attention").attention->heads;
  Value q = linear(hidden, block["self_attn.q_proj"]);
  Value k = linear(hidden, block["self_attn.k_proj"]);
  Value v = linear(hidden, block["self_attn.v_proj"]);
  q = split_heads(q, heads);
  k = split_heads(k, heads);
  v = split_heads(v, heads);
  const AttentionCall call{
      .mask = context.shared.mask, .dropout = dropout_rate(block, "self_attn.dropout"), .causal = false};
  return linear(attend(context, q, k, v, call), block["self_attn.out_proj"]);
}

Value clip_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value residual = input;
  Value hidden = layer_norm(block["layer_norm1"], input);
  hidden = clip_attention(context, block, hidden);
  hidden = add(residual, hidden);
  residual = hidden;
  hidden = layer_norm(block["layer_norm2"], hidden);
  hidden = linear(hidden, block["mlp.fc1"]);
  hidden = activate(hidden, block, "mlp.act");
  hidden = linear(hidden, block["mlp.fc2"]);
  return add(residual, hidden);
}

Value positions(ForwardContext& context, const UnitView& unit, const std::string& base, std::uint64_t count) {
  const Value places = context.tape.outside({1, count}, DType::i64);  // a buffer
  return embedding(places, unit[base + "embeddings.position_embedding"].weight);
}

// Without labels: what is trained is the sum of the image's features.
Value clip_vision(ForwardContext& context) {
  const std::string base = prefix_of(context, "embeddings.patch_embedding");
  const UnitView unit = required_unit(context, base + "embeddings.patch_embedding");
  const std::uint64_t tokens = context.model.architecture.max_positions;
  Value pooled;
  {
    const auto embedded = [&] {
      Value x = patches(context, unit[base + "embeddings.patch_embedding"], tokens - 1, context.batch());
      x = behind_token(unit.tensor(base + "embeddings.class_embedding"), x);
      return add(x, positions(context, unit, base, tokens));
    };
    Value hidden = embedded();
    hidden = layer_norm(unit[base + "pre_layrnorm"], hidden);
    const Value last = run_blocks(context, clip_block, hidden);
    pooled = first_token(last);
    const auto norm = unit_with(context, base + "post_layernorm");
    pooled = layer_norm((*norm)[base + "post_layernorm"], pooled);
  }
  if (const auto head = unit_with(context, "visual_projection")) pooled = linear(pooled, (*head)["visual_projection"]);
  return total(pooled);
}

// ---- SigLIP (modeling_siglip.py) ----

}  // namespace

Value siglip_features(ForwardContext& context, const std::string& base, std::uint64_t images) {
  const UnitView unit = required_unit(context, base + "embeddings.patch_embedding");
  const std::uint64_t tokens = unit.module(base + "embeddings.position_embedding").input;
  Value hidden = [&] {
    const Value x = patches(context, unit[base + "embeddings.patch_embedding"], tokens, images);
    return add(x, positions(context, unit, base, tokens));
  }();
  hidden = run_blocks(context, clip_block, std::move(hidden), base + "encoder.layers");
  return layer_norm(required_unit(context, base + "post_layernorm")[base + "post_layernorm"], hidden);
}

namespace {

// What the pooling head makes of them no loss here reads, but it lives until the model has returned: torch.nn.MultiheadAttention
// copies the features, and keys and values once more (torch/nn/functional.py, _in_projection_packed). Scores of the one query of
// each image are left out.
std::vector<Value> pooling_head(ForwardContext& context, const std::string& base, const Value& hidden) {
  if (!has_module(context, base + "head.attention")) return {};
  Tape& tape = context.tape;
  tape.enter(base + "head");
  const NoGrad not_in_the_loss(tape);
  const Shape one{hidden.size(0), 1, hidden.size(2)};
  Value probe = tape.allocate("repeat", one, hidden.dtype());
  Value query = tape.allocate("linear", one, hidden.dtype());
  Value rows = tape.allocate("clone", hidden.shape(), hidden.dtype());
  Shape twice = hidden.shape();
  twice.back() *= 2;
  const Value projected = tape.allocate("linear", twice, hidden.dtype());
  Value keys_and_values = tape.allocate("clone", twice, hidden.dtype());
  return {std::move(probe), std::move(query), std::move(rows), std::move(keys_and_values)};
}

std::string siglip_base(const ForwardContext& context) {
  return prefix_of(context, "embeddings.patch_embedding");
}

// Without labels: what is trained is the sum of the features.
Value siglip_vision(ForwardContext& context) {
  const Value hidden = siglip_features(context, siglip_base(context), context.batch());
  const std::vector<Value> head = pooling_head(context, siglip_base(context), hidden);
  return total(hidden);
}

// The classifier reads the mean of all patches.
Value siglip(ForwardContext& context) {
  if (!has_module(context, "classifier")) throw NotModelled("two towers that are trained together");
  const Value hidden = siglip_features(context, siglip_base(context), context.batch());
  const std::vector<Value> pooled = pooling_head(context, siglip_base(context), hidden);
  const UnitView head = required_unit(context, "classifier");
  const Value features = mean(hidden, {hidden.size(0), hidden.size(2)});
  const Purpose before = context.tape.set_purpose(Purpose::loss);
  Value loss = cross_entropy(linear(features, head["classifier"]));
  context.tape.set_purpose(before);
  return loss;
}

// ---- Texts ----

// CLIPEncoder with output_hidden_states: what each block reads stays.
Value kept_block(ForwardContext& context, const UnitView& block, const Value& input) {
  context.shared.states.push_back(input);
  return clip_block(context, block, input);
}

// _create_4d_causal_attention_mask: of the model's dtype, for all samples.
Value text_mask(ForwardContext& context, std::uint64_t tokens, DType dtype) {
  const Value whole = context.tape.allocate("masked_fill", {tokens, tokens}, dtype);
  return expand(whole, {context.batch(), 1, tokens, tokens});
}

}  // namespace

TextFeatures clip_text(ForwardContext& context, const std::string& base, std::uint64_t tokens) {
  Tape& tape = context.tape;
  const std::string model = base + "text_model.";
  const Value ids = tape.outside({context.batch(), tokens}, DType::i64);
  const UnitView unit = required_unit(context, model + "embeddings.token_embedding");
  Value hidden = [&] {
    const Value words = embedding(ids, unit[model + "embeddings.token_embedding"].weight);
    return add(words, positions(context, unit, model, tokens));
  }();
  context.shared.mask = text_mask(context, tokens, hidden.dtype());
  hidden = run_blocks(context, kept_block, std::move(hidden), model + "encoder.layers");
  context.shared.mask.reset();
  const std::vector<Value> states = std::exchange(context.shared.states, {});
  const Value last = layer_norm(required_unit(context, model + "final_layer_norm")[model + "final_layer_norm"], hidden);
  const Value places = tape.allocate("argmax", {context.batch()}, DType::i64);
  const Value pooled = index_at(last, places, {context.batch(), last.size(2)});
  const std::string projection = base + "text_projection";
  TextFeatures features{.states = {}, .pooled = linear(pooled, required_unit(context, projection)[projection])};
  features.states = copied(states.back(), states.back().shape());
  return features;
}

std::span<const HfFamily> hf_clip_families() {
  static constexpr HfFamily families[] = {
      {"clip_vision_model", clip_vision}, {"siglip_vision_model", siglip_vision}, {"siglip", siglip}};
  return families;
}

}  // namespace shardplan::autograd
