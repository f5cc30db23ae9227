// Chameleon (modeling_chameleon.py of transformers 4.57, ChameleonForConditionalGeneration): images are words of its vocabulary. They
// come as such among the others, or as pixels, of which the model makes words itself (hf_chameleon_vq.cpp) where a sequence has
// others in their place.
#include "planner/activations/hf/hf_chameleon.h"

#include <fmt/format.h>

#include <cstdint>
#include <string_view>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// ChameleonLayerNorm: statistics of each head, weights and biases of its own.
Value head_norm(const Parameters& layer, const Value& x) {
  const Value normed = layer_norm(x, Value(), Value());
  return add(mul(normed, layer.weight), layer.bias);
}

// ChameleonAttention. Each layer makes cosines and sines of its own.
Value attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = sizes_of(block);
  const std::uint64_t batch = hidden.size(0);
  const std::uint64_t tokens = hidden.size(1);
  Heads heads = project(block, hidden);
  const auto normed = [&](std::string_view name, const Value& x, std::uint64_t count) {
    return head_norm(block[name], view(x, {batch * tokens, count, sizes.head_size}));
  };
  heads.q = normed("self_attn.q_norm", heads.q, sizes.heads);
  heads.k = normed("self_attn.k_norm", heads.k, sizes.kv_heads);
  heads.q = transpose(view(heads.q, {batch, tokens, sizes.heads, sizes.head_size}));
  heads.k = transpose(view(heads.k, {batch, tokens, sizes.kv_heads, sizes.head_size}));
  heads.v = split_heads(heads.v, sizes.kv_heads);
  const RotaryTables tables = make_rotary(context, sizes.head_size);
  rotate(heads.q, heads.k, tables);
  return attended(context, block, heads);
}

Value mlp(const UnitView& block, const Value& x) {
  return gated_mlp(block, "mlp", x);
}

Value chameleon_block(ForwardContext& context, const UnitView& block, const Value& input) {
  if (block.has("residual")) {  // ChameleonSwinDecoderLayer
    return block_with_norms_behind(context, block, input, rms_norm, "input_layernorm", "post_attention_layernorm",
                                   attention, mlp);
  }
  return block_of(context, block, input, rms_norm, attention, mlp);
}

// Words, and in the place of some of them those of the images.
Value embedded(ForwardContext& context) {
  Tape& tape = context.tape;
  const std::string_view name = "model.embed_tokens";
  const UnitView unit = required_unit(context, name);
  const Value ids = tape.outside({context.batch(), context.tokens()}, DType::i64);
  const Value table = unit[name].weight;
  Value words = embedding_output(context, embedding(ids, table));
  if (context.client.images == 0) return words;
  const Value tokens = chameleon_image_tokens(context);
  if (tokens.elements() > ids.elements()) {
    throw NotModelled(fmt::format("{} tokens of images (none with --images 0) in a sequence of {}",
                                  context.client.images * tokens.size(1), context.tokens()));
  }
  required_unit(context, name);  // what follows is the embedding's again
  const Value features = embedding_output(context, embedding(tokens, table));
  context.base_locals.push_back(features);
  const Value places = tape.allocate("eq", ids.shape(), DType::boolean);
  // That there are as many of them as features is checked on a copy.
  index_at(words, places, features.shape());
  return masked_scatter(words, places, features);
}

// A model does not put out images: logits of their words are the least number.
Value loss_of_words(ForwardContext& context, Value logits) {
  const UnitView head = required_unit(context, "lm_head");
  logits = fill_at(logits, context.tape.allocate("index", {head.module("image_tokens").output}, DType::i64));
  if (context.client.keeps_outputs) context.tape.keep(logits);
  return causal_loss(context, logits);
}

Value chameleon(ForwardContext& context) {
  return causal_lm(context, {.block = chameleon_block,
                             .stack = "model.layers",
                             .embed = embedded,
                             .loss = loss_of_words,
                             .own_tables = true});
}

}  // namespace

std::span<const HfFamily> hf_chameleon_families() {
  static constexpr HfFamily families[] = {{"chameleon", chameleon}};
  return families;
}

}  // namespace shardplan::autograd
