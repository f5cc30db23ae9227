// Chameleon's VQ encoder (ChameleonVQVAE): a convolutional encoder and the nearest code of each pixel it leaves. Its parameters have no
// part in the loss, since the number of a code has no gradient; but the class does not freeze them, so that a graph is built, and
// goes when the words are there. peft freezes them, as it does all of a model, and then there is none.
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "planner/activations/hf/hf_autoencoder.h"
#include "planner/activations/hf/hf_chameleon.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr std::uint64_t kNormGroups = 32;

// x *= sigmoid(x) behind a norm.
Value normed_swish(const UnitView& unit, const std::string& norm, const std::string& function, const Value& x) {
  const Value normed = group_norm(x, kNormGroups, unit[norm]);
  unit.passes(function, normed);
  return mul_in_place(normed, unary_of_output("sigmoid", normed));
}

// ChameleonVQVAEEncoderResnetBlock
Value resnet(const UnitView& unit, const std::string& name, const Value& input) {
  const auto part = [&](std::string_view of) { return name + std::string(of); };
  Value hidden = normed_swish(unit, part("norm1"), part("act1"), input);
  hidden = convolved(hidden, unit[part("conv1")]);
  hidden = normed_swish(unit, part("norm2"), part("act2"), hidden);
  hidden = dropout(hidden, unit, part("dropout"));
  hidden = convolved(hidden, unit[part("conv2")]);
  const Value residual = unit.has(part("nin_shortcut")) ? convolved(input, unit[part("nin_shortcut")]) : input;
  return add(residual, hidden);
}

// ChameleonVQVAEEncoderAttnBlock: scores of all pairs of pixels, one head.
Value pixel_attention(const UnitView& unit, const std::string& name, const Value& input) {
  const auto layer = [&](std::string_view of) { return unit[name + std::string(of)]; };
  const std::uint64_t pixels = input.size(2) * input.size(3);
  const Shape rows{input.size(0), input.size(1), pixels};
  const Value hidden = group_norm(input, kNormGroups, layer("norm"));
  const Value q = view(convolved(hidden, layer("q")), rows);
  const Value k = view(convolved(hidden, layer("k")), rows);
  const Value v = view(convolved(hidden, layer("v")), rows);
  Value weights = matmul(q, k, {input.size(0), 1, pixels, pixels});
  weights = scale(weights);
  weights = softmax(weights);
  Value mixed = view(matmul(v, weights, rows), input.shape());
  mixed = convolved(mixed, layer("proj_out"));
  return add(input, mixed);
}

// A level of ChameleonVQVAEEncoder, whose list has what each block puts out until the encoder returns.
Value level(ForwardContext& context, const UnitView& unit, const Value& input) {
  Value hidden = input;
  for (std::uint64_t i = 0; unit.has(fmt::format("block.{}.conv1", i)); ++i) {
    hidden = resnet(unit, fmt::format("block.{}.", i), hidden);
    const std::string attention = fmt::format("attn.{}.", i);
    if (unit.has(attention + "q")) hidden = pixel_attention(unit, attention, hidden);
    context.base_locals.push_back(hidden);
  }
  if (unit.has("downsample.conv")) {
    hidden = halved(hidden, unit["downsample.conv"]);
    if (hidden.elements() == 0) throw NotModelled("images smaller than what is left of their resolution");
    context.base_locals.push_back(hidden);
  }
  return hidden;
}

Value encoder(ForwardContext& context, const std::string& base, const Value& pixels) {
  const auto whole = [&](std::string_view name) { return base + std::string(name); };
  Value hidden = convolved(pixels, required_unit(context, whole("conv_in"))[whole("conv_in")]);
  context.base_locals.push_back(hidden);
  hidden = run_blocks(context, level, std::move(hidden), whole("down"));
  const UnitView last = required_unit(context, whole("conv_out"));
  hidden = resnet(last, whole("mid.block_1."), hidden);
  if (last.has(whole("mid.attn_1.q"))) hidden = pixel_attention(last, whole("mid.attn_1."), hidden);
  hidden = resnet(last, whole("mid.block_2."), hidden);
  hidden = normed_swish(last, whole("norm_out"), whole("act_out"), hidden);
  hidden = convolved(hidden, last[whole("conv_out")]);
  context.base_locals.clear();
  return hidden;
}

// ChameleonVQVAEVectorQuantizer: the nearest code of each pixel, and the loss of a training of the encoder itself, which nobody
// reads.
Value quantized(const Value& input, const Value& table) {
  Tape& tape = input.tape();
  const std::uint64_t count = input.size(0) * input.size(2) * input.size(3);
  const std::uint64_t width = table.size(1);
  const std::uint64_t codes = table.size(0);
  const Value rows = copied(input, {count, width});
  const Value distances = [&] {
    const Value own = sum_over(pow(rows), {count, 1});
    const Value both = add(own, sum_over(pow(table), {codes}));
    return sub(both, scale(matmul(rows, table, {count, codes})));
  }();
  Value indices = tape.allocate("argmin", {count}, DType::i64);
  const Value nearest = embedding(indices, table);
  const Value loss = add(total(pow(sub(nearest.detached(), rows))), scale(total(pow(sub(nearest, rows.detached())))));
  const Value passed_on = add(rows, sub(nearest, rows).detached());
  const Value image = copied(passed_on, input.shape());
  return indices;
}

// Whether something is trained besides adapters: else all of the model was frozen.
bool builds_graphs(const Catalog& held) {
  bool trains = false;
  for_each_tensor(held, [&](const std::string& name, const Tensor& tensor) {
    trains |= tensor.trainable && name.find(".lora_") == std::string::npos;
  });
  return trains;
}

}  // namespace

Value chameleon_image_tokens(ForwardContext& context) {
  Tape& tape = context.tape;
  const std::string base = "model.vqmodel.";
  const ClientSetup& client = context.client;
  const std::uint64_t side = context.model.architecture.image_side;
  const std::uint64_t images = context.batch() * client.images;
  const Parameters first = required_unit(context, base + "encoder.conv_in")[base + "encoder.conv_in"];
  const Parameters codebook = required_unit(context, base + "quantize.embedding")[base + "quantize.embedding"];
  const bool graph = builds_graphs(context.held);
  const Value pixels = tape.outside({images, first.module->input, client.image_height == 0 ? side : client.image_height,
                                     client.image_width == 0 ? side : client.image_width},
                                    first.weight.dtype());
  const auto encode = [&](const Value& x) {
    const Value hidden = encoder(context, base + "encoder.", x);
    const Parameters to_codes = required_unit(context, base + "quant_conv")[base + "quant_conv"];
    if (hidden.size(1) != to_codes.module->input)
      throw NotModelled("vq_config.double_latent with images, which its class cannot read,");
    const Value codes = convolved(hidden, to_codes);
    required_unit(context, base + "quantize.embedding");
    const Value indices = quantized(codes, graph ? Tape::requiring_grad(codebook.weight) : codebook.weight);
    return tape.allocate("to", {images, indices.size(0) / images}, DType::i32);  // by a table on the host
  };
  const bool folded = !std::exchange(context.unfolded, true);  // each level has a resolution of its own
  context.never_recomputes = true;
  Value tokens = graph ? tape.forgetting(encode, pixels) : encode(pixels);
  context.never_recomputes = false;
  context.unfolded = !folded;
  return tokens;
}

}  // namespace shardplan::autograd
