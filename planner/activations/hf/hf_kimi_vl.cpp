// Kimi-VL (moonshotai/Kimi-VL-A3B-Instruct, modeling_kimi_vl.py): MoonViT on the patches of all images of a batch in one row, a
// projector that makes one token of neighbouring patches, and the language model, whose block and loss are those of
// transformers' DeepSeek-V3.
#include <fmt/format.h>

#include <array>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_deepseek.h"
#include "planner/activations/hf/hf_images.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/hf/hf_patches.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// The patches of one image; all images of a batch are of one size here.
struct Grid {
  std::uint64_t rows = 0;
  std::uint64_t columns = 0;
  std::uint64_t patches() const { return rows * columns; }
};

// Of the client's pixels, or of the tower's table of positions.
Grid grid_of(const ForwardContext& context, const UnitView& tower, const std::string& base) {
  const Shape table = tower.tensor(base + "patch_embed.pos_emb.weight").shape();
  if (context.client.image_height == 0) return {table[0], table[1]};
  const std::uint64_t side = tower[base + "patch_embed.proj"].weight.size(-1);
  const Grid grid{context.client.image_height / side, context.client.image_width / side};
  if (grid.patches() == 0) throw NotModelled("images smaller than a patch");
  return grid;
}

// Learnable2DInterpPosEmb: the table for an image of its own size, else an interpolation, which lies as the table does.
Value positions(ForwardContext& context, const Value& table, const Grid& grid) {
  const std::uint64_t width = table.size(-1);
  const Shape rows{grid.patches(), width};
  const bool fits = table.size(0) == grid.rows && table.size(1) == grid.columns;
  std::vector<Value> each;
  for (std::uint64_t i = 0; i < images_of(context); ++i) {
    each.push_back(fits ? view(table, rows) : resampled(table, rows));
  }
  return cat(each, {images_of(context) * grid.patches(), width});
}

Value patch_embed(ForwardContext& context, const UnitView& tower, const std::string& base, const Grid& grid) {
  const Parameters projection = tower[base + "patch_embed.proj"];
  const std::uint64_t patches = images_of(context) * grid.patches();
  const Value pixels = context.tape.outside({patches, projection.module->input}, context.setup.policy.compute);
  const Value x = convolution(pixels, projection.weight, projection.bias, {patches, projection.module->output});
  return add(x, positions(context, tower.tensor(base + "patch_embed.pos_emb.weight"), grid));
}

// Rope2DPosEmb: a complex number for each patch and pair of features; the table they are cut from outlives the step.
Value patch_rotations(ForwardContext& context, const Grid& grid, std::uint64_t features) {
  Tape& tape = context.tape;
  std::vector<Value> each;
  for (std::uint64_t i = 0; i < images_of(context); ++i) {
    each.push_back(tape.allocate("clone", {grid.patches(), 1, features}, DType::f32));
  }
  return tape.allocate("cat", {images_of(context) * grid.patches(), 1, features}, DType::f32);
}

// sdpa_attention and eager_attention of all patches with all: three dims are none of a kernel's, so scores of all pairs are
// tensors either way. [patches, heads, d] each.
Value attend_patches(const ForwardContext& context, const Value& q, const Value& k, const Value& v) {
  Tape& tape = context.tape;
  const std::uint64_t patches = q.size(0);
  const auto heads_first = [&](const Value& x) { return transpose(view(x, {1, patches, x.size(1), x.size(2)})); };
  const Value mask = tape.allocate("zeros", {1, patches, patches}, DType::boolean);
  const Value query = heads_first(q);
  const Value key = heads_first(k);
  const Value value = heads_first(v);
  Value mixed;
  if (context.attention() == AttentionKind::eager) {
    const Shape pairs{1, q.size(1), patches, patches};
    Value weights = scale(batched_matmul(query, key, pairs));
    weights = add_in_place(weights, mask);
    weights = to(softmax_in(weights, DType::f32), q.dtype());
    mixed = batched_matmul(weights, value, query.shape());
  } else {
    mixed = plain_attention(query, key, value, {.mask = mask});
  }
  return view(transpose(mixed), {patches, q.size(1) * v.size(2)});
}

Value tower_attention(ForwardContext& context, const UnitView& block, const Value& x) {
  const AttentionSizes& sizes = *block.module("attention").attention;
  const Value all = linear(x, block["wqkv"]);
  const Shape heads{x.size(0), sizes.heads, sizes.head_size};
  const std::vector<Value> parts = parts_of(all, std::array{heads, heads, heads});
  Value q = parts[0];
  Value k = parts[1];
  rotate_patches(q, k, context.shared.tables.cos);
  return linear(attend_patches(context, q, k, parts[2]), block["wo"]);
}

Value tower_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value residual = input;
  Value hidden = layer_norm(block["norm0"], input);
  hidden = add(residual, tower_attention(context, block, hidden));
  residual = hidden;
  hidden = plain_mlp(block, "mlp", "fc0", "fc1", layer_norm(block["norm1"], hidden));
  return add(residual, hidden);
}

// patch_merger: neighbours side by side, image by image.
std::vector<Value> merged(ForwardContext& context, const Value& x, const Grid& grid) {
  std::vector<Value> images;
  for (std::uint64_t i = 0; i < images_of(context); ++i) {
    const Value image = slice(x, {grid.patches(), x.size(1)});
    images.push_back(contiguous(image));
  }
  return images;
}

// Features of the images' tokens, [tokens, hidden].
Value image_features(ForwardContext& context) {
  const std::string base = prefix_of(context, "patch_embed.proj");
  const UnitView tower = required_unit(context, base + "patch_embed.proj");
  const Grid grid = grid_of(context, tower, base);
  const std::string stack = base + "encoder.blocks";
  const AttentionSizes& sizes = attention_of(context, stack);
  Value hidden = patch_embed(context, tower, base, grid);
  context.shared.tables.cos = patch_rotations(context, grid, sizes.head_size);
  context.never_recomputes = true;  // the tower has no gradient_checkpointing
  hidden = run_blocks(context, tower_block, std::move(hidden), stack);
  context.never_recomputes = false;
  context.shared.tables = {};
  const UnitView head = required_unit(context, base + "encoder.final_layernorm");
  hidden = layer_norm(head[base + "encoder.final_layernorm"], hidden);
  const std::vector<Value> images = merged(context, hidden, grid);
  hidden.reset();
  const UnitView projector = required_unit(context, "multi_modal_projector.linear_1");
  const auto layer = [&](std::string_view name) { return projector[fmt::format("multi_modal_projector.{}", name)]; };
  const Parameters first = layer("linear_1");
  Value features = cat(images, {images_of(context) * grid.patches(), images[0].size(1)});
  features = layer_norm(layer("pre_norm"), features);
  features = view(features, {features.elements() / first.module->input, first.module->input});
  features = activate(linear(features, first), projector, "multi_modal_projector.act");
  return linear(features, layer("linear_2"));
}

// _merge_with_image_features: words with those that stand for patches overwritten.
Value embedded(ForwardContext& context) {
  const std::string name = "language_model.model.embed_tokens";
  const UnitView unit = required_unit(context, name);
  const Value ids = context.tape.outside({context.batch(), context.tokens()}, DType::i64);
  const Value words = embedding_output(context, embedding(ids, unit[name].weight));
  if (context.client.images == 0) throw NotModelled("texts without images (--images 0)");
  const Value features = image_features(context);
  require_places(context, features);
  required_unit(context, name);  // what follows is the embedding's again
  return overwritten(words, features, context.tape.allocate("eq", {ids.elements()}, DType::boolean));
}

Value kimi_vl(ForwardContext& context) {
  return causal_lm(context, {.block = deepseek_v3_block,
                             .stack = "language_model.model.layers",
                             .embed = embedded,
                             .holds_input = true,
                             .embedding = "language_model.model.embed_tokens",
                             .last_norm = "language_model.model.norm",
                             .head = "language_model.lm_head"});
}

}  // namespace

std::span<const HfFamily> hf_kimi_vl_families() {
  static constexpr HfFamily families[] = {{"kimi_vl", kimi_vl}};
  return families;
}

}  // namespace shardplan::autograd
