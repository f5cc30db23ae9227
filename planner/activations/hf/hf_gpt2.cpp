// GPT-2 and its kin (modeling_gpt2.py, modeling_gpt_bigcode.py, modeling_gpt_neo.py, modeling_gptj.py of transformers
// 4.57).
#include <array>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// ---- GPT-2 ----

// eager_attention_forward: everything in the model's dtype, and a mask of its own besides the model's.
Value eager_attention(ForwardContext& context, const Value& q, const Value& k, const Value& v, double dropped) {
  Tape& tape = context.tape;
  const Shape pairs{q.size(0), q.size(1), q.size(2), k.size(2)};
  Value weights = batched_matmul(q, k, pairs);
  weights = div(weights, tape.allocate("full", {}, weights.dtype()));
  {
    const Value least = tape.allocate("full", {}, weights.dtype());
    weights = where({}, weights);
  }
  if (context.shared.mask.defined()) weights = add(weights, context.shared.mask);
  weights = dropout(softmax(weights), dropped);
  context.block_locals.push_back(weights);
  const Value output = batched_matmul(weights, v, q.shape());
  return view(transpose(output), {q.size(0), q.size(2), q.size(1) * q.size(3)});
}

Value gpt2_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("attn.attention").attention;
  const std::uint64_t width = sizes.heads * sizes.head_size;
  std::vector<Value> parts = split(linear(hidden, block["attn.c_attn"]), std::array{width, width, width});
  for (Value& part : parts) part = split_heads(part, sizes.heads);
  Value k = parts[1];
  Value v = parts[2];
  cache(context, k, v);
  const double dropped = dropout_rate(block, "attn.attn_dropout");
  const Value mixed = context.attention() == AttentionKind::eager
                          ? eager_attention(context, parts[0], k, v, dropped)
                          : attend(context, parts[0], k, v, {.mask = context.shared.mask, .dropout = dropped});
  return dropout(linear(mixed, block["attn.c_proj"]), block, "attn.resid_dropout");
}

Value mlp(const UnitView& block, const Value& x) {
  Value hidden = linear(x, block["mlp.c_fc"]);
  hidden = activate(hidden, block, "mlp.act");
  hidden = linear(hidden, block["mlp.c_proj"]);
  return dropout(hidden, block, "mlp.dropout");
}

using Attention = Value (*)(ForwardContext& context, const UnitView& block, const Value& hidden);

Value block_with(ForwardContext& context, const UnitView& block, const Value& input, Attention attention) {
  Value residual = input;
  Value hidden = layer_norm(block["ln_1"], input);
  Value mixed = attention(context, block, hidden);
  hidden = add(mixed, residual);
  residual = hidden;
  hidden = layer_norm(block["ln_2"], hidden);
  const Value inner = mlp(block, hidden);
  return add(residual, inner);
}

Value gpt2_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_with(context, block, input, gpt2_attention);
}

// ---- GPT-BigCode: one head of keys and values ----

Value bigcode_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("attn.attention").attention;
  const std::uint64_t width = sizes.heads * sizes.head_size;
  const std::uint64_t keys = sizes.kv_heads * sizes.head_size;
  const Value fused = linear(hidden, block["attn.c_attn"]);
  std::vector<Value> parts;
  if (sizes.kv_heads == 1) {
    parts = split(fused, std::array{width, keys, keys});
    for (Value& part : parts) part = split_heads(part, part.size(-1) / sizes.head_size);
  } else {
    const std::uint64_t size = sizes.head_size;
    parts = split(split_heads(fused, sizes.heads), std::array{size, size, size});
  }
  Value k = parts[1];
  Value v = parts[2];
  cache(context, k, v);
  const double dropped = dropout_rate(block, "attn.attn_dropout");
  const Value mixed = attend(context, parts[0], k, v, {.mask = context.shared.mask, .dropout = dropped});
  return dropout(linear(mixed, block["attn.c_proj"]), block, "attn.resid_dropout");
}

Value bigcode_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_with(context, block, input, bigcode_attention);
}

// ---- GPT-Neo and GPT-J: scores in fp32, whatever attention is asked for ----

Value wide_heads(ForwardContext& context, const Value& query, const Value& key, const Value& v, bool masks_itself,
                 double dropped) {
  const Value q = to(query, DType::f32);
  const Value k = to(key, DType::f32);
  Value weights = batched_matmul(q, k, {q.size(0), q.size(1), q.size(2), k.size(2)});
  if (masks_itself) {
    const Value least = context.tape.allocate("full", {}, DType::f32);
    weights = where({}, weights);
  } else {
    weights = scale(weights);
  }
  if (context.shared.mask.defined()) weights = add(weights, context.shared.mask);
  weights = softmax(weights);
  weights = to(weights, v.dtype());
  weights = dropout(weights, dropped);
  context.block_locals.push_back(weights);
  return batched_matmul(weights, v, q.shape());
}

Value wide_attention(ForwardContext& context, const Value& q, const Value& k, const Value& v, bool masks_itself,
                     double dropped) {
  const Value output = contiguous(transpose(wide_heads(context, q, k, v, masks_itself, dropped)));
  return view(output, {q.size(0), q.size(2), q.size(1) * q.size(3)});
}

Value neo_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("attn.attention.attention").attention;
  const Value q = split_heads(linear(hidden, block["attn.attention.q_proj"]), sizes.heads);
  Value k = split_heads(linear(hidden, block["attn.attention.k_proj"]), sizes.heads);
  Value v = split_heads(linear(hidden, block["attn.attention.v_proj"]), sizes.heads);
  cache(context, k, v);
  const double dropped = dropout_rate(block, "attn.attention.attn_dropout");
  const Value mixed = wide_attention(context, q, k, v, true, dropped);
  return dropout(linear(mixed, block["attn.attention.out_proj"]), block, "attn.attention.resid_dropout");
}

Value neo_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_with(context, block, input, neo_attention);
}

// Sines and cosines of every token's position, gathered in each block; half of each pair (create_sinusoidal_positions).
struct Waves {
  Value rows, places, both;
};

Waves gather_waves(ForwardContext& context, std::uint64_t size, DType dtype) {
  Tape& tape = context.tape;
  const Shape shape{1, context.tokens(), size};
  Waves waves;
  waves.rows = tape.allocate("repeat", {1, context.model.architecture.max_positions, size}, DType::f32);
  waves.places = tape.allocate("repeat", shape, DType::i64);
  const Value gathered = tape.allocate("gather", shape, DType::f32);
  waves.both = to(gathered, dtype);
  return waves;
}

// apply_rotary_pos_emb on [b, s, h, d].
Value rotate_pairs(const Value& x) {
  Tape& tape = x.tape();
  const Shape whole{1, x.size(1), 1, x.size(3)};
  const Value sin = tape.allocate("repeat_interleave", whole, x.dtype());
  const Value cos = tape.allocate("repeat_interleave", whole, x.dtype());
  Shape half = x.shape();
  half.back() /= 2;
  const auto rotated = [&] {
    const Value first = slice(x, half);
    const Value second = slice(x, half);
    return cat(std::array{neg(second), first}, x.shape());
  };
  return add(mul(x, cos), mul(rotated(), sin));
}

Value gptj_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("attn.attention").attention;
  const Shape split{hidden.size(0), hidden.size(1), sizes.heads, sizes.head_size};
  Value q = view(linear(hidden, block["attn.q_proj"]), split);
  Value k = view(linear(hidden, block["attn.k_proj"]), split);
  Value v = split_heads(linear(hidden, block["attn.v_proj"]), sizes.heads);
  const std::uint64_t rotated = sizes.rotary_size > 0 ? sizes.rotary_size : sizes.head_size;
  // Variables of its forward, these and the parts of queries and keys, live until it returns.
  const Waves waves = gather_waves(context, rotated, k.dtype());
  std::array<Value, 2> turned;
  std::array<Value, 2> rest;
  if (rotated == sizes.head_size) {
    k = rotate_pairs(k);
    q = rotate_pairs(q);
  } else {
    Shape part = split;
    part.back() = rotated;
    Shape other = split;
    other.back() -= rotated;
    for (std::size_t i = 0; i < 2; ++i) rest[i] = slice(i == 0 ? k : q, other);
    for (std::size_t i = 0; i < 2; ++i) turned[i] = rotate_pairs(slice(i == 0 ? k : q, part));
    k = cat(std::array{turned[0], rest[0]}, split);
    q = cat(std::array{turned[1], rest[1]}, split);
  }
  q = transpose(q);
  k = transpose(k);
  cache(context, k, v);
  const Value mixed = wide_attention(context, q, k, v, false, dropout_rate(block, "attn.attn_dropout"));
  return dropout(linear(mixed, block["attn.out_proj"]), block, "attn.resid_dropout");
}

Value gptj_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const Value hidden = layer_norm(block["ln_1"], input);
  const Value mixed = gptj_attention(context, block, hidden);
  Value inner = activate(linear(hidden, block["mlp.fc_in"]), block, "mlp.act");
  inner = dropout(linear(inner, block["mlp.fc_out"]), block, "mlp.dropout");
  return add(add(mixed, inner), input);
}

// ---- The models around the blocks ----

// Words and, where the model has a table of them, positions; `older`: the mask is the model's own.
Value base_model(ForwardContext& context, BlockForward block, bool older) {
  const std::string base = prefix_of(context, "wte");
  const Value ids = context.tape.outside({context.batch(), context.tokens()}, DType::i64);
  const UnitView unit = required_unit(context, base + "wte");
  const Value words = embedding_output(context, embedding(ids, unit[base + "wte"].weight));
  context.shared.positions = {arange(context, context.tokens())};
  Value positions;
  Value hidden = words;
  if (older) context.shared.mask = make_older_mask(context, false);
  if (unit.has(base + "wpe")) {
    positions = embedding(context.shared.positions[0].viewed({1, context.tokens()}), unit[base + "wpe"].weight);
    hidden = add(words, positions);
  }
  if (!older) context.shared.mask = make_causal_mask(context);
  hidden = dropout(hidden, dropout_rate(context, base + "drop"));
  hidden = run_blocks(context, block, std::move(hidden));
  if (const auto last = unit_with(context, base + "ln_f")) hidden = layer_norm((*last)[base + "ln_f"], hidden);
  context.shared = {};
  return hidden;
}

Value gpt2_lm(ForwardContext& context, BlockForward block) {
  return language_loss(context, "lm_head", base_model(context, block, false));
}

// Its blocks are no GradientCheckpointingLayer: the class takes the wish and keeps everything.
Value bigcode_lm(ForwardContext& context) {
  if (context.client.recompute != RecomputeKind::none) {
    throw NotModelled("recomputation (transformers 4.57 accepts it and keeps everything)");
  }
  return gpt2_lm(context, bigcode_block);
}

Value wide_lm(ForwardContext& context, BlockForward block) {
  return language_loss(context, "lm_head", base_model(context, block, true), true);
}

}  // namespace

std::span<const HfFamily> hf_gpt2_families() {
  static constexpr HfFamily families[] = {
      {"gpt2", [](ForwardContext& context) { return gpt2_lm(context, gpt2_block); }},
      {"gpt_bigcode", bigcode_lm},
      {"gpt_neo", [](ForwardContext& context) { return wide_lm(context, neo_block); }},
      {"gptj", [](ForwardContext& context) { return wide_lm(context, gptj_block); }}};
  return families;
}

}  // namespace shardplan::autograd
