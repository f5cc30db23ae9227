// CLIP and SigLIP (modeling_clip.py and modeling_siglip.py of transformers 4.57): encoders of images, both encoders trained against
// each other, and CLIP's of texts, which other models read without training it.
#include "planner/activations/hf/hf_clip.h"

#include <fmt/format.h>

#include <array>
#include <utility>
#include <vector>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_diffusers.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/hf/hf_patches.h"
#include "planner/activations/torch_formula.h"
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
  // Of a text, which tokens are before another; where tokens may be padding, the two are added up in each block.
  const Value& padding = context.shared.mask;
  const Value& order = context.shared.bias;
  const Value mask = padding.defined() && order.defined() ? add(padding, order) : padding.defined() ? padding : order;
  const AttentionCall call{.mask = mask, .dropout = dropout_rate(block, "self_attn.dropout"), .causal = false};
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

// CLIPEncoder with output_hidden_states, where no gradient keeps what each block reads: it is held until whoever called the model lets
// go of it (Tape::release_kept).
Value held_block(ForwardContext& context, const UnitView& block, const Value& input) {
  if (!input.requires_grad() && context.client.recompute == RecomputeKind::none) context.tape.keep(input);
  return clip_block(context, block, input);
}

// ---- Images ----

constexpr std::string_view kPatches = "embeddings.patch_embedding";

std::uint64_t tokens_of_image(const UnitView& unit, const std::string& base) {
  return unit.module(base + "embeddings.position_embedding").input;
}

// What the first block reads of images; the first token is the model's own.
Value clip_embedded_images(ForwardContext& context, const std::string& base, std::uint64_t images) {
  const UnitView unit = required_unit(context, base + std::string(kPatches));
  const std::uint64_t tokens = tokens_of_image(unit, base);
  const auto embedded = [&] {
    Value x = patches(context, unit[base + std::string(kPatches)], tokens - 1, images);
    x = behind_token(unit.tensor(base + "embeddings.class_embedding"), x);
    return add(x, positions(context, unit, base, tokens));
  };
  const Value hidden = embedded();
  return layer_norm(required_unit(context, base + "pre_layrnorm")[base + "pre_layrnorm"], hidden);
}

// Features of all tokens.
Value clip_images(ForwardContext& context, const std::string& base) {
  const Value hidden = clip_embedded_images(context, base, context.batch());
  return run_blocks(context, clip_block, hidden, base + "encoder.layers");
}

Value clip_pooled(ForwardContext& context, const std::string& base, const Value& hidden) {
  const Value token = first_token(hidden);
  return layer_norm(required_unit(context, base + "post_layernorm")[base + "post_layernorm"], token);
}

// Without labels: what is trained is the sum of the image's features.
Value clip_vision(ForwardContext& context) {
  const std::string base = prefix_of(context, kPatches);
  Value pooled = [&] {
    const Value hidden = clip_images(context, base);
    return clip_pooled(context, base, hidden);
  }();
  if (const auto head = unit_with(context, "visual_projection")) pooled = linear(pooled, (*head)["visual_projection"]);
  return total(pooled);
}

// Mean cross entropy of each image's class. It reads the mean of some tokens.
Value class_loss(ForwardContext& context, const Value& tokens) {
  const UnitView head = required_unit(context, "classifier");
  const Value features = mean(tokens, {tokens.size(0), tokens.size(2)});
  const Purpose before = context.tape.set_purpose(Purpose::loss);
  Value loss = cross_entropy(linear(features, head["classifier"]));
  context.tape.set_purpose(before);
  return loss;
}

// ---- SigLIP (modeling_siglip.py) ----

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

// The head where the loss reads it: one query for each image, by torch.nn.MultiheadAttention, which makes all scores (torch/nn/
// functional.py, multi_head_attention_forward with need_weights).
Value pooled_by_attention(ForwardContext& context, const std::string& base, const Value& hidden) {
  const std::string name = base + "head.";
  const UnitView unit = required_unit(context, name + "attention");
  const std::uint64_t images = hidden.size(0);
  const std::uint64_t tokens = hidden.size(1);
  const std::uint64_t width = hidden.size(2);
  const std::uint64_t heads = unit.module(name + "attention.attention").attention->heads;
  const std::uint64_t rows = images * heads;
  const Value mixed = [&] {
    const Value probe = copied(unit.tensor(name + "probe"), {1, images, width});
    const std::vector<Value> weights = parts_of(unit.tensor(name + "attention.in_proj_weight"),
                                                std::array{Shape{width, width}, Shape{2 * width, width}});
    const std::vector<Value> biases =
        parts_of(unit.tensor(name + "attention.in_proj_bias"), std::array{Shape{width}, Shape{2 * width}});
    Module both = unit.module(name + "attention");
    both.output = 2 * width;
    Value q = linear(probe, weights[0], biases[0], width);
    const Value kv = [&] {
      const Value projected = linear_of_part(hidden, {&both, weights[1], biases[1], {}, both.output});
      return copied(projected, {2, tokens, images, width});
    }();
    const Shape keys{rows, tokens, width / heads};
    const std::vector<Value> parts = parts_of(kv, std::array{keys, keys});
    q = scale(view(q, {rows, 1, width / heads}));
    Value scores = matmul(q, parts[0], {rows, 1, tokens});
    scores = softmax(scores);
    return matmul(scores, parts[1], q.shape());
  }();
  const Value attended = linear(view(mixed, {images, width}), unit[name + "attention.out_proj"]);
  Value output = layer_norm(unit[name + "layernorm"], attended);
  output = linear(output, unit[name + "mlp.fc1"]);
  output = activate(output, unit, name + "mlp.act");
  return add(attended, linear(output, unit[name + "mlp.fc2"]));
}

std::string siglip_base(const ForwardContext& context) {
  return prefix_of(context, kPatches);
}

// Without labels: what is trained is the sum of the features.
Value siglip_vision(ForwardContext& context) {
  const Value hidden = siglip_features(context, siglip_base(context), context.batch());
  const std::vector<Value> head = pooling_head(context, siglip_base(context), hidden);
  return total(hidden);
}

Value siglip_classes(ForwardContext& context) {
  const Value hidden = siglip_features(context, siglip_base(context), context.batch());
  const std::vector<Value> pooled = pooling_head(context, siglip_base(context), hidden);
  return class_loss(context, hidden);
}

// Of the patches, without the model's own token.
Value clip_classes(ForwardContext& context) {
  const std::string base = prefix_of(context, kPatches);
  const Value hidden = clip_images(context, base);
  const Value pooled = [&] {
    const NoGrad not_in_the_loss(context.tape);
    return clip_pooled(context, base, hidden);
  }();
  return class_loss(context, slice(hidden, {hidden.size(0), hidden.size(1) - 1, hidden.size(2)}));
}

// ---- Texts ----

// CLIPEncoder with output_hidden_states: what each block reads stays.
Value kept_block(ForwardContext& context, const UnitView& block, const Value& input) {
  context.shared.states.push_back(input);
  return clip_block(context, block, input);
}

// _create_4d_causal_attention_mask: of the model's dtype, for all samples.
Value text_order(ForwardContext& context, std::uint64_t tokens, DType dtype) {
  const Value whole = context.tape.allocate("masked_fill", {tokens, tokens}, dtype);
  return expand(whole, {context.batch(), 1, tokens, tokens});
}

// Features of a text's tokens behind the blocks, and what the last norm makes of them.
Value text_features(ForwardContext& context, const std::string& base, std::uint64_t tokens, BlockForward block,
                    bool causal) {
  const Value ids = context.tape.outside({context.batch(), tokens}, DType::i64);
  const UnitView unit = required_unit(context, base + "embeddings.token_embedding");
  if (tokens > unit.module(base + "embeddings.position_embedding").input) {
    throw NotModelled("texts of more tokens than the encoder has positions");
  }
  Value hidden = [&] {
    const Value words = embedding(ids, unit[base + "embeddings.token_embedding"].weight);
    return add(words, positions(context, unit, base, tokens));
  }();
  if (causal) context.shared.bias = text_order(context, tokens, hidden.dtype());
  hidden = run_blocks(context, block, std::move(hidden), base + "encoder.layers");
  context.shared.bias.reset();
  return layer_norm(required_unit(context, base + "final_layer_norm")[base + "final_layer_norm"], hidden);
}

// ---- Images and texts against each other ----

constexpr const char* kImages = "vision_model.";
constexpr const char* kTexts = "text_model.";

Value text_states(ForwardContext& context, bool causal) {
  if (context.client.mask != MaskKind::none) context.shared.mask = padding_of_pairs(context);
  Value states = text_features(context, kTexts, context.tokens(), clip_block, causal);
  context.shared.mask.reset();
  return states;
}

Value projected(ForwardContext& context, const std::string& name, const Value& x) {
  return linear(x, required_unit(context, name)[name]);
}

// x / x.norm(dim=-1): CLIP's operation by operation, SigLIP's torch.linalg.vector_norm, which keeps what it reads and what it says.
Value of_length_one(const Value& x, bool one_kernel) {
  return div(x, one_kernel ? norm_of_rows(x) : pow(sum_over(pow(x), {x.size(0), 1})));
}

// How alike each text and each image are, [texts, images].
Value likeness(ForwardContext& context, const Value& text, const Value& image) {
  const Value products = matmul(text, image, {text.size(0), image.size(0)});
  return mul(products, unary_of_output("exp", required_unit(context, "logit_scale").tensor("logit_scale")));
}

// clip_loss: a text's image among all of them, and an image's text.
Value clip(ForwardContext& context) {
  if (has_module(context, "classifier")) return clip_classes(context);
  Tape& tape = context.tape;
  const Value hidden = clip_images(context, kImages);
  Value image = clip_pooled(context, kImages, hidden);
  const Value states = text_states(context, true);
  const std::array places{tape.allocate("arange", {context.batch()}, DType::i64),
                          tape.allocate("argmax", {context.batch()}, DType::i64)};
  Value text = index_at(states, places, {context.batch(), states.size(2)});
  image = projected(context, "visual_projection", image);
  text = projected(context, "text_projection", text);
  image = of_length_one(image, false);
  text = of_length_one(text, false);
  const Purpose before = tape.set_purpose(Purpose::loss);
  const Value logits = likeness(context, text, image);
  const auto labels = [&] { return tape.allocate("arange", {context.batch()}, DType::i64); };
  const Value of_texts = cross_entropy(logits, labels());
  const Value of_images = cross_entropy(logits, labels());
  Value loss = scale(add(of_texts, of_images));
  tape.set_purpose(before);
  return loss;
}

// Each text with each image: whether they belong together.
Value siglip(ForwardContext& context) {
  if (has_module(context, "classifier")) return siglip_classes(context);
  if (!has_module(context, fmt::format("{}head.attention", kImages)))
    throw NotModelled("images without a pooling head");
  Tape& tape = context.tape;
  const Value hidden = siglip_features(context, kImages, context.batch());
  Value image = pooled_by_attention(context, kImages, hidden);
  const Value states = text_states(context, false);
  Value text = slice(states, {states.size(0), states.size(2)});
  text = projected(context, std::string(kTexts) + "head", text);
  image = of_length_one(image, true);
  text = of_length_one(text, true);
  const Purpose before = tape.set_purpose(Purpose::loss);
  Value logits = likeness(context, text, image);
  logits = add(logits, required_unit(context, "logit_bias").tensor("logit_bias"));
  const Value signs = tape.allocate("add", logits.shape(), DType::f32);
  const Value signed_logits = mul(signs, logits);
  const Value likelihood = neg(sum_over(unary("log_sigmoid", signed_logits), {logits.size(0)}));
  Value loss = mean(likelihood, {});
  tape.set_purpose(before);
  return loss;
}

}  // namespace

Value siglip_features(ForwardContext& context, const std::string& base, std::uint64_t images) {
  const UnitView unit = required_unit(context, base + std::string(kPatches));
  const std::uint64_t tokens = tokens_of_image(unit, base);
  Value hidden = [&] {
    const Value x = patches(context, unit[base + std::string(kPatches)], tokens, images);
    return add(x, positions(context, unit, base, tokens));
  }();
  hidden = run_blocks(context, clip_block, std::move(hidden), base + "encoder.layers");
  return layer_norm(required_unit(context, base + "post_layernorm")[base + "post_layernorm"], hidden);
}

Value clip_image_state(ForwardContext& context, const std::string& base, std::uint64_t images, std::uint64_t state) {
  const std::string stack = base + "encoder.layers";
  const Value hidden =
      run_blocks(context, held_block, clip_embedded_images(context, base, images), stack, {.end = state});
  const auto rest = [&](const Value& x) {
    const Value last = run_blocks(context, held_block, x, stack, {.first = state});
    return clip_pooled(context, base, last);
  };
  if (hidden.requires_grad()) {
    // What is forgotten goes while the last of them runs, so each has to be there: equal ones stand for each other in passes alone.
    const bool unfolded = std::exchange(context.unfolded, true);
    context.tape.forgetting(rest, hidden);
    context.unfolded = unfolded;
  } else {
    const NoGrad not_in_the_loss(context.tape);
    rest(hidden);
  }
  return hidden;
}

TextFeatures clip_text(ForwardContext& context, const std::string& base, std::uint64_t tokens) {
  Tape& tape = context.tape;
  const Value last = text_features(context, base + "text_model.", tokens, kept_block, true);
  const std::vector<Value> states = std::exchange(context.shared.states, {});
  const Value places = tape.allocate("argmax", {context.batch()}, DType::i64);
  const Value pooled = index_at(last, places, {context.batch(), last.size(2)});
  const std::string projection = base + "text_projection";
  TextFeatures features{.states = {}, .pooled = linear(pooled, required_unit(context, projection)[projection])};
  features.states = copied(states.back(), states.back().shape());
  return features;
}

std::span<const HfFamily> hf_clip_families() {
  static constexpr HfFamily families[] = {
      {"clip", clip}, {"clip_vision_model", clip_vision}, {"siglip", siglip}, {"siglip_vision_model", siglip_vision}};
  return families;
}

}  // namespace shardplan::autograd
