// DiT (facebookresearch/DiT, models.py and train.py at commit ed81ce2; attention and MLP are those of timm 1.0): a transformer on
// latent patches whose norms a vector of each sample scales, of its time and its class. Profile hf-eager is timm with
// TIMM_FUSED_ATTN=0.
//
// The batch has latents in fp32, which a frozen autoencoder made before, their times and classes. The published class is fp32, under
// autocast or not; in 16 bits it casts its latents and the sines of times, as forks do that train it so.
#include <fmt/format.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "planner/activations/hf/hf_diffusers.h"
#include "planner/activations/hf/hf_gaussian_diffusion.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr std::uint64_t kPixelsOfLatent = 8;  // of a side, as the autoencoder makes them

// `count` vectors of each sample below `name`, linear in the condition, [b, 1, h] each.
std::vector<Value> modulation(const UnitView& unit, const std::string& name, const Value& condition,
                              std::uint64_t count) {
  unit.passes(name + ".0", condition);
  const Value vectors = linear(unary("silu", condition), unit[name + ".1"]);
  const std::uint64_t width = vectors.size(1) / count;
  std::vector<Value> parts = split(vectors, std::vector<std::uint64_t>(count, width));
  for (Value& part : parts) part = unsqueezed(part, {part.size(0), 1, width});
  return parts;
}

// Queries, keys and values as parts of one projection, which the backward puts side by side and then copies into its order.
std::vector<Value> heads_of(const Value& all, const AttentionSizes& sizes) {
  const Shape one{all.size(0), sizes.heads, all.size(1), sizes.head_size};
  const Value moved = simple("permute", all, all.viewed(all.shape()));
  std::vector<Value> parts = parts_of(moved, std::array{one, one, one});
  for (Value& part : parts) part = part.laid_out(Layout::swapped);
  return parts;
}

Value plain_scores(const Value& queries, const Value& keys, const Value& values) {
  const Value q = scale(queries);
  Value weights = batched_matmul(q, keys, {q.size(0), q.size(1), q.size(2), q.size(2)});
  weights = softmax(weights);
  return batched_matmul(weights, values, values.shape());
}

// timm's Attention
Value attention(const ForwardContext& context, const UnitView& block, const Value& x) {
  const Value all = linear(x, block["attn.qkv"]);
  const std::vector<Value> heads = heads_of(all, *block.module("attn.attention").attention);
  const Value mixed = context.attention() == AttentionKind::eager
                          ? plain_scores(heads[0], heads[1], heads[2])
                          : scaled_dot_product_attention(heads[0], heads[1], heads[2], {});
  const Value joined = view(transpose(mixed), x.shape());
  return linear(joined, block["attn.proj"]);
}

// DiTBlock
Value dit_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const std::vector<Value> m = modulation(block, "adaLN_modulation", context.shared.condition, 6);
  stream_passes(block, {"norm1", "modulate1", "gate1", "norm2", "modulate2", "gate2"}, "", input);
  Value hidden = [&] {
    const Value mixed = attention(context, block, modulated(normed(input), m[1], m[0]));
    return add(input, mul(m[2], mixed));
  }();
  const Value fed = plain_mlp(block, "mlp", "fc1", "fc2", modulated(normed(hidden), m[4], m[3]));
  return add(hidden, mul(m[5], fed));
}

// TimestepEmbedder
Value embedded_times(ForwardContext& context, const UnitView& unit) {
  Tape& tape = context.tape;
  const std::uint64_t features = unit.module("t_embedder.mlp.0").input;
  const Value waves = [&] {
    const Shape half{context.batch(), features / 2};
    const Value frequencies = tape.allocate("to", {features / 2}, DType::f32);
    const Value angles = tape.allocate("mul", half, DType::f32);
    const std::array parts{tape.allocate("cos", half, DType::f32), tape.allocate("sin", half, DType::f32)};
    return tape.allocate("cat", {context.batch(), features}, DType::f32);
  }();
  const Value hidden = linear(to(waves, context.parameter_dtype()), unit["t_embedder.mlp.0"]);
  return linear(activate(hidden, unit, "t_embedder.mlp.act"), unit["t_embedder.mlp.2"]);
}

// LabelEmbedder: some samples are of no class.
Value embedded_classes(ForwardContext& context, const UnitView& unit) {
  Tape& tape = context.tape;
  const Shape samples{context.batch()};
  const Value table = unit["y_embedder.embedding_table"].weight;
  if (dropout_rate(unit, "y_embedder.token_drop") == 0) return embedding(tape.outside(samples, DType::i64), table);
  const Value random = tape.allocate("rand", samples, DType::f32);
  const Value left_out = tape.allocate("lt", samples, DType::boolean);
  return embedding(tape.allocate("where", samples, DType::i64), table);
}

// What the class says of noisy latents; its table of positions is of one number of patches.
Value dit(ForwardContext& context, const Value& noisy) {
  const UnitView first = required_unit(context, "x_embedder.proj");
  const Parameters projection = first["x_embedder.proj"];
  const Value table = first.tensor("pos_embed");
  const std::uint64_t patches = table.size(1);
  const Value channels = convolution(to(noisy, context.parameter_dtype()), projection.weight, projection.bias,
                                     {context.batch(), projection.module->output, patches});
  Value hidden = add(transpose(channels), table);
  const Value times = embedded_times(context, required_unit(context, "t_embedder.mlp.0"));
  const Value classes = embedded_classes(context, required_unit(context, "y_embedder.embedding_table"));
  context.shared.condition = add(times, classes);
  hidden = run_blocks(context, dit_block, std::move(hidden), "blocks");
  const UnitView last = required_unit(context, "final_layer.linear");
  const std::vector<Value> m = modulation(last, "final_layer.adaLN_modulation", context.shared.condition, 2);
  stream_passes(last, {"final_layer.norm_final", "final_layer.modulate"}, "", hidden);
  hidden = linear(modulated(normed(hidden), m[1], m[0]), last["final_layer.linear"]);
  context.shared = {};
  Shape image = noisy.shape();
  image[1] = hidden.elements() / (noisy.elements() / noisy.size(1));
  return copied(hidden, image);  // patches to pixels
}

Value dit_training(ForwardContext& context) {
  const ClientSetup& client = context.client;
  const std::uint64_t side = context.model.architecture.image_side;
  const std::uint64_t pixels = side * kPixelsOfLatent;
  if (client.image_height != 0 && (client.image_height != pixels || client.image_width != pixels)) {
    throw NotModelled(fmt::format(
        "images (--image-size) of anything but {} x {} pixels, which input_size {} and its table of positions are for,",
        pixels, pixels, side));
  }
  const Parameters projection = required_unit(context, "x_embedder.proj")["x_embedder.proj"];
  const std::uint64_t channels = projection.module->input;
  const std::uint64_t patch = projection.weight.size(-1);
  if (side % patch != 0) throw NotModelled("an input_size that patch_size does not divide");
  const bool learns_variances =
      required_unit(context, "final_layer.linear").module("final_layer.linear").output == 2 * patch * patch * channels;
  const Value latents = context.tape.outside({context.batch(), channels, side, side}, DType::f32);
  return diffusion_loss([&](const Value& noisy) { return dit(context, noisy); }, latents, learns_variances);
}

}  // namespace

std::span<const HfFamily> hf_dit_families() {
  static constexpr HfFamily families[] = {{"DiT", dit_training}};
  return families;
}

}  // namespace shardplan::autograd
