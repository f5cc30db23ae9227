// Encoders with decoders that attend to them (modeling_t5.py, modeling_bart.py, modeling_whisper.py of transformers 4.57).
// The encoder reads the client's sequence, the decoder its target; Whisper's encoder reads a sound of the model's own
// length, and its decoder the target, or else the sequence.
#include "planner/activations/hf/hf_t5.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

std::uint64_t target_tokens(const ForwardContext& context) {
  return context.client.target > 0 ? context.client.target : context.tokens();
}

// What the decoder reads: the labels, one place later (_shift_right, shift_tokens_right).
Value shifted_labels(ForwardContext& context) {
  return context.tape.allocate("shifted labels", {context.batch(), target_tokens(context)}, DType::i64);
}

// Of all pairs, for a model that was given a mask or made one of ones (_update_causal_mask).
Value causal_mask(ForwardContext& context, std::uint64_t tokens) {
  return context.tape.allocate("clone", {context.batch(), 1, tokens, tokens}, context.setup.policy.parameter);
}

// ---- T5: attention is always eager; its bias is the first block's, for all of the stack ----

// T5LayerNorm: the variance in fp32, of a copy; the product of the input with a number of each token.
Value t5_norm(const Value& x, const Value& weight) {
  Value variance;
  {
    const Value wide = to(x, DType::f32);
    variance = mean(pow(wide));
  }
  Value hidden = mul(x, rsqrt(shift(variance)));
  if (bits(weight.dtype()) == 16) hidden = to(hidden, weight.dtype());
  return mul(weight, hidden);
}

// Of keys: what is added where they are padding.
Value keys_mask(ForwardContext& context, std::uint64_t keys) {
  const DType dtype = context.setup.policy.parameter;
  const Shape shape{context.batch(), 1, 1, keys};
  const Value cast = context.tape.allocate("to", shape, dtype);
  const Value inverted = context.tape.allocate("rsub", shape, dtype);
  return context.tape.allocate("mul", shape, dtype);
}

// compute_bias: a number for each head and each distance of two tokens.
Value relative_bias(ForwardContext& context, const Parameters& table, std::uint64_t tokens) {
  const Shape pairs{tokens, tokens};
  const Value buckets = context.tape.allocate("buckets", pairs, DType::i64);
  {
    const Value distances = context.tape.allocate("sub", pairs, DType::i64);
    const std::array terms{context.tape.allocate("log", pairs, DType::f32),
                           context.tape.allocate("to", pairs, DType::i64),
                           context.tape.allocate("min", pairs, DType::i64)};
  }
  const std::uint64_t heads = table.weight.size(-1);
  const Value values = embedding(buckets, table.weight);
  return slice(values, {1, heads, tokens, tokens});
}

// `bias`: of the stack; made here where it is not there yet.
Value t5_attention(ForwardContext& context, const UnitView& block, const std::string& name, const Value& hidden,
                   const Value& states, Value& bias, bool caches) {
  const std::uint64_t heads = block.module(name + ".attention").attention->heads;
  const Value q = split_heads(linear(hidden, block[name + ".q"]), heads);
  Value k = linear(states, block[name + ".k"]);
  Value v = linear(states, block[name + ".v"]);
  k = split_heads(k, heads);
  v = split_heads(v, heads);
  if (caches) {
    cache(context, k, v);
  }
  Value scores = batched_matmul(q, k, {q.size(0), heads, q.size(2), k.size(2)});
  if (!bias.defined()) {
    const std::string table = name + ".relative_attention_bias";
    Value positions;
    if (block.has(table)) {
      positions = relative_bias(context, block[table], q.size(2));
    } else {
      positions = context.tape.allocate("zeros", {1, heads, q.size(2), k.size(2)}, scores.dtype());
      // The class asks for a gradient of them when blocks are computed again.
      if (context.client.recompute != RecomputeKind::none) positions = context.tape.leaf(positions);
    }
    bias = add(positions, context.shared.mask);
  }
  scores = add_in_place(scores, bias);
  Value weights = softmax(to(scores, DType::f32));
  weights = to(weights, scores.dtype());
  weights = dropout(weights, block, name + ".dropout");
  const Value mixed = contiguous(transpose(batched_matmul(weights, v, q.shape())));
  return linear(view(mixed, {q.size(0), q.size(2), heads * v.size(-1)}), block[name + ".o"]);
}

Value t5_mlp(const UnitView& block, const std::string& name, const Value& x) {
  const std::string dense = name + ".DenseReluDense.";
  Value hidden;
  if (block.has(dense + "wi_0")) {
    const Value gate = activate(linear(x, block[dense + "wi_0"]), block, dense + "act");
    const Value up = linear(x, block[dense + "wi_1"]);
    hidden = mul(gate, up);
    hidden = dropout(hidden, block, dense + "dropout");
  } else {
    hidden = linear(x, block[dense + "wi"]);
    hidden = activate(hidden, block, dense + "act");
    hidden = dropout(hidden, block, dense + "dropout");
  }
  const Parameters wo = block[dense + "wo"];
  return linear(to(hidden, wo.weight.dtype()), wo);  // to the weights' dtype, which under autocast is wider
}

// A part of a block behind its norm, added to what came in.
template <typename Part>
Value t5_part(const UnitView& block, const std::string& name, const Value& input, const Part& part) {
  Value output = part(t5_norm(input, block[name + ".layer_norm"].weight));
  return add(input, dropout(output, block, name + ".dropout"));
}

Value t5_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const bool decodes = block.has("layer.1.EncDecAttention.q");
  Value hidden = t5_part(block, "layer.0", input, [&](const Value& x) {
    return t5_attention(context, block, "layer.0.SelfAttention", x, x, context.shared.bias, decodes);
  });
  if (decodes) {
    hidden = t5_part(block, "layer.1", hidden, [&](const Value& x) {
      std::swap(context.shared.mask, context.shared.cross_mask);
      Value output = t5_attention(context, block, "layer.1.EncDecAttention", x, context.shared.encoded,
                                  context.shared.cross_bias, true);
      std::swap(context.shared.mask, context.shared.cross_mask);
      return output;
    });
  }
  const std::string last = decodes ? "layer.2" : "layer.1";
  return t5_part(block, last, hidden, [&](const Value& x) { return t5_mlp(block, last, x); });
}

struct Stack {
  std::string name;
  Value ids;
  std::uint64_t tokens = 0;
};

Value t5_stack(ForwardContext& context, const Stack& stack) {
  const std::string words = stack.name + ".embed_tokens";
  const Value embedded = embedding_output(context, embedding(stack.ids, required_unit(context, words)[words].weight));
  context.shared.positions = {arange(context, stack.tokens)};
  const Value ones = context.tape.allocate("ones", {context.batch(), stack.tokens}, DType::f32);
  const bool decodes = context.shared.encoded.defined();
  context.makes_biases = true;
  context.shared.mask = decodes ? causal_mask(context, stack.tokens) : keys_mask(context, stack.tokens);
  if (decodes) context.shared.cross_mask = keys_mask(context, context.shared.encoded.size(1));
  const double dropped = dropout_rate(context, stack.name + ".dropout");
  Value hidden = dropout(embedded, dropped);
  hidden = run_blocks(context, t5_block, std::move(hidden), stack.name + ".block");
  const std::string norm = stack.name + ".final_layer_norm";
  hidden = t5_norm(hidden, required_unit(context, norm)[norm].weight);
  context.shared = {.encoded = std::move(context.shared.encoded)};
  context.makes_biases = false;
  return dropout(hidden, dropped);
}

Value t5(ForwardContext& context) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "encoder.embed_tokens");
  const Value ids = tape.outside({context.batch(), context.tokens()}, DType::i64);
  context.shared.encoded = t5_stack(context, {base + "encoder", ids, context.tokens()});
  Value decoded = t5_stack(context, {base + "decoder", shifted_labels(context), target_tokens(context)});
  const UnitView head = required_unit(context, "lm_head");
  const Purpose before = tape.set_purpose(Purpose::loss);
  if (!head.module("lm_head").tensors[0].tied_to.empty()) decoded = scale(decoded);
  Value loss = token_loss(linear(decoded, head["lm_head"]));
  tape.set_purpose(before);
  context.shared.encoded.reset();
  return loss;
}

// ---- What BART and Whisper share ----

struct Attended {
  Value q, k, v;
};

Value attend_in_dtype(ForwardContext& context, const Attended& a, const AttentionCall& call) {
  if (context.attention() == AttentionKind::eager) return eager_attention(context, a.q, a.k, a.v, call);
  return attend(context, a.q, a.k, a.v, call);
}

// Whisper scales queries itself, and copies all three so that heads lie outside.
Attended project(const UnitView& block, const std::string& name, const Value& hidden, const Value& states,
                 bool whisper) {
  const std::uint64_t heads = block.module(name + ".attention").attention->heads;
  const auto projected = [&](const Value& x, std::string_view part) {
    const Value y = linear(x, block[fmt::format("{}.{}", name, part)]);
    return whisper && part == "q_proj" ? scale(y) : y;
  };
  Attended a;
  a.q = split_heads(projected(hidden, "q_proj"), heads);
  if (whisper) a.q = contiguous(a.q);
  a.k = projected(states, "k_proj");
  a.v = projected(states, "v_proj");
  a.k = split_heads(a.k, heads);
  a.v = split_heads(a.v, heads);
  if (whisper) {
    a.k = contiguous(a.k);
    a.v = contiguous(a.v);
  }
  return a;
}

Value attention_part(ForwardContext& context, const UnitView& block, const std::string& name, const Value& hidden,
                     const Value& states, const AttentionCall& call, bool whisper, bool caches) {
  Attended a = project(block, name, hidden, states, whisper);
  if (caches) {
    cache(context, a.k, a.v);
  }
  return linear(attend_in_dtype(context, a, call), block[name + ".out_proj"]);
}

// self-attention, attention to the encoder where there is one, MLP; norms before each part (Whisper) or behind (BART).
Value sequence_block(ForwardContext& context, const UnitView& block, const Value& input, bool whisper) {
  const bool decodes = block.has("encoder_attn.q_proj");
  Value residual = input;
  Value hidden = input;
  const auto attended = [&](const std::string& name, const Value& states, const AttentionCall& call) {
    if (whisper) hidden = layer_norm(block[name + "_layer_norm"], hidden);
    hidden = attention_part(context, block, name, hidden, states.defined() ? states : hidden, call, whisper, decodes);
    hidden = dropout(hidden, block, "dropout");
    hidden = add(residual, hidden);
    if (!whisper) hidden = layer_norm(block[name + "_layer_norm"], hidden);
    residual = hidden;
  };
  attended("self_attn", {},
           {.mask = context.shared.mask, .dropout = dropout_rate(block, "self_attn.dropout"), .causal = decodes});
  if (decodes) {
    attended(
        "encoder_attn", context.shared.encoded,
        {.mask = context.shared.cross_mask, .dropout = dropout_rate(block, "encoder_attn.dropout"), .causal = false});
  }
  if (whisper) hidden = layer_norm(block["final_layer_norm"], hidden);
  hidden = activate(linear(hidden, block["fc1"]), block, "act");
  hidden = dropout(hidden, block, "activation_dropout");
  hidden = linear(hidden, block["fc2"]);
  hidden = dropout(hidden, block, "dropout");
  hidden = add(residual, hidden);
  return whisper ? hidden : layer_norm(block["final_layer_norm"], hidden);
}

// ---- BART ----

Value bart_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return sequence_block(context, block, input, false);
}

Value bart_stack(ForwardContext& context, const Stack& stack) {
  Tape& tape = context.tape;
  const bool decodes = context.shared.encoded.defined();
  // _update_full_mask, _update_cross_attn_mask: sdpa takes none where no token is padding.
  const bool masked = context.client.mask == MaskKind::padded ||
                      (context.client.mask == MaskKind::ones && context.attention() == AttentionKind::eager);
  // The table of words may lie in another unit: it is the whole model's.
  const std::string table = stack.name + ".embed_tokens";
  // Not the module that peft asks for a gradient, which is the model's `shared`: see embedding_output().
  const Value words = scale(embedding(stack.ids, required_unit(context, table)[table].weight));
  const UnitView unit = required_unit(context, stack.name + ".embed_positions");
  Value ones;
  if (decodes) {
    ones = tape.allocate("ones", {context.batch(), stack.tokens}, DType::f32);
    if (context.attention() == AttentionKind::eager) context.shared.mask = causal_mask(context, stack.tokens);
    if (masked) context.shared.cross_mask = padding_of_pairs(context, stack.tokens);
  } else if (masked) {
    context.shared.mask = padding_of_pairs(context);
  }
  const Value range = arange(context, stack.tokens);
  if (decodes) context.shared.positions = {range};
  const std::uint64_t rows = decodes ? 1 : context.batch();
  const Value places = tape.allocate("add", {rows, stack.tokens}, DType::i64);
  const Value positions = embedding(places, unit[stack.name + ".embed_positions"].weight);
  Value hidden = add(words, positions);
  hidden = layer_norm(unit[stack.name + ".layernorm_embedding"], hidden);
  hidden = dropout(hidden, dropout_rate(context, stack.name + ".dropout"));
  hidden = run_blocks(context, bart_block, std::move(hidden), stack.name + ".layers");
  context.shared = {.encoded = std::move(context.shared.encoded)};
  return hidden;
}

Value bart(ForwardContext& context) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "encoder.embed_tokens");
  const Value labels = shifted_labels(context);
  const Value ids = tape.outside({context.batch(), context.tokens()}, DType::i64);
  context.shared.encoded = bart_stack(context, {base + "encoder", ids, context.tokens()});
  const Value decoded = bart_stack(context, {base + "decoder", labels, target_tokens(context)});
  const UnitView head = required_unit(context, "lm_head");
  const Purpose before = tape.set_purpose(Purpose::loss);
  Value logits = linear(decoded, head["lm_head"]);
  logits = add(logits, tape.outside({1, logits.size(-1)}, logits.dtype()));  // final_logits_bias, a buffer
  Value loss = token_loss(logits);
  tape.set_purpose(before);
  context.shared.encoded.reset();
  return loss;
}

// ---- Whisper ----

Value whisper_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return sequence_block(context, block, input, true);
}

Value whisper_encoder(ForwardContext& context, const std::string& name) {
  Tape& tape = context.tape;
  const UnitView unit = required_unit(context, name + ".conv1");
  const Parameters table = unit[name + ".embed_positions"];
  const std::uint64_t tokens = table.weight.size(0);
  const Parameters first = unit[name + ".conv1"];
  const Parameters second = unit[name + ".conv2"];
  const Value sound = tape.outside({context.batch(), first.module->input, 2 * tokens}, first.weight.dtype());
  Value hidden =
      unary("gelu", convolution(sound, first.weight, first.bias, {context.batch(), first.module->output, 2 * tokens}));
  hidden =
      unary("gelu", convolution(hidden, second.weight, second.bias, {context.batch(), second.module->output, tokens}));
  const Value embedded = view(hidden, {context.batch(), tokens, second.module->output});
  const Value places = arange(context, tokens);
  hidden = add(embedded, embedding(places, table.weight));
  hidden = dropout(hidden, dropout_rate(context, name + ".dropout"));
  hidden = run_blocks(context, whisper_block, std::move(hidden), name + ".layers");
  return layer_norm(required_unit(context, name + ".layer_norm")[name + ".layer_norm"], hidden);
}

Value whisper_decoder(ForwardContext& context, const std::string& name, const Value& ids) {
  Tape& tape = context.tape;
  const std::string table = name + ".embed_tokens";
  const Value words = embedding_output(context, embedding(ids, required_unit(context, table)[table].weight));
  const UnitView unit = required_unit(context, name + ".embed_positions");
  context.shared.positions = {arange(context, ids.size(1))};
  const Value places = tape.allocate("repeat", ids.shape(), DType::i64);
  const Value positions = embedding(places, unit[name + ".embed_positions"].weight);
  Value hidden = add(words, positions);
  hidden = dropout(hidden, dropout_rate(context, name + ".dropout"));
  // The mask is made beside a cache that is there already when recomputation switches it off.
  context.never_packed = context.client.use_cache && context.model.architecture.use_cache;
  context.shared.mask = make_causal_mask(context, 0, false, ids.size(1));
  hidden = run_blocks(context, whisper_block, std::move(hidden), name + ".layers");
  context.shared = {.encoded = std::move(context.shared.encoded)};
  return layer_norm(required_unit(context, name + ".layer_norm")[name + ".layer_norm"], hidden);
}

Value whisper(ForwardContext& context) {
  Tape& tape = context.tape;
  const std::string base = prefix_of(context, "encoder.conv1");
  const Value labels = shifted_labels(context);
  context.shared.encoded = whisper_encoder(context, base + "encoder");
  const Value decoded = whisper_decoder(context, base + "decoder", labels);
  const UnitView head = required_unit(context, "proj_out");
  const Purpose before = tape.set_purpose(Purpose::loss);
  Value loss = token_loss(linear(decoded, head["proj_out"]));
  tape.set_purpose(before);
  context.shared.encoded.reset();
  return loss;
}

}  // namespace

Value t5_encoder(ForwardContext& context, const std::string& base, std::uint64_t tokens) {
  const Value ids = context.tape.outside({context.batch(), tokens}, DType::i64);
  return t5_stack(context, {base + "encoder", ids, tokens});
}

std::span<const HfFamily> hf_t5_families() {
  static constexpr HfFamily families[] = {{"t5", t5}, {"mt5", t5}, {"bart", bart}, {"whisper", whisper}};
  return families;
}

}  // namespace shardplan::autograd
