// GPT-NeoX and its kin (modeling_gpt_neox.py, modeling_bloom.py, modeling_falcon.py, modeling_mpt.py, modeling_opt.py,
// modeling_phi.py of transformers 4.57).
#include <array>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

std::uint64_t rotated_features(const AttentionSizes& sizes) {
  return sizes.rotary_size > 0 ? sizes.rotary_size : sizes.head_size;
}

Value megatron_mlp(const UnitView& block, const Value& x) {
  return plain_mlp(block, "mlp", "dense_h_to_4h", "dense_4h_to_h", x);
}

bool is_parallel(const UnitView& block) {
  return block.has("residual") && block.module("residual").function == "parallel";
}

bool is_normed(const UnitView& block) {
  return block.has("residual") && block.module("residual").function == "normed";
}

// ---- GPT-NeoX ----

Value neox_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("attention.attention").attention;
  const std::uint64_t size = sizes.head_size;
  std::vector<Value> parts;
  Value q, k, v;
  {
    const Value fused = split_heads(linear(hidden, block["attention.query_key_value"]), sizes.heads);
    parts = split(fused, std::array{size, size, size});
  }
  q = std::move(parts[0]);
  k = std::move(parts[1]);
  v = std::move(parts[2]);
  rotate_part(q, k, context.shared.tables, rotated_features(sizes));
  cache(context, k, v);
  const double dropped = dropout_rate(block, "attention.attention_dropout");
  const Value mixed = attend(context, q, k, v, {.mask = context.shared.mask, .dropout = dropped});
  return linear(mixed, block["attention.dense"]);
}

Value neox_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value mixed = neox_attention(context, block, layer_norm(block["input_layernorm"], input));
  mixed = dropout(mixed, block, "post_attention_dropout");
  const bool parallel = is_parallel(block);
  if (!parallel) mixed = add(mixed, input);
  Value inner = megatron_mlp(block, layer_norm(block["post_attention_layernorm"], parallel ? input : mixed));
  inner = dropout(inner, block, "post_mlp_dropout");
  return parallel ? add(add(inner, mixed), input) : add(inner, mixed);
}

// Words, and all that the model makes for its blocks; `norm`: of their output.
struct DecoderNames {
  std::string_view words;
  std::string_view dropout;
  std::string_view norm;
};

Value decoder(ForwardContext& context, BlockForward block, const DecoderNames& names, std::uint64_t rotated,
              Value (*make_mask)(ForwardContext&)) {
  const std::string base = prefix_of(context, names.words);
  const auto whole = [&](std::string_view name) { return base + std::string(name); };
  const UnitView unit = required_unit(context, whole(names.words));
  const Value ids = context.tape.outside({context.batch(), context.tokens()}, DType::i64);
  const Value words = embedding_output(context, embedding(ids, unit[whole(names.words)].weight));
  context.shared.positions = {arange(context, context.tokens())};
  context.shared.mask = make_mask(context);
  Value hidden = dropout(words, dropout_rate(context, whole(names.dropout)));
  if (rotated > 0) context.shared.tables = make_rotary(context, rotated);
  hidden = run_blocks(context, block, std::move(hidden));
  if (const auto last = unit_with(context, whole(names.norm))) hidden = layer_norm((*last)[whole(names.norm)], hidden);
  context.shared = {};
  return hidden;
}

Value newer_mask(ForwardContext& context) {
  return make_causal_mask(context);
}

Value older_mask(ForwardContext& context) {
  return make_older_mask(context, false);
}

Value neox_lm(ForwardContext& context, BlockForward block) {
  const std::uint64_t rotated = rotated_features(attention_of(context));
  const Value hidden = decoder(context, block, {"embed_in", "emb_dropout", "final_layer_norm"}, rotated, newer_mask);
  return language_loss(context, "embed_out", hidden);
}

// ---- Phi: attention and MLP behind one norm ----

Value phi_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("self_attn.attention").attention;
  Value q = split_heads(linear(hidden, block["self_attn.q_proj"]), sizes.heads);
  Value k = split_heads(linear(hidden, block["self_attn.k_proj"]), sizes.kv_heads);
  Value v = split_heads(linear(hidden, block["self_attn.v_proj"]), sizes.kv_heads);
  if (block.has("self_attn.q_layernorm")) {
    q = layer_norm(block["self_attn.q_layernorm"], q);
    k = layer_norm(block["self_attn.k_layernorm"], k);
  }
  rotate_part(q, k, context.shared.tables, rotated_features(sizes));
  cache(context, k, v);
  const double dropped = dropout_rate(block, "self_attn.attention_dropout");
  return linear(attend(context, q, k, v, {.mask = context.shared.mask, .dropout = dropped}), block["self_attn.dense"]);
}

Value phi_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const Value hidden = layer_norm(block["input_layernorm"], input);
  Value mixed = phi_attention(context, block, hidden);
  mixed = dropout(mixed, block, "resid_dropout");
  const Value inner = dropout(plain_mlp(block, "mlp", "fc1", "fc2", hidden), block, "resid_dropout");
  return add(add(mixed, inner), input);
}

Value phi_lm(ForwardContext& context, BlockForward block) {
  const std::uint64_t rotated = rotated_features(attention_of(context));
  const Value hidden =
      decoder(context, block, {"embed_tokens", "embed_dropout", "final_layernorm"}, rotated, newer_mask);
  return language_loss(context, "lm_head", hidden);
}

// ---- Falcon ----

struct Heads {
  Value q, k, v;  // [b, h, s, d]
};

// _split_heads: heads of queries, then one of keys and one of values; in the new architecture so for each group.
Heads falcon_heads(const Value& fused, const AttentionSizes& sizes, bool grouped) {
  const std::uint64_t batch = fused.size(0);
  const std::uint64_t tokens = fused.size(1);
  const std::uint64_t size = sizes.head_size;
  if (sizes.kv_heads == sizes.heads && !grouped) {
    const Value split = view(fused, {batch, tokens, sizes.heads, 3 * size});
    const Shape part{batch, tokens, sizes.heads, size};
    return {transpose(slice(split, part)), transpose(slice(split, part)), transpose(slice(split, part))};
  }
  const std::uint64_t groups = grouped ? sizes.kv_heads : 1;
  const std::uint64_t each = sizes.heads / groups;
  const Value split = view(fused, {batch, tokens, groups, each + 2, size});
  const Value q = slice(split, {batch, tokens, groups, each, size});
  const Value k = index(split, {batch, tokens, groups, 1, size});
  const Value v = index(split, {batch, tokens, groups, 1, size});
  if (!grouped) {
    const auto joined = [&](const Value& x, std::uint64_t heads) {
      return transpose(view(x, {batch, tokens, heads, size}));
    };
    return {joined(q, each), joined(k, 1), joined(v, 1)};
  }
  // Keys and values are broadcast to the queries of their group, and all three copied as heads are joined.
  const Shape all{batch, tokens, sizes.heads, size};
  return {transpose(copied(q, all)), transpose(copied(k, all)), transpose(copied(v, all))};
}

// In the model's dtype, without dropout.
Value falcon_eager(ForwardContext& context, const Heads& heads) {
  const auto& [q, k, v] = heads;
  const std::uint64_t times = q.size(1) / k.size(1);
  Value scores = batched_matmul(q, repeat_heads(k, times), {q.size(0), q.size(1), q.size(2), k.size(2)});
  scores = scaled_in_place(scores);
  scores = softmax(add(scores, context.shared.mask));
  context.block_locals.push_back(scores);
  return batched_matmul(scores, repeat_heads(v, times), q.shape());
}

Value falcon_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("self_attention.attention").attention;
  if (!sizes.rotary) throw NotModelled("falcon with alibi");
  if (hidden.tape().autocast() && block["self_attention.query_key_value"].bias.defined()) {
    throw NotModelled("biases under autocast, which its class adds in fp32,");
  }
  const Value fused = linear(hidden, block["self_attention.query_key_value"]);
  Heads heads = falcon_heads(fused, sizes, block.has("ln_attn") || (is_parallel(block) && sizes.kv_heads > 1));
  rotate(heads.q, heads.k, context.shared.tables);
  cache(context, heads.k, heads.v);
  Value mixed;
  if (context.attention() == AttentionKind::eager) {
    mixed = falcon_eager(context, heads);
  } else {
    if (context.shared.mask.defined()) {  // brought in order; of one head they are
      for (Value* x : {&heads.q, &heads.k, &heads.v}) {
        if (x->layout() != Layout::in_order && x->size(1) > 1) *x = contiguous(*x);
      }
    }
    mixed = scaled_dot_product_attention(heads.q, heads.k, heads.v,
                                         {.mask = context.shared.mask,
                                          .causal = !context.shared.mask.defined(),
                                          .broadcasts = heads.k.size(1) < heads.q.size(1)});
  }
  mixed = view(transpose(mixed), {hidden.size(0), hidden.size(1), sizes.heads * sizes.head_size});
  return linear(mixed, block["self_attention.dense"]);
}

Value falcon_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value residual = input;
  const bool two_norms = block.has("ln_attn");
  const Value normed = layer_norm(block[two_norms ? "ln_attn" : "input_layernorm"], input);
  Value inner = two_norms ? layer_norm(block["ln_mlp"], input) : normed;
  const Value mixed = falcon_attention(context, block, normed);
  if (!is_parallel(block)) {
    residual = add(residual, dropout(mixed, block, "self_attention.attention_dropout"));
    inner = layer_norm(block["post_attention_layernorm"], residual);
  }
  Value output = megatron_mlp(block, inner);
  if (is_parallel(block)) output = add_in_place(output, mixed);
  return add(residual, dropout(output, block, "hidden_dropout"));
}

Value falcon_lm(ForwardContext& context, BlockForward block) {
  const std::uint64_t size = context.model.architecture.head_size;
  context.returns_probabilities = true;
  const Value hidden = decoder(context, block, {"word_embeddings", "", "ln_f"}, size, older_mask);
  return language_loss(context, "lm_head", hidden);
}

// ---- BLOOM: positions are a bias of attention, which is always computed eagerly ----

// GeLUFunction: keeps its input; its backward is written out (bloom_gelu_back).
Value bloom_mlp(const UnitView& block, const Value& x, const Value& residual) {
  const Value hidden = custom_gelu(linear(x, block["mlp.dense_h_to_4h"]));
  const Value inner = linear(hidden, block["mlp.dense_4h_to_h"]);
  return add(residual, dropout(inner, block, "mlp.hidden_dropout"));
}

Value bloom_attention(ForwardContext& context, const UnitView& block, const Value& hidden, const Value& residual) {
  const AttentionSizes& sizes = *block.module("self_attention.attention").attention;
  const std::uint64_t batch = hidden.size(0);
  const std::uint64_t tokens = hidden.size(1);
  const Shape shape{batch, tokens, sizes.heads, sizes.head_size};
  const Value fused =
      view(linear(hidden, block["self_attention.query_key_value"]), {batch, tokens, sizes.heads, 3 * sizes.head_size});
  Value q = transpose(slice(fused, shape));
  Value k = transpose(slice(fused, shape));
  Value v = transpose(slice(fused, shape));
  cache(context, k, v);
  const Shape pairs{batch, sizes.heads, tokens, tokens};
  const Shape folded{batch * sizes.heads, tokens, sizes.head_size};
  q = view(q, folded);
  k = view(k, folded);
  v = view(v, folded);
  const Value scores = view(matmul(q, k, {folded[0], tokens, tokens}), pairs);
  const Value weights = context.shared.mask.defined() ? add(scores, context.shared.mask) : scores;
  Value probabilities = [&] {
    const Value wide = softmax_in(weights, DType::f32);
    return to(wide, q.dtype());
  }();
  probabilities = dropout(probabilities, block, "self_attention.attention_dropout");
  context.block_locals.push_back(probabilities);
  Value mixed = matmul(view(probabilities, {folded[0], tokens, tokens}), v, folded);
  mixed = transpose(view(mixed, {batch, sizes.heads, tokens, sizes.head_size}));
  mixed = view(mixed, {batch, tokens, sizes.heads * sizes.head_size});
  const Value output = linear(mixed, block["self_attention.dense"]);
  return add(residual, dropout(output, block, "self_attention.hidden_dropout"));
}

Value bloom_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value normed = layer_norm(block["input_layernorm"], input);
  Value residual = is_normed(block) ? normed : input;
  const Value mixed = bloom_attention(context, block, normed, residual);
  normed = layer_norm(block["post_attention_layernorm"], mixed);
  residual = is_normed(block) ? normed : mixed;
  return bloom_mlp(block, normed, residual);
}

Value bloom_lm(ForwardContext& context, BlockForward block) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "word_embeddings");
  const UnitView unit = required_unit(context, base + "word_embeddings");
  Value hidden;
  {
    const Value ids = tape.outside({context.batch(), context.tokens()}, DType::i64);
    const Value words = embedding_output(context, embedding(ids, unit[base + "word_embeddings"].weight));
    context.shared.positions = {arange(context, context.tokens())};
    hidden = layer_norm(unit[base + "word_embeddings_layernorm"], words);
    const Value ones = tape.allocate("ones", {context.batch(), context.tokens()}, DType::f32);
    const std::uint64_t heads = context.model.architecture.heads;
    context.shared.bias = tape.allocate("alibi", {context.batch() * heads, 1, context.tokens()}, hidden.dtype());
    context.shared.mask = make_older_mask(context, true);
    context.returns_probabilities = true;
    hidden = run_blocks(context, block, std::move(hidden));
    if (const auto last = unit_with(context, base + "ln_f")) hidden = layer_norm((*last)[base + "ln_f"], hidden);
    context.shared = {};
  }
  return language_loss(context, "lm_head", hidden);
}

// ---- MPT: the same in fp32, since the bias is ----

Value mpt_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("attn.attention").attention;
  const std::uint64_t width = sizes.heads * sizes.head_size;
  Value fused = linear(hidden, block["attn.Wqkv"]);
  if (block.has("attn.clip_qkv")) fused = clamp(fused, 2);
  std::vector<Value> parts = split(fused, std::array{width, width, width});
  for (Value& part : parts) part = split_heads(part, sizes.heads);
  Value k = parts[1];
  Value v = parts[2];
  cache(context, k, v);
  const Shape pairs{hidden.size(0), sizes.heads, hidden.size(1), hidden.size(1)};
  Value scores = scale(batched_matmul(parts[0], k, pairs));
  scores = add(scores, slice(context.shared.bias, {sizes.heads, 1, hidden.size(1)}));
  scores = where(context.shared.mask, scores);
  Value weights = to(softmax(scores), v.dtype());
  weights = dropout(weights, block, "attn.attn_dropout");
  context.block_locals.push_back(weights);
  Value mixed = contiguous(transpose(batched_matmul(weights, v, parts[0].shape())));
  return linear(view(mixed, {hidden.size(0), hidden.size(1), width}), block["attn.out_proj"]);
}

Value mpt_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value normed = layer_norm(block["norm_1"], input);
  const Value mixed = mpt_attention(context, block, normed);
  const Value hidden = add(dropout(mixed, block, "resid_attn_dropout"), input);
  normed = layer_norm(block["norm_2"], hidden);
  const Value inner = plain_mlp(block, "ffn", "up_proj", "down_proj", normed);
  return add(dropout(inner, block, "ffn.hidden_dropout"), hidden);
}

Value mpt_mask(ForwardContext& context) {
  Tape& tape = context.tape;
  const Architecture& a = context.model.architecture;
  context.shared.bias = tape.allocate("alibi", {a.heads, 1, a.max_positions}, DType::f32);
  const Shape pairs{context.batch(), 1, context.tokens(), context.tokens()};
  const Value mask = tape.allocate("mask", pairs, context.setup.policy.parameter);
  return tape.allocate("to", pairs, DType::boolean);
}

Value mpt_lm(ForwardContext& context, BlockForward block) {
  context.returns_probabilities = true;
  const Value hidden = decoder(context, block, {"wte", "", "norm_f"}, 0, mpt_mask);
  context.shared.bias.reset();
  return language_loss(context, "lm_head", hidden);
}

// ---- OPT: learned positions, which follow from the mask ----

Value opt_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = *block.module("self_attn.attention").attention;
  const Value q = split_heads(scale(linear(hidden, block["self_attn.q_proj"])), sizes.heads);
  Value k = linear(hidden, block["self_attn.k_proj"]);
  Value v = linear(hidden, block["self_attn.v_proj"]);
  k = split_heads(k, sizes.heads);
  v = split_heads(v, sizes.heads);
  cache(context, k, v);
  const double dropped = dropout_rate(block, "self_attn.dropout");
  const Value mixed = attend(context, q, k, v, {.mask = context.shared.mask, .dropout = dropped});
  return linear(mixed, block["self_attn.out_proj"]);
}

Value opt_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const bool after = is_normed(block);  // as the model of 350 million parameters
  Value residual = input;
  Value hidden = after ? input : layer_norm(block["self_attn_layer_norm"], input);
  hidden = opt_attention(context, block, hidden);
  hidden = dropout(hidden, block, "dropout");
  hidden = add(residual, hidden);
  if (after) hidden = layer_norm(block["self_attn_layer_norm"], hidden);
  residual = hidden;
  if (!after) hidden = layer_norm(block["final_layer_norm"], hidden);
  hidden = linear(hidden, block["fc1"]);
  hidden = activate(hidden, block, "act");
  hidden = linear(hidden, block["fc2"]);
  hidden = dropout(hidden, block, "dropout");
  hidden = add(residual, hidden);
  return after ? layer_norm(block["final_layer_norm"], hidden) : hidden;
}

Value opt_lm(ForwardContext& context, BlockForward block) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "decoder.embed_tokens").append("decoder.");
  const UnitView unit = required_unit(context, base + "embed_tokens");
  Value hidden;
  {
    const Shape tokens{context.batch(), context.tokens()};
    Value words =
        embedding_output(context, embedding(tape.outside(tokens, DType::i64), unit[base + "embed_tokens"].weight));
    context.shared.positions = {arange(context, context.tokens())};
    const Value ones = tape.allocate("ones", tokens, DType::f32);
    context.shared.mask = make_older_mask(context, true);
    context.shared.positions.push_back(tape.allocate("to", tokens, DType::i64));
    const Value positions = embedding(tape.allocate("add", tokens, DType::i64), unit[base + "embed_positions"].weight);
    if (unit.has(base + "project_in")) words = linear(words, unit[base + "project_in"]);
    hidden = add(words, positions);
    hidden = run_blocks(context, block, std::move(hidden));
    if (const auto last = unit_with(context, base + "final_layer_norm")) {
      hidden = layer_norm((*last)[base + "final_layer_norm"], hidden);
    }
    if (const auto last = unit_with(context, base + "project_out"))
      hidden = linear(hidden, (*last)[base + "project_out"]);
    context.shared = {};
  }
  return language_loss(context, "lm_head", hidden);
}

}  // namespace

std::span<const HfFamily> hf_gpt_neox_families() {
  static constexpr HfFamily families[] = {
      {"gpt_neox", [](ForwardContext& context) { return neox_lm(context, neox_block); }},
      {"phi", [](ForwardContext& context) { return phi_lm(context, phi_block); }},
      {"falcon", [](ForwardContext& context) { return falcon_lm(context, falcon_block); }},
      {"bloom", [](ForwardContext& context) { return bloom_lm(context, bloom_block); }},
      {"mpt", [](ForwardContext& context) { return mpt_lm(context, mpt_block); }},
      {"opt", [](ForwardContext& context) { return opt_lm(context, opt_block); }}};
  return families;
}

}  // namespace shardplan::autograd
