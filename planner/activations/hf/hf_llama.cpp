// Llama and its kin, as transformers 4.57 has them: each block as its modeling_*.py reads.
#include <fmt/format.h>

#include <array>
#include <string_view>
#include <vector>

#include "planner/activations/hf/hf_decoder.h"
#include "planner/activations/hf/hf_gemma3.h"
#include "planner/activations/hf/hf_llama.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

Value mlp(const UnitView& block, const Value& x) {
  return gated_mlp(block, "mlp", x);
}

}  // namespace

Value llama_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_of(context, block, input, rms_norm, llama_attention, mlp);
}

namespace {

Value llama(ForwardContext& context) {
  return causal_lm(context, {.block = llama_block});
}

Value qwen2(ForwardContext& context) {
  return causal_lm(context, {.block = llama_block, .masks = Masks::window_if_asked});
}

Value qwen3(ForwardContext& context) {
  return causal_lm(
      context, {.block = [](ForwardContext& c, const UnitView& block,
                            const Value& input) { return block_of(c, block, input, rms_norm, qwen3_attention, mlp); },
                .masks = Masks::window_if_asked});
}

// Its own norm, a scaled embedding.
Value gemma(ForwardContext& context) {
  return causal_lm(
      context, {.block = [](ForwardContext& c, const UnitView& block,
                            const Value& input) { return block_of(c, block, input, gemma_norm, llama_attention, mlp); },
                .norm = gemma_norm,
                .embedding_scale = EmbeddingScale::after_masks});
}

// Norms behind attention and MLP too; no cache in training; every second layer has a window.
template <typename Attention>
Value gemma2_block_of(ForwardContext& context, const UnitView& block, const Value& input, Attention attention) {
  Value residual = input;
  Value hidden = gemma_norm(block["input_layernorm"], input);
  hidden = attention(context, block, hidden);
  hidden = gemma_norm(block["post_attention_layernorm"], hidden);
  hidden = add(residual, hidden);
  residual = hidden;
  hidden = gemma_norm(block["pre_feedforward_layernorm"], hidden);
  hidden = mlp(block, hidden);
  hidden = gemma_norm(block["post_feedforward_layernorm"], hidden);
  return add(residual, hidden);
}

Value gemma2(ForwardContext& context) {
  return causal_lm(context,
                   {.block = [](ForwardContext& c, const UnitView& block,
                                const Value& input) { return gemma2_block_of(c, block, input, llama_attention); },
                    .norm = gemma_norm,
                    .embedding_scale = EmbeddingScale::after_masks,
                    .masks = Masks::both,
                    .never_caches = true});
}

// Norms on queries and keys; layers with a window rotate by tables of their own.
Value gemma3_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads = project_heads(block, hidden);
  norm_heads(heads, block, gemma_norm);
  rotate(heads.q, heads.k, tables_of(context, block));
  return attended(context, block, heads);
}

}  // namespace

Value gemma3_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return gemma2_block_of(context, block, input, gemma3_attention);
}

namespace {

Value gemma3(ForwardContext& context) {
  return causal_lm(context, {.block = gemma3_block,
                             .norm = gemma_norm,
                             .embedding_scale = EmbeddingScale::in_module,
                             .masks = Masks::both,
                             .two_tables = true,
                             .hands_all_tables = true,
                             .never_caches = true});
}

// One projection for queries, keys and values, and one for gate and up; a rotated part of each head that may be all of it.
Value phi3_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = sizes_of(block);
  const Value all = linear(hidden, block["self_attn.qkv_proj"]);
  const auto part = [&](std::uint64_t count) {
    return slice(all, {all.size(0), all.size(1), count * sizes.head_size});
  };
  Heads heads{part(sizes.heads), part(sizes.kv_heads), part(sizes.kv_heads)};
  split(heads, sizes);
  const std::uint64_t features = rotary_size(sizes);
  rotate_part(heads.q, heads.k, context.shared.tables, features, RotatedParts::one_by_one);
  return dropout(attended(context, block, heads), block, "resid_attn_dropout");
}

Value phi3_mlp(const UnitView& block, const Value& x) {
  const Value both = linear(x, block["mlp.gate_up_proj"]);
  const std::uint64_t width = both.size(-1) / 2;
  const std::vector<Value> parts = split(both, std::array{width, width});
  const Module& function = block.module("mlp.activation_fn");
  const Value product = mul(parts[1], activate(parts[0], function.function));
  return dropout(linear(product, block["mlp.down_proj"]), block, "resid_mlp_dropout");
}

Value phi3(ForwardContext& context) {
  return causal_lm(context, {.block = [](ForwardContext& c, const UnitView& block, const Value& input) {
                     return block_of(c, block, input, rms_norm, phi3_attention, phi3_mlp);
                   }});
}

Value olmo_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads = project(block, hidden);
  clip(heads, block);
  split(heads, sizes_of(block));
  rotate(heads.q, heads.k, context.shared.tables, Rotation::wide_tables);
  return attended(context, block, heads);
}

Value olmo(ForwardContext& context) {
  return causal_lm(
      context, {.block = [](ForwardContext& c, const UnitView& block,
                            const Value& input) { return block_of(c, block, input, olmo_norm, olmo_attention, mlp); },
                .norm = olmo_norm,
                .rotation = Rotation::wide_tables});
}

// Norms behind attention and MLP alone, and on all queries and all keys at once.
Value olmo2_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  Heads heads;
  heads.q = rms_norm_in_fp32(block["self_attn.q_norm"], linear(hidden, block["self_attn.q_proj"]));
  heads.k = rms_norm_in_fp32(block["self_attn.k_norm"], linear(hidden, block["self_attn.k_proj"]));
  heads.v = linear(hidden, block["self_attn.v_proj"]);
  split(heads, sizes_of(block));
  rotate(heads.q, heads.k, tables_of(context, block), Rotation::wide_tables);
  return attended(context, block, heads);
}

Value olmo2_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_with_norms_behind(context, block, input, rms_norm_in_fp32, "post_attention_layernorm",
                                 "post_feedforward_layernorm", olmo2_attention, mlp);
}

Value olmo2(ForwardContext& context) {
  return causal_lm(context, {.block = olmo2_block, .norm = rms_norm_in_fp32, .rotation = Rotation::wide_tables});
}

Value olmo3(ForwardContext& context) {
  return causal_lm(context, {.block = olmo2_block,
                             .norm = rms_norm_in_fp32,
                             .rotation = Rotation::wide_tables,
                             .masks = Masks::both,
                             .two_tables = true});
}

// What is added to the residual is scaled, and so are embedding and logits.
Value granite_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value residual = input;
  Value hidden = rms_norm(block["input_layernorm"], input);
  hidden = llama_attention(context, block, hidden);
  hidden = add(residual, scale(hidden));
  residual = hidden;
  hidden = rms_norm(block["post_attention_layernorm"], hidden);
  hidden = mlp(block, hidden);
  return add(residual, scale(hidden));
}

Value granite(ForwardContext& context) {
  return causal_lm(context,
                   {.block = granite_block, .embedding_scale = EmbeddingScale::at_once, .scaled_logits = true});
}

// With use_qk_norm each head has weights of its own, and is normed before heads lie outside.
Value cohere_heads(const UnitView& block, std::string_view norm, const Value& x, std::uint64_t heads) {
  if (!block.has(norm)) return split_heads(x, heads);
  return transpose(cohere_norm(block[norm], view(x, {x.size(0), x.size(1), heads, x.size(2) / heads})));
}

// Attention and MLP side by side behind one norm.
Value cohere_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const Value hidden = cohere_norm(block["input_layernorm"], input);
  const Value attention = [&] {
    Heads heads = project(block, hidden);
    const AttentionSizes& sizes = sizes_of(block);
    heads.q = cohere_heads(block, "self_attn.q_norm", heads.q, sizes.heads);
    heads.k = cohere_heads(block, "self_attn.k_norm", heads.k, sizes.kv_heads);
    heads.v = split_heads(heads.v, sizes.kv_heads);
    rotate(heads.q, heads.k, context.shared.tables, Rotation::interleaved);
    return attended(context, block, heads);
  }();
  const Value inner = mlp(block, hidden);
  return add(add(input, attention), inner);
}

Value cohere(ForwardContext& context) {
  return causal_lm(
      context, {.block = cohere_block, .norm = cohere_norm, .rotation = Rotation::interleaved, .scaled_logits = true});
}

Value starcoder2_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  return dropout(llama_attention(context, block, hidden), block, "self_attn.residual_dropout");
}

Value starcoder2_mlp(const UnitView& block, const Value& x) {
  return dropout(plain_mlp(block, "mlp", "c_fc", "c_proj", x), block, "mlp.residual_dropout");
}

Value starcoder2(ForwardContext& context) {
  return causal_lm(context, {.block =
                                 [](ForwardContext& c, const UnitView& block, const Value& input) {
                                   return block_of(c, block, input, layer_norm, starcoder2_attention, starcoder2_mlp);
                                 },
                             .norm = layer_norm,
                             .late_dropout = "model.embedding_dropout"});
}

// A norm for each head, where there are some (StableLmLayerNormPerHead).
Value norm_each_head(const UnitView& block, std::string_view norms, const Value& x) {
  const auto name = [&](std::uint64_t head) { return fmt::format("self_attn.{}.norms.{}", norms, head); };
  if (!block.has(name(0))) return x;
  const std::vector<Value> heads =
      parts_of(x, std::vector<Shape>(x.size(1), Shape{x.size(0), 1, x.size(2), x.size(3)}));
  std::vector<Value> normed;
  for (std::uint64_t i = 0; i < heads.size(); ++i) normed.push_back(layer_norm(block[name(i)], heads[i]));
  return cat(normed, x.shape());
}

// Rotates a part of each head, and repeats keys and values before it asks for a kernel.
Value repeated_attention(ForwardContext& context, const UnitView& block, const Value& hidden) {
  const AttentionSizes& sizes = sizes_of(block);
  Heads heads = project(block, hidden);
  split(heads, sizes);
  heads.q = norm_each_head(block, "q_layernorm", heads.q);
  heads.k = norm_each_head(block, "k_layernorm", heads.k);
  rotate_part(heads.q, heads.k, context.shared.tables, rotary_size(sizes));
  return attended_repeated(context, block, heads);
}

Value nemotron_mlp(const UnitView& block, const Value& x) {
  return plain_mlp(block, "mlp", "up_proj", "down_proj", x);
}

Value nemotron(ForwardContext& context) {
  return causal_lm(context, {.block =
                                 [](ForwardContext& c, const UnitView& block, const Value& input) {
                                   return block_of(c, block, input, nemotron_norm, repeated_attention, nemotron_mlp);
                                 },
                             .norm = nemotron_norm,
                             .older_mask = true});
}

Value stablelm_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value residual = input;
  const Value hidden = layer_norm(block["input_layernorm"], input);
  const Value attention = repeated_attention(context, block, hidden);
  if (!block.has("post_attention_layernorm")) {
    const Value inner = dropout(mlp(block, hidden), block, "dropout");
    return add(add(residual, attention), inner);
  }
  residual = add(residual, attention);
  const Value inner = dropout(mlp(block, layer_norm(block["post_attention_layernorm"], residual)), block, "dropout");
  return add(residual, inner);
}

Value stablelm(ForwardContext& context) {
  return causal_lm(context, {.block = stablelm_block, .norm = layer_norm, .older_mask = true});
}

}  // namespace

std::span<const HfFamily> hf_llama_families() {
  static constexpr HfFamily families[] = {
      {"llama", llama},   {"mistral", llama},         {"qwen2", qwen2},        {"qwen3", qwen3},
      {"gemma", gemma},   {"gemma2", gemma2},         {"gemma3_text", gemma3}, {"phi3", phi3},
      {"olmo", olmo},     {"olmo2", olmo2},           {"olmo3", olmo3},        {"granite", granite},
      {"cohere", cohere}, {"starcoder2", starcoder2}, {"nemotron", nemotron},  {"stablelm", stablelm},
  };
  return families;
}

}  // namespace shardplan::autograd
