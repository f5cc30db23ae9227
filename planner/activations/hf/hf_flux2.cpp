// The transformer of FLUX.2 (transformer_flux2.py, embeddings.py and attention_dispatch.py of diffusers 0.39): blocks in which
// image and text have weights of their own, then blocks that know one row of tokens. Scales, shifts and gates are the same in
// all blocks of a kind; norms of queries and keys are torch.nn.RMSNorm. Its attention is scaled_dot_product_attention in every
// profile.
//
// The batch has the latents' tokens, 2 x 2 of the autoencoder's pixels in each, their noise level, and the text's features, which
// a frozen encoder made before. Without a sequence length the text has 512 tokens (pipeline_flux2_klein.py,
// max_sequence_length). The loss is the mean square of what is left, in fp32, of the tokens as they are.
#include <fmt/format.h>

#include <array>
#include <utility>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_diffusers.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr std::uint64_t kTextTokens = 512;
constexpr std::uint64_t kPixelsOfToken = 16;  // of a side

// In SharedByBlocks::modulations.
enum Modulation : std::uint8_t { kOfImage, kOfText, kOfBoth };

Value widened(const Value& x, std::uint64_t width) {
  return unsqueezed(x, {x.size(0), 1, width});
}

// `count` vectors for each sample, [b, 1, h] each.
std::vector<Value> vectors_of(const Value& modulation, std::uint64_t count) {
  const Value wide = widened(modulation, modulation.size(-1));
  return split(wide, std::vector<std::uint64_t>(count, wide.size(-1) / count));
}

Shape joined_tokens(const Value& a, const Value& b) {
  Shape shape = a.shape();
  shape[1] += b.size(1);
  return shape;
}

Value joined(const Value& text, const Value& image) {
  return cat(std::array{text, image}, joined_tokens(text, image));
}

// ---- Attention ----

// apply_rotary_emb of [b, s, h, d]: neighbours are pairs.
Value rotated(const Value& x, const RotaryTables& tables) {
  const Value turned = [&] {
    Shape half = x.shape();
    half.back() /= 2;
    const std::vector<Value> pair = parts_of(x, std::array{half, half});
    return cat(std::array{neg(pair[1]), pair[0]}, x.shape());
  }();
  const Value straight = mul(to(x, DType::f32), tables.cos);
  const Value across = mul(to(turned, DType::f32), tables.sin);
  return to(add(straight, across), x.dtype());
}

// [b, s, h x d] to [b, s, h, d], wherever it lies.
Value heads_of(const Value& x, std::uint64_t heads) {
  return unsqueezed(x, {x.size(0), x.size(1), heads, x.size(2) / heads});
}

Value head_norm(const UnitView& block, std::string_view name, const Value& x) {
  return fused_rms_norm(x, block[name].weight);
}

// q, k and v [b, s, h, d] to [b, s, h x d].
Value attended(const Value& q, const Value& k, const Value& v) {
  const Value mixed = scaled_dot_product_attention(transpose(q), transpose(k), transpose(v), {});
  return view(transpose(mixed), {q.size(0), q.size(1), q.size(2) * q.size(3)});
}

std::uint64_t heads_in(const UnitView& block) {
  return block.module("attn.attention").attention->heads;
}

struct Streams {
  Value image;
  Value text;
};

// Flux2AttnProcessor. What it names lives until it returns.
Streams joint_attention(ForwardContext& context, const UnitView& block, const Value& image, const Value& text) {
  const std::uint64_t heads = heads_in(block);
  const auto projected = [&](std::string_view name, const Value& x) {
    return linear(x, block[fmt::format("attn.{}", name)]);
  };
  Value q = projected("to_q", image);
  Value k = projected("to_k", image);
  Value v = projected("to_v", image);
  Value text_q = projected("add_q_proj", text);
  Value text_k = projected("add_k_proj", text);
  Value text_v = projected("add_v_proj", text);
  q = head_norm(block, "attn.norm_q", heads_of(q, heads));
  k = head_norm(block, "attn.norm_k", heads_of(k, heads));
  v = heads_of(v, heads);
  text_q = head_norm(block, "attn.norm_added_q", heads_of(text_q, heads));
  text_k = head_norm(block, "attn.norm_added_k", heads_of(text_k, heads));
  text_v = heads_of(text_v, heads);
  q = joined(text_q, q);
  k = joined(text_k, k);
  v = joined(text_v, v);
  q = rotated(q, context.shared.tables);
  k = rotated(k, context.shared.tables);
  const std::vector<Value> parts = [&] {
    const Value mixed = attended(q, k, v);
    return parts_of(mixed, std::array{text.shape(), image.shape()});
  }();
  Streams output;
  output.text = linear_of_part(parts[0], block["attn.to_add_out"]);
  output.image = linear_of_part(parts[1], block["attn.to_out.0"]);
  return output;
}

// silu(the first half) * the second half
Value swiglu(const Value& x) {
  Shape half = x.shape();
  half.back() /= 2;
  const Value gate = unary("silu", slice(x, half));
  return mul(gate, slice(x, half));
}

Value feed_forward(const UnitView& block, std::string_view name, const Value& x) {
  Value inner = linear(x, block[fmt::format("{}.linear_in", name)]);
  inner = swiglu(inner);
  return linear(inner, block[fmt::format("{}.linear_out", name)]);
}

// ---- Blocks ----

// Flux2TransformerBlock
Value double_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const std::vector<Value> m = vectors_of(context.shared.modulations[kOfImage], 6);
  const std::vector<Value> t = vectors_of(context.shared.modulations[kOfText], 6);
  Value image = input;
  Value text = context.shared.encoded;
  for (const auto& [stream, x] : {std::pair{"", &image}, {"_context", &text}}) {
    stream_passes(block, {"norm1", "modulate1", "gate1", "norm2", "modulate2", "gate2"}, stream, *x);
  }
  Value norm = normed(image);
  norm = modulated(norm, m[1], m[0]);
  Value text_norm = normed(text);
  text_norm = modulated(text_norm, t[1], t[0]);
  const Streams mixed = joint_attention(context, block, norm, text_norm);
  const Value own = mul(m[2], mixed.image);
  image = add(image, own);
  norm = normed(image);
  norm = modulated(norm, m[4], m[3]);
  const Value fed = feed_forward(block, "ff", norm);
  image = add(image, mul(m[5], fed));
  const Value of_text = mul(t[2], mixed.text);
  text = add(text, of_text);
  text_norm = normed(text);
  text_norm = modulated(text_norm, t[4], t[3]);
  const Value text_fed = feed_forward(block, "ff_context", text_norm);
  text = add(text, mul(t[5], text_fed));
  context.shared.encoded = text;
  return image;
}

// Flux2SingleTransformerBlock: attention and MLP side by side, their projections in one.
Value single_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const std::vector<Value> m = vectors_of(context.shared.modulations[kOfBoth], 3);
  Value norm = normed(input);
  norm = modulated(norm, m[1], m[0]);
  const Value output = [&] {
    const std::uint64_t heads = heads_in(block);
    const std::uint64_t width = input.size(-1);
    const Value all = linear(norm, block["attn.to_qkv_mlp_proj"]);
    const std::vector<Value> parts = split(all, std::array{3 * width, all.size(-1) - 3 * width});
    const std::vector<Value> qkv = split(parts[0], std::array{width, width, width});
    Value q = head_norm(block, "attn.norm_q", heads_of(qkv[0], heads));
    Value k = head_norm(block, "attn.norm_k", heads_of(qkv[1], heads));
    const Value v = heads_of(qkv[2], heads);
    q = rotated(q, context.shared.tables);
    k = rotated(k, context.shared.tables);
    Value hidden = attended(q, k, v);
    const Value inner = swiglu(parts[1]);
    Shape both = hidden.shape();
    both.back() += inner.size(-1);
    hidden = cat(std::array{hidden, inner}, both);
    return linear(hidden, block["attn.to_out"]);
  }();
  return add(input, mul(m[2], output));
}

// ---- The model ----

Value condition_of(ForwardContext& context, const std::string& base) {
  const std::string name = base + "time_guidance_embed";
  const UnitView unit = required_unit(context, name + ".timestep_embedder.linear_1");
  const auto level = [&](const std::string& which) {
    const std::uint64_t features = unit.module(name + which + ".linear_1").input;
    const Value waves = context.tape.allocate("to", {context.batch(), features}, context.setup.policy.compute);
    return embedder(unit, name + which, waves);
  };
  Value time = level(".timestep_embedder");
  if (!unit.has(name + ".guidance_embedder.linear_1")) return time;
  return add(time, level(".guidance_embedder"));
}

Value modulation(ForwardContext& context, const std::string& name) {
  return linear(unary("silu", context.shared.condition), required_unit(context, name)[name]);
}

// Cosines and sines of text and image, and of both in a row: [1, s, 1, d].
std::array<RotaryTables, 3> tables_of(ForwardContext& context, std::uint64_t text, std::uint64_t image) {
  const std::uint64_t features = context.model.architecture.head_size;
  const auto table = [&](std::uint64_t tokens) {
    return context.tape.allocate("to", {1, tokens, 1, features}, DType::f32);
  };
  const auto both = [&](std::uint64_t tokens) { return RotaryTables{table(tokens), table(tokens)}; };
  return {both(image), both(text), both(text + image)};
}

Value flux2(ForwardContext& context) {
  Tape& tape = context.tape;
  context.carries_encoded = true;
  const std::string base = prefix_of(context, "x_embedder");
  const auto whole = [&](std::string_view name) { return base + std::string(name); };
  const auto layer = [&](std::string_view name) { return required_unit(context, whole(name))[whole(name)]; };
  const auto outside = [&](Shape shape) { return tape.outside(std::move(shape), context.setup.policy.compute); };
  const ClientSetup& client = context.client;
  const std::uint64_t side = context.model.architecture.image_side;
  const auto tokens_of = [&](std::uint64_t pixels) { return pixels == 0 ? side : pixels / kPixelsOfToken; };
  const std::uint64_t image_tokens = tokens_of(client.image_height) * tokens_of(client.image_width);
  if (image_tokens == 0) throw NotModelled("images smaller than a patch");
  const std::uint64_t text_tokens = context.tokens() == 0 ? kTextTokens : context.tokens();

  context.shared.condition = condition_of(context, base);
  for (const char* which :
       {"double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"}) {
    context.shared.modulations.push_back(modulation(context, whole(std::string(which) + ".linear")));
  }
  const Parameters patches = layer("x_embedder");
  const Value latents = outside({context.batch(), image_tokens, patches.module->input});
  Value hidden = linear(latents, patches);
  const Parameters words = layer("context_embedder");
  context.shared.encoded = linear(outside({context.batch(), text_tokens, words.module->input}), words);
  const std::array<RotaryTables, 3> tables = tables_of(context, text_tokens, image_tokens);
  context.shared.tables = tables[2];

  hidden = run_blocks(context, double_block, std::move(hidden), whole("transformer_blocks"));
  const Value text = context.shared.encoded;  // named until the forward returns
  context.shared.encoded.reset();
  const Shape of_image = hidden.shape();
  hidden = joined(text, hidden);
  hidden = run_blocks(context, single_block, std::move(hidden), whole("single_transformer_blocks"));
  const UnitView head = required_unit(context, whole("proj_out"));
  hidden = slice(hidden, of_image);
  const Value vectors = linear(unary("silu", context.shared.condition), head[whole("norm_out.linear")]);
  const std::uint64_t width = hidden.size(-1);
  const std::vector<Value> m = split(vectors, std::array{width, width});
  const Value factor = shift(m[0]);
  head.passes(whole("norm_out.norm"), hidden);
  head.passes(whole("norm_out.modulate"), hidden);
  hidden = add(mul(normed(hidden), widened(factor, width)), widened(m[1], width));
  const Value prediction = linear(hidden, head[whole("proj_out")]);
  hidden.reset();
  context.shared = {};
  return square_loss(context, prediction, outside(latents.shape()));
}

}  // namespace

std::span<const HfFamily> hf_flux2_families() {
  static constexpr HfFamily families[] = {{"Flux2Transformer2DModel", flux2}};
  return families;
}

}  // namespace shardplan::autograd
