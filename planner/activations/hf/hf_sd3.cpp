// The transformer of Stable Diffusion 3 and 3.5 (transformer_sd3.py, attention.py, attention_processor.py and normalization.py
// of diffusers 0.39): image and text attend to each other with weights of their own. Its attention is
// scaled_dot_product_attention in every profile.
//
// The transformer alone has latents, their noise level, pooled features of the text, and a feature for each of its tokens in
// its batch: what frozen encoders made, once, before the training or on another device. Without a sequence length the text
// has the 77 tokens of CLIP's encoders and the 256 of T5's. The loss is the mean square of what is left of the noise, in
// fp32 (examples/dreambooth/train_dreambooth_sd3.py). With its encoders beside it: hf_sd3_pipeline.cpp.
#include "planner/activations/hf/hf_sd3.h"

#include <fmt/format.h>

#include <array>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_diffusers.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr std::uint64_t kTimeFeatures = 256;  // of the noise level: sines and cosines

// ---- Adaptive norms ----

// `count` vectors for each sample, linear in the condition, [b, 1, h] each.
std::vector<Value> modulation(const UnitView& block, const std::string& norm, const Value& condition,
                              std::uint64_t count) {
  const Value vectors = linear(unary("silu", condition), block[norm + ".linear"]);
  const std::uint64_t width = vectors.size(1) / count;
  std::vector<Value> parts = split(vectors, std::vector<std::uint64_t>(count, width));
  for (Value& part : parts) part = unsqueezed(part, {part.size(0), 1, width});
  return parts;
}

// ---- Attention ----

// RMSNorm of diffusers: the product with a number of each row is fp32, and the weight is multiplied in its own dtype.
Value diffusers_norm(const Parameters& layer, const Value& x) {
  Value y = mul(x, [&] {
    const Value variance = mean(pow(to(x, DType::f32)));
    return rsqrt(shift(variance));
  }());
  if (bits(layer.weight.dtype()) == 16) y = to(y, layer.weight.dtype());
  return mul(y, layer.weight);
}

// Of a head's queries or keys; without weights it is a LayerNorm in fp32.
Value head_norm(const UnitView& block, const std::string& name, const Value& x) {
  if (!block.has(name)) return x;
  const Parameters layer = block[name];
  if (layer.module->kind == ModuleKind::rms_norm) return diffusers_norm(layer, x);
  if (layer.weight.defined()) return layer_norm(layer, x);
  return to(normed(to(x, DType::f32)), x.dtype());
}

struct Heads {
  Value q;
  Value k;
  Value v;
};

struct StreamNames {
  std::string_view prefix;  // of the projections
  std::string_view suffix;
  std::string_view norms;
};
constexpr StreamNames kImage{"to_", "", "norm_"};
constexpr StreamNames kText{"add_", "_proj", "norm_added_"};

Heads heads_of(const UnitView& block, const std::string& part, const StreamNames& names, const Value& x) {
  const std::uint64_t heads = block.module(part + ".attention").attention->heads;
  const auto projected = [&](std::string_view which) {
    return linear(x, block[fmt::format("{}.{}{}{}", part, names.prefix, which, names.suffix)]);
  };
  Heads h{projected("q"), projected("k"), projected("v")};
  h.q = split_heads(h.q, heads);
  h.k = split_heads(h.k, heads);
  h.v = split_heads(h.v, heads);
  h.q = head_norm(block, fmt::format("{}.{}q", part, names.norms), h.q);
  h.k = head_norm(block, fmt::format("{}.{}k", part, names.norms), h.k);
  return h;
}

// [b, heads, s, d] to [b, s, heads x d].
Value attended(const Heads& h) {
  const Value mixed = scaled_dot_product_attention(h.q, h.k, h.v, {});
  return view(transpose(mixed), {h.q.size(0), h.q.size(2), h.q.size(1) * h.q.size(3)});
}

struct Streams {
  Value image;
  Value text;  // undefined where nothing reads it any more
};

// JointAttnProcessor2_0
Streams joint_attention(const UnitView& block, const Value& image, const Value& text) {
  Heads h = heads_of(block, "attn", kImage, image);
  {
    const Heads t = heads_of(block, "attn", kText, text);
    Shape both = h.q.shape();
    both[2] += t.q.size(2);
    h.q = cat(std::array{h.q, t.q}, both);
    h.k = cat(std::array{h.k, t.k}, both);
    h.v = cat(std::array{h.v, t.v}, both);
  }
  const Value mixed = attended(h);
  const Value of_image = slice(mixed, image.shape());
  Streams output;
  if (block.has("attn.to_add_out")) {
    output.text = linear_of_part(slice(mixed, text.shape()), block["attn.to_add_out"]);
  }
  output.image = linear_of_part(of_image, block["attn.to_out.0"]);
  return output;
}

// ---- Blocks ----

Value feed_forward(const UnitView& block, const std::string& name, const Value& x) {
  return plain_mlp(block, name + ".net", "0.proj", "2", x);
}

// x + gate * feed_forward(modulated(norm(x))). `name`: "ff", or "ff_context" of the text.
Value fed_forward(const UnitView& block, const std::string& name, const Value& x, const Value& summand,
                  const Value& factor, const Value& gate) {
  stream_passes(block, {"norm2", "modulate2", "gate_ff"}, std::string_view(name).substr(2), x);
  const Value inner = feed_forward(block, name, modulated(normed(x), factor, summand));
  return add(x, mul(gate, inner));
}

// JointTransformerBlock. The text goes beside the image, in what the blocks share.
Value joint_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const Value condition = context.shared.condition;
  Value text = context.shared.encoded;
  const bool dual = block.has("attn2.to_q");
  const bool last = !block.has("ff_context.net.2");

  stream_passes(block, {"norm1.norm", "norm1.modulate", "gate", "gate2"}, "", input);
  stream_passes(block, {"norm1_context.norm", "norm1_context.modulate", "gate_context"}, "", text);
  const std::vector<Value> m = modulation(block, "norm1", condition, dual ? 9 : 6);
  const Value own = normed(input);
  const Value image = modulated(own, m[1], m[0]);
  const Value again = dual ? modulated(own, m[7], m[6]) : Value();
  const std::vector<Value> t = modulation(block, "norm1_context", condition, last ? 2 : 6);
  const Value words = last ? modulated(normed(text), t[0], t[1]) : modulated(normed(text), t[1], t[0]);

  const Streams mixed = joint_attention(block, image, words);
  Value hidden = add(input, mul(m[2], mixed.image));
  if (dual) {
    const Value output = linear(attended(heads_of(block, "attn2", kImage, again)), block["attn2.to_out.0"]);
    hidden = add(hidden, mul(m[8], output));
  }
  hidden = fed_forward(block, "ff", hidden, m[3], m[4], m[5]);
  if (last) {
    text.reset();
  } else {
    text = add(text, mul(t[2], mixed.text));
    text = fed_forward(block, "ff_context", text, t[3], t[4], t[5]);
  }
  context.shared.encoded = text;
  return hidden;
}

// ---- The model ----

// Patches with the middle of a table of positions, which is a buffer.
Value embedded_latents(ForwardContext& context, const Parameters& projection, const Value& noisy) {
  Tape& tape = context.tape;
  const std::uint64_t patch = projection.weight.size(-1);
  const Sd3Latents latents = sd3_latents(context);
  const std::uint64_t patches = (latents.height / patch) * (latents.width / patch);
  if (patches == 0) throw NotModelled("images smaller than a patch");
  const std::uint64_t width = projection.module->output;
  const Value channels = convolution(noisy, projection.weight, projection.bias, {context.batch(), width, patches});
  const Value table = tape.allocate("clone", {1, patches, width}, context.setup.policy.compute);
  return add(transpose(channels), table);
}

Value condition_of(ForwardContext& context, const std::string& base, const Value& pooled) {
  Tape& tape = context.tape;
  const std::string name = base + "time_text_embed";
  const UnitView unit = required_unit(context, name + ".text_embedder.linear_1");
  const DType dtype = context.setup.policy.compute;
  const Value time =
      embedder(unit, name + ".timestep_embedder", tape.allocate("to", {context.batch(), kTimeFeatures}, dtype));
  const Value text = embedder(unit, name + ".text_embedder", pooled);
  return add(time, text);
}

Value sd3(ForwardContext& context) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "pos_embed.proj");
  const auto input_of = [&](const std::string& name) {
    return required_unit(context, base + name).module(base + name).input;
  };
  const auto outside = [&](Shape shape) { return tape.outside(std::move(shape), context.setup.policy.compute); };
  const Sd3Latents size = sd3_latents(context);
  const Parameters patches = required_unit(context, base + "pos_embed.proj")[base + "pos_embed.proj"];
  const Shape latents{context.batch(), patches.weight.size(1), size.height, size.width};
  const std::uint64_t tokens = context.tokens() == 0 ? kSd3ClipTokens + kSd3T5Tokens : context.tokens();
  return sd3_loss(context, base,
                  {.noisy = outside(latents),
                   .text = outside({context.batch(), tokens, input_of("context_embedder")}),
                   .pooled = outside({context.batch(), input_of("time_text_embed.text_embedder.linear_1")}),
                   .target = [&] { return outside(latents); }});
}

}  // namespace

Sd3Latents sd3_latents(const ForwardContext& context) {
  const ClientSetup& client = context.client;
  const std::uint64_t side = context.model.architecture.image_side;
  const auto latent = [&](std::uint64_t pixels) { return pixels == 0 ? side : pixels / kSd3PixelsOfLatent; };
  return {latent(client.image_height), latent(client.image_width)};
}

Value sd3_loss(ForwardContext& context, const std::string& base, const Sd3Batch& batch) {
  context.carries_encoded = true;
  const auto whole = [&](std::string_view name) { return base + std::string(name); };
  const Parameters projection = required_unit(context, whole("pos_embed.proj"))[whole("pos_embed.proj")];
  Value hidden = embedded_latents(context, projection, batch.noisy);
  context.shared.condition = condition_of(context, base, batch.pooled);
  const Parameters words = required_unit(context, whole("context_embedder"))[whole("context_embedder")];
  context.shared.encoded = linear(batch.text, words);
  hidden = run_blocks(context, joint_block, std::move(hidden), whole("transformer_blocks"));
  const UnitView head = required_unit(context, whole("proj_out"));
  const std::vector<Value> m = modulation(head, whole("norm_out"), context.shared.condition, 2);
  head.passes(whole("norm_out.norm"), hidden);
  head.passes(whole("norm_out.modulate"), hidden);
  hidden = linear(modulated(normed(hidden), m[0], m[1]), head[whole("proj_out")]);
  const Value prediction = copied(hidden, batch.noisy.shape());  // patches to pixels
  context.shared = {};
  hidden.reset();
  return square_loss(context, prediction, batch.target());
}

std::span<const HfFamily> hf_sd3_families() {
  static constexpr HfFamily families[] = {{"SD3Transformer2DModel", sd3}};
  return families;
}

}  // namespace shardplan::autograd
