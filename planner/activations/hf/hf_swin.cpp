// Swin (modeling_swin.py of transformers 4.57): attention inside windows of an image's tokens, moved by half a window in every second
// block; between stages four tokens become one. A stage is a unit. Its attention is eager in every profile.
#include <fmt/format.h>

#include <array>
#include <cmath>

#include "base/bytes.h"
#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// Of one block: a window's side in tokens, the grid in whole windows, and whether windows are moved.
struct Windows {
  std::uint64_t side = 0;
  Grid padded;
  bool moved = false;
  std::uint64_t tokens() const { return side * side; }
  std::uint64_t of_image() const { return (padded.height / side) * (padded.width / side); }
};

// As many rows of the table of biases as there are distances in a window: (2 side - 1)^2.
std::uint64_t window_side(const Value& table) {
  return (static_cast<std::uint64_t>(std::llround(std::sqrt(static_cast<double>(table.size(0))))) + 1) / 2;
}

Windows windows_of(const Value& table, const Grid& grid, std::uint64_t number) {
  Windows windows{.side = window_side(table), .padded = {}};
  const std::uint64_t smaller = std::min(grid.height, grid.width);
  if (smaller < windows.side) throw NotModelled("a stage with fewer rows of tokens than a window has");
  windows.padded = {round_up(grid.height, windows.side), round_up(grid.width, windows.side)};
  windows.moved = number % 2 == 1 && smaller > windows.side && windows.side > 1;
  return windows;
}

// Rows of windows and back: a copy, unless a row of windows is one window.
Value regrouped(const Value& x, const Shape& shape, const Windows& windows) {
  if (windows.padded.width == windows.side || windows.side == 1) return view(x, shape);
  return copied(x, shape);
}

// get_attn_mask: which tokens of a window were neighbours before they were moved.
Value mask_of_moved(Tape& tape, const Windows& windows, DType dtype) {
  const Shape pairs{windows.of_image(), windows.tokens(), windows.tokens()};
  const Value image = tape.allocate("zeros", {1, windows.padded.height, windows.padded.width, 1}, dtype);
  const Value parts = tape.allocate("clone", image.shape(), dtype);
  const Value distances = tape.allocate("sub", pairs, dtype);
  Value mask;
  {
    const Value others = tape.allocate("ne", pairs, DType::boolean);
    mask = tape.allocate("masked_fill", pairs, dtype);
  }
  const Value same = tape.allocate("eq", pairs, DType::boolean);
  return tape.allocate("masked_fill", pairs, dtype);
}

// A number for each head and each pair of a window's tokens, by their distance.
Value bias_of_distances(const Value& table, std::uint64_t tokens) {
  const Value index = table.tape().outside({tokens, tokens}, DType::i64);  // a buffer
  const std::uint64_t heads = table.size(1);
  const Value chosen = index_at(table, index, {tokens * tokens, heads});
  const Shape shape{heads, tokens, tokens};
  return heads == 1 ? view(chosen, shape) : copied(chosen, shape);
}

// SwinAttention. x: [windows, tokens, c]
Value window_attention(const UnitView& block, const std::string& name, const Value& x, const Windows& windows,
                       const Value& mask) {
  const std::string inner = name + "attention.self.";
  const std::uint64_t heads = block.module(inner + "attention").attention->heads;
  const Value mixed = [&] {
    const Value q = split_heads(linear(x, block[inner + "query"]), heads);
    const Value k = split_heads(linear(x, block[inner + "key"]), heads);
    const Value v = split_heads(linear(x, block[inner + "value"]), heads);
    Value scores = batched_matmul(q, k, {q.size(0), heads, q.size(2), q.size(2)});
    scores = scale(scores);
    const Value bias = bias_of_distances(block.tensor(inner + "relative_position_bias_table"), windows.tokens());
    scores = add(scores, bias);
    if (mask.defined()) {
      const Shape pairs = scores.shape();
      scores = add(view(scores, {pairs[0] / mask.size(0), mask.size(0), heads, pairs[2], pairs[3]}),
                   mask.viewed({mask.size(0), 1, pairs[2], pairs[3]}));
      scores = view(scores, pairs);
    }
    const Value probabilities = dropout(softmax(scores), block, inner + "dropout");
    const Value together = contiguous(transpose(batched_matmul(probabilities, v, q.shape())));
    return view(together, x.shape());
  }();
  return dropout(linear(mixed, block[name + "attention.output.dense"]), block, name + "attention.output.dropout");
}

// Zeros behind the last rows and columns; a copy in any case (constant_pad_nd).
Value padded(const Value& x, const Grid& grid) {
  return copied(x, {x.size(0), grid.height, grid.width, x.size(-1)});
}

// SwinLayer. What its forward names lives until it returns.
Value swin_block(const UnitView& block, const std::string& name, std::uint64_t number, const Value& input,
                 const Grid& grid) {
  const std::uint64_t images = input.size(0);
  const std::uint64_t width = input.size(2);
  const Windows windows = windows_of(block.tensor(name + "attention.self.relative_position_bias_table"), grid, number);
  const Shape rows{images, windows.padded.height, windows.padded.width, width};
  Value hidden = layer_norm(block[name + "layernorm_before"], input);
  hidden = padded(view(hidden, {images, grid.height, grid.width, width}), windows.padded);
  const Value moved = windows.moved ? copied(hidden, rows) : hidden;
  const Value parts = regrouped(moved, {images * windows.of_image(), windows.tokens(), width}, windows);
  const Value mask = windows.moved ? mask_of_moved(input.tape(), windows, input.dtype()) : Value();
  const Value attended = window_attention(block, name, parts, windows, mask);
  const Value back = regrouped(attended, rows, windows);
  Value attention = windows.moved ? copied(back, rows) : back;
  if (windows.padded.height != grid.height || windows.padded.width != grid.width) {
    attention = contiguous(slice(attention, {images, grid.height, grid.width, width}));
  }
  attention = view(attention, input.shape());
  hidden = add(input, drop_path(attention, dropout_rate(block, name + "drop_path")));
  Value output = layer_norm(block[name + "layernorm_after"], hidden);
  output = linear(output, block[name + "intermediate.dense"]);
  output = activate(output, block, name + "act");
  output = dropout(linear(output, block[name + "output.dense"]), block, name + "output.dropout");
  return add(hidden, output);
}

// SwinPatchMerging: every second row and column, four times, side by side.
Value merged(const UnitView& block, const Value& input, const Grid& grid, const Grid& half) {
  const std::uint64_t width = input.size(2);
  const Value x = [&] {
    Value whole = view(input, {input.size(0), grid.height, grid.width, width});
    const Grid even{2 * half.height, 2 * half.width};
    if (even.height != grid.height || even.width != grid.width) whole = padded(whole, even);
    const Shape rows{input.size(0), half.height, even.width, width};
    const Shape part{input.size(0), half.height, half.width, width};
    std::vector<Value> parts;
    for (int i = 0; i < 4; ++i) parts.push_back(slice(slice(whole, rows), part));
    return cat(parts, {input.size(0), half.height * half.width, 4 * width});
  }();
  return linear(layer_norm(block["downsample.norm"], x), block["downsample.reduction"]);
}

Grid halved(const Grid& grid) {
  return {(grid.height + 1) / 2, (grid.width + 1) / 2};
}

Grid first_grid(const ForwardContext& context, std::uint64_t patch) {
  const std::uint64_t side = context.model.architecture.image_side;
  const auto tokens = [&](std::uint64_t pixels) { return divide_up(pixels == 0 ? side : pixels, patch); };
  return {tokens(context.client.image_height), tokens(context.client.image_width)};
}

std::string swin_base(const ForwardContext& context) {
  return prefix_of(context, "embeddings.patch_embeddings.projection");
}

// SwinStage
Value swin_stage(ForwardContext& context, const UnitView& block, const Value& input) {
  Grid grid = context.shared.grid;
  for (std::uint64_t i = 0; i < block.number(); ++i) grid = halved(grid);
  Value hidden = input;
  for (std::uint64_t i = 0; block.has(fmt::format("blocks.{}.layernorm_before", i)); ++i) {
    hidden = swin_block(block, fmt::format("blocks.{}.", i), i, hidden, grid);
  }
  Value output = block.has("downsample.norm") ? merged(block, hidden, grid, halved(grid)) : hidden;
  // What the stage returns besides. Where it is recomputed, the peak is elsewhere.
  if (context.client.recompute == RecomputeKind::none) context.shared.before_last = hidden.detached();
  return output;
}

// An image whose sides are no multiples of a patch's is widened with zeros first.
Value swin_patches(ForwardContext& context, const Parameters& projection, const Grid& grid) {
  Tape& tape = context.tape;
  const std::uint64_t patch = projection.weight.size(-1);
  const Architecture& a = context.model.architecture;
  const std::uint64_t height = context.client.image_height == 0 ? a.image_side : context.client.image_height;
  const std::uint64_t width = context.client.image_width == 0 ? a.image_side : context.client.image_width;
  Value pixels = tape.outside({context.batch(), projection.module->input, height, width}, context.setup.policy.compute);
  const auto widened = [&](std::uint64_t rows, std::uint64_t columns) {
    const Shape shape{context.batch(), projection.module->input, rows, columns};
    if (shape != pixels.shape()) pixels = tape.allocate("pad", shape, pixels.dtype());
  };
  widened(height, grid.width * patch);
  widened(grid.height * patch, grid.width * patch);
  const Shape shape{context.batch(), projection.module->output, grid.height * grid.width};
  const Value channels = convolution(pixels, projection.weight, projection.bias, shape);
  return view(channels, {shape[0], shape[2], shape[1]});
}

// Without a classifier what is trained is the sum of the last features.
Value swin(ForwardContext& context) {
  const std::string base = swin_base(context);
  if (has_module(context, "decoder.0")) throw NotModelled("a decoder of masked images");
  if (has_module(context, base + "embeddings.position_embeddings")) {
    throw NotModelled("absolute positions: its class has one more of them than tokens, and fails,");
  }
  if (!has_module(context, base + "layernorm")) throw NotModelled("a backbone");
  const std::string name = base + "embeddings.patch_embeddings.projection";
  const UnitView unit = required_unit(context, name);
  const Parameters projection = unit[name];
  context.shared.grid = first_grid(context, projection.weight.size(-1));
  Value hidden = [&] {
    const Value x = swin_patches(context, projection, context.shared.grid);
    const Value normed = layer_norm(required_unit(context, base + "embeddings.norm")[base + "embeddings.norm"], x);
    return dropout(normed, dropout_rate(context, base + "embeddings.dropout"));
  }();
  hidden = run_blocks(context, swin_stage, std::move(hidden), base + "encoder.layers");
  context.shared.before_last.reset();
  hidden = layer_norm(required_unit(context, base + "layernorm")[base + "layernorm"], hidden);
  const auto head = unit_with(context, "classifier");
  if (!head) return total(hidden);
  const Value features = mean(hidden, {hidden.size(0), hidden.size(2)});
  const Purpose before = context.tape.set_purpose(Purpose::loss);
  Value loss = cross_entropy(linear(features, (*head)["classifier"]));
  context.tape.set_purpose(before);
  return loss;
}

}  // namespace

std::span<const HfFamily> hf_swin_families() {
  static constexpr HfFamily families[] = {{"swin", swin}};
  return families;
}

}  // namespace shardplan::autograd
