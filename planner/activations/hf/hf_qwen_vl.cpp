// Qwen2-VL and Qwen2.5-VL (modeling_qwen2_vl.py and modeling_qwen2_5_vl.py of transformers 4.57): all images' patches in one row, attention
// within windows or within an image, a call of a kernel for each; a merger, and Qwen2 rotated by places in time, height and width.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_images.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"

namespace shardplan::autograd {
namespace {

constexpr const char* kPatches = "visual.patch_embed.proj";
constexpr const char* kBlocks = "visual.blocks";
constexpr const char* kMerger = "visual.merger.mlp.0";

std::uint64_t merged_side(ForwardContext& context) {
  const UnitView merger = required_unit(context, kMerger);
  const UnitView patches = required_unit(context, kPatches);
  return side_of(merger.module(kMerger).input / patches.module(kPatches).output);
}

// The patches of one image, in rows and columns.
Grid grid_of(ForwardContext& context) {
  const ClientSetup& client = context.client;
  if (client.image_height == 0) {
    throw NotModelled("images of unknown size (say --image-size HEIGHTxWIDTH, or --images 0)");
  }
  const std::uint64_t patch = required_unit(context, kPatches)[kPatches].weight.size(-1);
  const std::uint64_t token = patch * merged_side(context);
  if (client.image_height % token != 0 || client.image_width % token != 0) {
    throw NotModelled(fmt::format("images of {} x {} pixels: the processor leaves multiples of {}", client.image_height,
                                  client.image_width, token));
  }
  return {client.image_height / patch, client.image_width / patch};
}

// get_window_index: how many patches each window has, image by image; the last of a row or column may be smaller.
std::vector<std::uint64_t> windows(const Grid& grid, std::uint64_t side, std::uint64_t images) {
  std::vector<std::uint64_t> lengths;
  for (std::uint64_t i = 0; i < images; ++i) {
    for (std::uint64_t row = 0; row < grid.height; row += side) {
      for (std::uint64_t column = 0; column < grid.width; column += side) {
        lengths.push_back(std::min(side, grid.height - row) * std::min(side, grid.width - column));
      }
    }
  }
  return lengths;
}

// x[:, :, part] of [1, heads, patches, d], views one behind the other; the backward puts their gradients together.
std::vector<Value> parts_along_patches(const Value& x, const std::vector<std::uint64_t>& lengths) {
  std::vector<Shape> shapes;
  for (const std::uint64_t length : lengths) shapes.push_back({1, x.size(1), length, x.size(3)});
  std::vector<Value> parts = parts_of(x, shapes);
  for (Value& part : parts) part = part.laid_out(x.layout());
  return parts;
}

Value tower_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("attn.attention").attention;
  const std::uint64_t patches = hidden.size(0);
  const Shape heads{patches, sizes.heads, sizes.head_size};
  const Value all = linear(hidden, block["attn.qkv"]);
  // Queries, keys and values come first, which the backward undoes by a copy.
  const std::vector<Value> three =
      parts_of(simple("permute", all, all.viewed({3, patches, all.size(1) / 3})), std::array{heads, heads, heads});
  Value q = three[0];
  Value k = three[1];
  rotate(q, k, context.shared.tables, Rotation::interleaved);
  const auto heads_first = [&](const Value& x) { return transpose(view(x, {1, patches, heads[1], heads[2]})); };
  const Grid& grid = context.shared.grid;
  const std::uint64_t images = patches / (grid.height * grid.width);
  const std::vector<std::uint64_t> lengths = sizes.window != 0
                                                 ? windows(grid, side_of(sizes.window), images)
                                                 : std::vector<std::uint64_t>(images, grid.height * grid.width);
  const std::array split{parts_along_patches(heads_first(q), lengths), parts_along_patches(heads_first(k), lengths),
                         parts_along_patches(heads_first(three[2]), lengths)};
  std::vector<Value> mixed;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    mixed.push_back(attend(context, split[0][i], split[1][i], split[2][i], {.causal = false, .returned = false}));
  }
  const Value joined = cat(mixed, {1, patches, all.size(1) / 3});
  return linear(view(joined, {patches, all.size(1) / 3}), block["attn.proj"]);
}

// The norms and the MLP of either class.
Value norm(const UnitView& unit, const std::string& name, const Value& x) {
  return unit.module(name).kind == ModuleKind::layer_norm ? layer_norm(unit[name], x) : rms_norm(unit[name], x);
}

Value tower_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const auto attended = [&] {
    const Value normed = norm(block, "norm1", input);
    return tower_attention(context, block, normed);
  };
  const Value hidden = add(input, attended());
  const auto mlp = [&] {
    const Value normed = norm(block, "norm2", hidden);
    return block.has("mlp.fc1") ? plain_mlp(block, "mlp", "fc1", "fc2", normed) : gated_mlp(block, "mlp", normed);
  };
  return add(hidden, mlp());
}

// Tokens of patches in another order, by an index that stays on the host; the kernel has it here while it runs.
Value reordered(const Value& x, std::uint64_t tokens) {
  const Value here = x.tape().allocate("to", {tokens}, DType::i64);
  return index_at(x, x.tape().outside({tokens}, DType::i64), x.shape());
}

// rot_pos_emb and what is made of it; Qwen2.5-VL brings it into the order of windows too.
RotaryTables tower_tables(ForwardContext& context, std::uint64_t patches, std::uint64_t features, bool windowed) {
  Tape& tape = context.tape;
  Value half = tape.allocate("index", {patches, features / 2}, DType::f32);
  if (windowed) half = tape.allocate("index", {patches, features / 2}, DType::f32);
  const Value both = tape.allocate("cat", {patches, 1, features}, DType::f32);
  context.locals.push_back(half);
  context.locals.push_back(both);
  return {tape.allocate("cos", both.shape(), DType::f32), tape.allocate("sin", both.shape(), DType::f32)};
}

Value embedded_patches(ForwardContext& context, std::uint64_t patches) {
  const UnitView unit = required_unit(context, kPatches);
  const Parameters projection = unit[kPatches];
  const Value pixels = context.tape.outside({patches, projection.module->input}, context.setup.policy.compute);
  return convolution(pixels, projection.weight, projection.bias, {patches, projection.module->output});
}

Value merged(ForwardContext& context, const Value& hidden) {
  const UnitView unit = required_unit(context, kMerger);
  const std::string base = "visual.merger.";
  const Value normed = norm(unit, base + "ln_q", hidden);
  const Parameters first = unit[kMerger];
  const Value tokens = view(normed, {normed.elements() / first.module->input, first.module->input});
  return linear(activate(linear(tokens, first), unit, base + "mlp.1"), unit[base + "mlp.2"]);
}

// get_image_features, which takes the images apart, and its caller, which puts them one behind the other.
Value image_features(ForwardContext& context) {
  const Grid grid = grid_of(context);
  const std::uint64_t images = images_of(context);
  const std::uint64_t patches = images * grid.height * grid.width;
  const std::uint64_t side = merged_side(context);
  const std::uint64_t tokens = patches / (side * side);
  const AttentionSizes& sizes = attention_of(context, kBlocks);
  const bool windowed = required_unit(context, kMerger).module("visual.merger.ln_q").kind == ModuleKind::rms_norm;
  Value hidden = embedded_patches(context, patches);
  context.shared.tables = tower_tables(context, patches, sizes.head_size, windowed);
  context.shared.grid = grid;
  if (windowed) hidden = reordered(hidden, tokens);
  hidden = run_blocks(context, tower_block, std::move(hidden), kBlocks);
  hidden = merged(context, hidden);
  if (windowed) hidden = reordered(hidden, tokens);
  context.shared = {};
  context.locals.clear();
  const std::vector<Value> each = parts_of(hidden, std::vector<Shape>(images, {tokens / images, hidden.size(1)}));
  Value features = cat(each, hidden.shape());
  context.locals.push_back(features);
  return features;
}

// Qwen2_5_VLRotaryEmbedding: of three places for each token.
RotaryTables text_tables(ForwardContext& context) {
  Tape& tape = context.tape;
  const NoGrad no_grad(tape);
  const std::uint64_t features = attention_of(context, "model.layers").head_size;
  const Shape places{3, context.batch(), context.tokens(), features};
  const DType dtype = context.setup.policy.parameter;
  const Value positions = tape.allocate("to", {3, context.batch(), context.tokens()}, DType::f32);
  const Value frequencies = tape.allocate("matmul", {3, context.batch(), context.tokens(), features / 2}, DType::f32);
  const Value both = tape.allocate("cat", places, DType::f32);
  const Value cos = scale(tape.allocate("cos", places, DType::f32));
  const Value sin = scale(tape.allocate("sin", places, DType::f32));
  return {to(cos, dtype), to(sin, dtype)};
}

Value text_and_images(ForwardContext& context) {
  return text_with_images(context, {.embedding = "model.embed_tokens", .features = image_features});
}

// apply_multimodal_rotary_pos_emb: each layer puts together its own tables of parts of the three.
Value text_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads = project_heads(block, hidden);
  const Value& cos = context.shared.tables.cos;
  const Shape one{cos.size(1), 1, cos.size(2), cos.size(3)};
  {
    const RotaryTables joined{context.tape.allocate("cat", one, cos.dtype()),
                              context.tape.allocate("cat", one, cos.dtype())};
    rotate(heads.q, heads.k, joined);
  }
  return attended(context, block, heads);
}

Value text_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_of(context, block, input, rms_norm, text_attention,
                  [](const UnitView& unit, const Value& x) { return gated_mlp(unit, "mlp", x); });
}

Value qwen_vl(ForwardContext& context) {
  context.never_packed = true;
  return causal_lm(context, {.block = text_block,
                             .stack = "model.layers",
                             .embed = text_and_images,
                             .masks = Masks::window_if_asked,
                             .tables = text_tables});
}

}  // namespace

std::span<const HfFamily> hf_qwen_vl_families() {
  static constexpr HfFamily families[] = {{"qwen2_vl", qwen_vl}, {"qwen2_5_vl", qwen_vl}};
  return families;
}

}  // namespace shardplan::autograd
