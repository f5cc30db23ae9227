// Llama 4's encoder of images (modeling_llama4.py of transformers 4.57, Llama4VisionModel): patches by unfolding and a product, a token of
// the model's own behind them, rotary attention, and an adapter that makes one token of several neighbours.
#include <fmt/format.h>

#include <array>
#include <string>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_images.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_llama4.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/hf/hf_patches.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr const char* kTower = "vision_model.";

std::string in_tower(std::string_view module) {
  return fmt::format("{}{}", kTower, module);
}

Parameters parameters(ForwardContext& context, std::string_view module) {
  const std::string name = in_tower(module);
  return required_unit(context, name)[name];
}

// Llama4UnfoldConvolution. What it unfolds lies with its dims swapped; a product with a trained weight folds images and patches into one
// dim, which of several images copies (aten/src/ATen/native/LinearAlgebra.cpp, should_fold).
Value embedded_patches(ForwardContext& context, std::uint64_t count) {
  const Parameters projection = parameters(context, "patch_embedding.linear");
  const std::uint64_t images = images_of(context);
  Value columns =
      context.tape.allocate("im2col", {images, projection.module->input, count}, context.setup.policy.compute);
  columns = images > 1 ? transpose(columns) : columns.viewed({images, count, projection.module->input});
  if (projection.weight.requires_grad()) {
    const Value rows = view(columns, {images * count, columns.size(2)});
    return view(linear(rows, projection), {images, count, projection.output});
  }
  return linear(columns, projection);
}

// What the first block reads: patches and the model's own token, with their positions.
Value embedded_images(ForwardContext& context) {
  const std::string table = in_tower("positional_embedding_vlm");
  const UnitView unit = required_unit(context, in_tower("patch_embedding.linear"));
  const Value positions = unit.tensor(table);
  const std::uint64_t tokens = positions.size(0);
  Value hidden = embedded_patches(context, tokens - 1);
  const std::uint64_t images = hidden.size(0);
  const std::uint64_t width = hidden.size(2);
  hidden = cat(std::array{hidden, expand(unit.tensor(in_tower("class_embedding")), {images, 1, width})},
               {images, tokens, width});
  hidden = add(hidden, positions);
  return layer_norm(parameters(context, "layernorm_pre"), hidden);
}

Value attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("self_attn.attention").attention;
  const auto heads_of = [&](std::string_view layer) {
    return view(linear(hidden, block[layer]), {hidden.size(0), hidden.size(1), sizes.heads, sizes.head_size});
  };
  Value q = heads_of("self_attn.q_proj");
  Value k = heads_of("self_attn.k_proj");
  Value v = heads_of("self_attn.v_proj");
  rotate_patches(q, k, context.shared.tables.cos);
  q = transpose(q);
  k = transpose(k);
  v = transpose(v);
  // vision_eager_attention_forward has probabilities in the model's dtype.
  const AttentionCall call{.dropout = dropout_rate(block, "self_attn.dropout"), .causal = false};
  const Value mixed = context.attention() == AttentionKind::eager ? eager_attention(context, q, k, v, call)
                                                                  : attend(context, q, k, v, call);
  return linear(mixed, block["self_attn.o_proj"]);
}

Value tower_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value residual = input;
  Value hidden = layer_norm(block["input_layernorm"], input);
  hidden = attention(context, block, hidden);
  hidden = add(residual, hidden);
  residual = hidden;
  hidden = layer_norm(block["post_attention_layernorm"], hidden);
  hidden = plain_mlp(block, "mlp", "fc1", "fc2", hidden);
  return add(residual, hidden);
}

// pixel_shuffle: squares of `shuffle` x `shuffle` neighbours as one token, by two copies.
Value pixel_shuffled(const Value& patches, std::uint64_t side, std::uint64_t shuffle) {
  const std::uint64_t images = patches.size(0);
  const std::uint64_t left = side / shuffle;
  const std::uint64_t width = patches.size(2) * shuffle;
  Value x = contiguous(transpose(view(patches, {images, side, left, width})));
  x = contiguous(transpose(view(x, {images, left, left, width * shuffle})));
  return view(x, {images, left * left, width * shuffle});
}

// Llama4VisionPixelShuffleMLP.
Value adapted(ForwardContext& context, const Value& patches) {
  const std::string mlp = in_tower("vision_adapter.mlp");
  const UnitView unit = required_unit(context, mlp + ".fc1");
  const std::uint64_t merged = unit.module(in_tower("vision_adapter.pixel_shuffle")).output;
  const std::uint64_t side = side_of(patches.size(1));
  const std::uint64_t shuffle = side_of(merged / patches.size(2));
  if (merged != shuffle * shuffle * patches.size(2) || side % shuffle != 0 || side * side != patches.size(1))
    throw NotModelled(
        fmt::format("a pixel shuffle of {} x {} patches of {} into tokens of {}", side, side, patches.size(2), merged));
  const Parameters first = unit[mlp + ".fc1"];
  const Parameters second = unit[mlp + ".fc2"];
  if (first.module->input != merged || second.module->input != first.output)
    throw NotModelled(fmt::format("an adapter of {} and {} features behind a pixel shuffle of {}", first.module->input,
                                  second.module->input, merged));
  const Value shuffled = pixel_shuffled(patches, side, shuffle);
  unit.passes(in_tower("vision_adapter.pixel_shuffle"), shuffled);
  Value hidden = linear(shuffled, first);
  hidden = activate(hidden, unit, mlp + ".activation_fn");
  hidden = dropout(hidden, unit, mlp + ".dropout");
  return activate(linear(hidden, second), unit, mlp + ".output_activation_fn");
}

// Llama4VisionModel: [images, tokens, features].
Value encoded_images(ForwardContext& context) {
  const std::string stack = in_tower("model.layers");
  Value hidden = embedded_images(context);
  // Of each patch and pair of features a complex number. The table is no buffer: it is on the host, and comes here each time.
  context.shared.tables.cos =
      context.tape.allocate("to", {hidden.size(1), 1, attention_of(context, stack).head_size}, DType::f32);
  const Value encoded = run_blocks(context, tower_block, hidden, stack);
  hidden = layer_norm(parameters(context, "layernorm_post"), encoded);
  hidden = slice(hidden, {hidden.size(0), hidden.size(1) - 1, hidden.size(2)});
  Value features = adapted(context, hidden);
  context.shared.tables = {};
  return features;
}

}  // namespace

Value llama4_image_features(ForwardContext& context) {
  const UnitView unit = required_unit(context, in_tower("patch_embedding.linear"));
  const std::uint64_t numbers = unit[in_tower("patch_embedding.linear")].module->input;
  constexpr std::uint64_t colours = 3;
  require_image_size(context, unit.tensor(in_tower("positional_embedding_vlm")).size(0) - 1,
                     side_of(numbers / colours));
  const Value features = encoded_images(context);
  context.tape.keep(features);  // the model returns them
  const UnitView projector = required_unit(context, "multi_modal_projector.linear_1");
  const Parameters projection = projector["multi_modal_projector.linear_1"];
  if (features.size(2) != projection.module->input)
    throw NotModelled(
        fmt::format("a projector of {} features behind images of {}", projection.module->input, features.size(2)));
  Value projected = linear(view(features, {features.size(0) * features.size(1), features.size(2)}), projection);
  context.locals.push_back(projected);
  return projected;
}

}  // namespace shardplan::autograd
