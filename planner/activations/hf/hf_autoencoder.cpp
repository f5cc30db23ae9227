// autoencoder_kl.py, vae.py, unet_2d_blocks.py, resnet.py, downsampling.py and attention_processor.py of diffusers 0.39.
// Images are [b, channels, h, w]. Of the whole encoder nothing is kept: its callers do not train it.
#include "planner/activations/hf/hf_autoencoder.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

Value convolved(const Value& x, const Parameters& layer) {
  return convolution(x, layer.weight, layer.bias, {x.size(0), layer.module->output, x.size(2), x.size(3)});
}

Value group_norm(const Value& x, std::uint64_t groups, const Parameters& layer) {
  Tape& tape = x.tape();
  std::vector<Value> inputs{x};
  Value output = like("group_norm", x);
  std::vector<Value> saved{x, tape.allocate("group_norm mean", {x.size(0), groups}, x.dtype()),
                           tape.allocate("group_norm rstd", {x.size(0), groups}, x.dtype())};
  for (const Value& parameter : {layer.weight, layer.bias}) {
    if (parameter.defined()) inputs.push_back(parameter);
  }
  return record("group_norm", inputs, std::move(output), std::move(saved));
}

Value halved(const Value& x, const Parameters& layer) {
  Value padded = x.tape().allocate("pad", {x.size(0), x.size(1), x.size(2) + 1, x.size(3) + 1}, x.dtype());
  padded = simple("pad", x, std::move(padded));
  return convolution(padded, layer.weight, layer.bias, {x.size(0), layer.module->output, x.size(2) / 2, x.size(3) / 2});
}

namespace {

// Of as many groups as channels at most.
Value group_norm(const Value& x) {
  return group_norm(x, x.size(1));
}

// ResnetBlock2D, without the noise level
Value resnet(const UnitView& unit, const std::string& name, const Value& input) {
  const auto part = [&](std::string_view of) { return name + std::string(of); };
  Value hidden = group_norm(input);
  hidden = activate(hidden, unit, part("nonlinearity1"));
  hidden = convolved(hidden, unit[part("conv1")]);
  hidden = group_norm(hidden);
  hidden = activate(hidden, unit, part("nonlinearity2"));
  hidden = convolved(hidden, unit[part("conv2")]);
  const Value residual = unit.has(part("conv_shortcut")) ? convolved(input, unit[part("conv_shortcut")]) : input;
  const Value sum = add(residual, hidden);
  return scale(sum);
}

// Attention of all pixels with all, one head.
Value pixel_attention(const UnitView& unit, const std::string& name, const Value& input) {
  const auto part = [&](std::string_view of) { return unit[name + std::string(of)]; };
  const std::uint64_t pixels = input.size(2) * input.size(3);
  const Shape one_head{input.size(0), 1, pixels, input.size(1)};
  const Value rows = view(group_norm(input), {input.size(0), pixels, input.size(1)});
  const Value q = view(linear(rows, part("to_q")), one_head);
  const Value k = view(linear(rows, part("to_k")), one_head);
  const Value v = view(linear(rows, part("to_v")), one_head);
  Value mixed = view(scaled_dot_product_attention(q, k, v, {}), rows.shape());
  mixed = linear(mixed, part("to_out.0"));
  const Value sum = add(copied(mixed, input.shape()), input);
  return scale(sum);
}

// DownEncoderBlock2D and AttnDownEncoderBlock2D
Value down_block(ForwardContext&, const UnitView& block, const Value& input) {
  Value hidden = input;
  for (std::uint64_t i = 0; block.has(fmt::format("resnets.{}.conv1", i)); ++i) {
    hidden = resnet(block, fmt::format("resnets.{}.", i), hidden);
    const std::string attention = fmt::format("attentions.{}.", i);
    if (block.has(attention + "to_q")) hidden = pixel_attention(block, attention, hidden);
  }
  return block.has("downsamplers.0.conv") ? halved(hidden, block["downsamplers.0.conv"]) : hidden;
}

Value middle_resnet(ForwardContext&, const UnitView& block, const Value& input) {
  return resnet(block, "", input);
}

Value middle_attention(ForwardContext&, const UnitView& block, const Value& input) {
  return pixel_attention(block, "", input);
}

// Encoder
Value encoder(ForwardContext& context, const std::string& base, std::uint64_t height, std::uint64_t width) {
  const Parameters first = required_unit(context, base + "conv_in")[base + "conv_in"];
  const std::uint64_t channels = first.weight.size(1);
  const Value pixels = context.tape.outside({context.batch(), channels, height, width}, first.weight.dtype());
  Value hidden = convolved(pixels, first);
  hidden = run_blocks(context, down_block, std::move(hidden), base + "down_blocks");
  // The attention is between the two; all three are of one size.
  hidden = run_blocks(context, middle_resnet, std::move(hidden), base + "mid_block.resnets");
  hidden = run_blocks(context, middle_attention, std::move(hidden), base + "mid_block.attentions");
  const UnitView last = required_unit(context, base + "conv_out");
  hidden = group_norm(hidden);
  hidden = activate(hidden, last, base + "conv_act");
  return convolved(hidden, last[base + "conv_out"]);
}

// DiagonalGaussianDistribution and its sample
Value sample(const Value& moments) {
  Tape& tape = moments.tape();
  Shape shape = moments.shape();
  shape[1] /= 2;
  const Value mean = slice(moments, shape);
  const Value logarithm = tape.allocate("clamp", shape, moments.dtype());
  const Value deviation = unary_of_output("exp", scale(logarithm));
  const Value variance = unary_of_output("exp", logarithm);
  const Value noise = tape.allocate("randn", shape, moments.dtype());
  return add(mean, mul(deviation, noise));
}

}  // namespace

Value sampled_latents(ForwardContext& context, const std::string& base, std::uint64_t height, std::uint64_t width) {
  Value moments = encoder(context, base + "encoder.", height, width);
  if (const auto unit = unit_with(context, base + "quant_conv")) {
    moments = convolved(moments, (*unit)[base + "quant_conv"]);
  }
  return sample(moments);
}

}  // namespace shardplan::autograd
