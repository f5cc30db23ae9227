// Encoders of images (modeling_vit.py, modeling_dinov2.py of transformers 4.57).
// How many tokens there are is the model's: one for each patch, and one of its own in most.
#include <array>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/hf/hf_patches.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// ---- ViT and DINOv2 ----

Value vit_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const std::string inner = "attention.attention.";
  const std::uint64_t heads = block.module(inner + "attention").attention->heads;
  const Value k = split_heads(linear(hidden, block[inner + "key"]), heads);
  const Value v = split_heads(linear(hidden, block[inner + "value"]), heads);
  const Value q = split_heads(linear(hidden, block[inner + "query"]), heads);
  const double dropped = dropout_rate(block, inner + "dropout");
  const Value mixed = attend(context, q, k, v, {.dropout = dropped, .causal = false, .returned = false});
  return dropout(linear(mixed, block["attention.output.dense"]), block, "attention.output.dropout");
}

Value vit_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const Value normed = layer_norm(block["layernorm_before"], input);
  const Value mixed = vit_attention(context, block, normed);
  const Value hidden = add(mixed, input);
  Value output = layer_norm(block["layernorm_after"], hidden);
  output = activate(linear(output, block["intermediate.dense"]), block, "act");
  output = dropout(linear(output, block["output.dense"]), block, "output.dropout");
  return add(output, hidden);
}

Value dinov2_mlp(const UnitView& block, const Value& x) {
  if (!block.has("mlp.weights_in")) {
    Value hidden = linear(x, block["mlp.fc1"]);
    hidden = activate(hidden, block, "mlp.act");
    return linear(hidden, block["mlp.fc2"]);
  }
  const Value both = linear(x, block["mlp.weights_in"]);
  const std::vector<Value> halves = split(both, std::array{both.size(-1) / 2, both.size(-1) / 2});
  const Value gated = mul(unary("silu", halves[0]), halves[1]);
  return linear(gated, block["mlp.weights_out"]);
}

Value dinov2_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const Value normed = layer_norm(block["norm1"], input);
  Value mixed = vit_attention(context, block, normed);
  mixed = mul(mixed, block.tensor("layer_scale1.lambda1"));
  const double rate = dropout_rate(block, "drop_path");
  const Value hidden = add(drop_path(mixed, rate), input);
  Value output = layer_norm(block["norm2"], hidden);
  output = dinov2_mlp(block, output);
  output = mul(output, block.tensor("layer_scale2.lambda1"));
  return add(drop_path(output, rate), hidden);
}

// Features of all tokens, behind the last norm.
Value vit_encoder(ForwardContext& context, BlockForward block) {
  const std::string base = prefix_of(context, "embeddings.patch_embeddings.projection");
  const UnitView unit = required_unit(context, base + "embeddings.patch_embeddings.projection");
  const auto embedded = [&] {
    Value tokens = patches(context, unit[base + "embeddings.patch_embeddings.projection"],
                           context.model.architecture.max_positions - 1, context.batch());
    tokens = behind_token(unit.tensor(base + "embeddings.cls_token"), tokens);
    tokens = add(tokens, unit.tensor(base + "embeddings.position_embeddings"));
    return dropout(tokens, dropout_rate(context, base + "embeddings.dropout"));
  };
  const Value start = embedded();
  Value hidden = run_blocks(context, block, start);
  const auto last = unit_with(context, base + "layernorm");
  if (!last) return hidden;
  return layer_norm((*last)[base + "layernorm"], hidden);
}

// Mean cross entropy of each image's class, in the logits' dtype.
Value class_loss(ForwardContext& context, const UnitView& head, const Value& features) {
  const Purpose before = context.tape.set_purpose(Purpose::loss);
  Value loss = cross_entropy(linear(features, head["classifier"]));
  context.tape.set_purpose(before);
  return loss;
}

Value vit(ForwardContext& context, BlockForward block) {
  const Value hidden = vit_encoder(context, block);
  if (!has_module(context, "classifier")) {
    pool_aside(context, hidden);
    return total(hidden);
  }
  const UnitView head = required_unit(context, "classifier");
  return class_loss(context, head, first_token(hidden));
}

// The classifier reads the model's own token beside the mean of the patches.
Value dinov2(ForwardContext& context, BlockForward block) {
  const Value hidden = vit_encoder(context, block);
  if (!has_module(context, "classifier")) return total(hidden);
  const UnitView head = required_unit(context, "classifier");
  const Value token = first_token(hidden);
  const Value others = slice(hidden, {hidden.size(0), hidden.size(1) - 1, hidden.size(2)});
  const Value features = cat(std::array{token, mean(others, token.shape())}, {token.size(0), 2 * token.size(1)});
  return class_loss(context, head, features);
}

}  // namespace

std::span<const HfFamily> hf_vision_families() {
  static constexpr HfFamily families[] = {
      {"vit", [](ForwardContext& context) { return vit(context, vit_block); }},
      {"dinov2", [](ForwardContext& context) { return dinov2(context, dinov2_block); }}};
  return families;
}

}  // namespace shardplan::autograd
