#include "planner/activations/litgpt/litgpt_layers.h"

#include <fmt/format.h>

#include <array>
#include <vector>

#include "planner/activations/adapters.h"
#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

Shape with_last(Shape shape, std::uint64_t size) {
  shape.back() = size;
  return shape;
}

// x * rsqrt(mean(x * x) + eps)
Value normalised(const Value& x) {
  const Value inverse = [&] {
    Value square = mul(x, x);
    square = mean(square);
    square = shift(square);
    return rsqrt(square);
  }();
  return mul(x, inverse);
}

// LoRAQKVLinear.conv1d: B of each adapter on its r rows, one by one and joined where the sizes of queries and keys differ.
Value convolved(const Value& low, const Parameters& whole, std::span<const Parameters> adapted, bool grouped) {
  const std::uint64_t b = low.size(0);
  const std::uint64_t s = low.size(1);
  const Value rows = low.viewed({b, low.size(2), s});
  if (!grouped) return convolution(rows, whole.adapter.b, Value(), {b, whole.adapter.b.size(0), s});
  std::vector<Value> parts;
  for (const Parameters& part : adapted) {
    const Value own = slice(rows, {b, part.adapter.a.size(0), s});
    parts.push_back(convolution(own, part.adapter.b, Value(), {b, part.output, s}));
  }
  return cat(parts, {b, whole.adapter.b.size(0), s});
}

// LoRAQKVLinear.zero_pad: zeros of all features, into which those of the adapters are copied. index_copy_ keeps what it copies.
Value zero_padded(const Value& x, std::uint64_t features) {
  Tape& tape = x.tape();
  const Shape shape{x.size(0), x.size(2), features};
  Value result = tape.allocate("zeros", shape, x.dtype());
  const Value index = tape.allocate("index", {x.size(1)}, DType::i64);
  return tape.record("index_copy", std::span(&x, 1), std::move(result), {index, x},
                     [from = x.shape(), dtype = x.dtype()](Tape& t, std::span<const Value>, std::vector<Value>&) {
                       std::vector<Value> gradients;
                       gradients.push_back(t.allocate("index_select", from, dtype));
                       return gradients;
                     });
}

// Queries, keys and values at once, with the adapters of those that have one.
Value project(const UnitView& block, const AttentionSizes& sizes, const Value& x) {
  const std::array parts{block["attn.query"], block["attn.key"], block["attn.value"]};
  Parameters whole = block.joined("attn.qkv", parts);
  const Value pretrained = base_linear(x, whole, {.keeps_input = true});
  std::vector<Parameters> adapted;
  for (const Parameters& part : parts) {
    if (part.adapter.a.defined()) adapted.push_back(part);
  }
  if (adapted.empty()) return pretrained;
  whole.adapter = block.joined_adapter("attn.qkv", adapted);
  const Value low = [&] {
    return linear(dropout(x, whole.adapter.dropout), whole.adapter.a, Value(), whole.adapter.a.size(0));
  }();
  Value more = convolved(low, whole, adapted, sizes.heads != sizes.kv_heads);
  if (adapted.size() < parts.size()) {
    more = zero_padded(more, whole.output);
  } else {
    more = more.viewed({x.size(0), x.size(1), whole.output}).laid_out(Layout::in_order);
  }
  more = scale(more);
  return add(pretrained, more);
}

// apply_rope on the first features of each head, by tables in fp32; the rest is joined to it, even where there is none.
Value rotated(const Value& x, std::uint64_t features) {
  Tape& tape = x.tape();
  const Value table = tape.outside({1, 1, x.size(2), features}, DType::f32);
  const Value part = slice(x, with_last(x.shape(), features));
  const Value narrow = [&] {
    const Value half = slice(part, with_last(x.shape(), features / 2));
    const Value turned = cat(std::array{neg(half), half}, part.shape());
    const Value wide = [&] {
      const Value straight = mul(part, table);
      const Value across = mul(turned, table);
      return add(straight, across);
    }();
    return to(wide, x.dtype());
  }();
  const std::uint64_t rest = x.size(-1) - features;
  if (rest == 0) return cat(std::array{narrow}, x.shape());
  return cat(std::array{narrow, slice(x, with_last(x.shape(), rest))}, x.shape());
}

// A mask of all pairs that leaves those in the window; the causal one that it replaces is made first.
Value window_mask(ForwardContext& context) {
  const Shape pairs{1, 1, context.tokens(), context.tokens()};
  const DType dtype = context.setup.policy.parameter;
  const Value causal = context.tape.allocate("triu", pairs, dtype);
  return context.tape.allocate("full", pairs, dtype);
}

// What sdpa does not have: scores between -cap and cap.
Value capped_attention(ForwardContext& context, const Value& q, const Value& k, const Value& v, Value mask) {
  const Shape pairs{q.size(0), q.size(1), q.size(2), k.size(2)};
  Value scores = scale(batched_matmul(q, k, pairs));
  scores = scale(scores);
  scores = unary_of_output("tanh", scores);
  scores = scale(scores);
  if (!mask.defined()) mask = context.tape.allocate("triu", {q.size(2), q.size(2)}, q.dtype());
  scores = add(scores, mask);
  scores = to(softmax_in(scores, DType::f32), q.dtype());
  return batched_matmul(scores, v, {q.size(0), q.size(1), q.size(2), v.size(-1)});
}

Value attention_of(ForwardContext& context, const UnitView& block, const Value& x) {
  const AttentionSizes& sizes = *block.module("attn.attention").attention;
  const Value qkv = project(block, sizes, x);
  const std::uint64_t groups = sizes.kv_heads * sizes.head_size;
  std::vector<Value> parts = split(qkv, std::array{sizes.heads * sizes.head_size, groups, groups});
  Value q = split_heads(parts[0], sizes.heads);
  Value k = split_heads(parts[1], sizes.kv_heads);
  Value v = split_heads(parts[2], sizes.kv_heads);
  parts.clear();
  const std::uint64_t features = sizes.rotary_size != 0 ? sizes.rotary_size : sizes.head_size;
  q = rotated(q, features);
  k = rotated(k, features);
  k = repeat_heads(k, sizes.heads / sizes.kv_heads);
  v = repeat_heads(v, sizes.heads / sizes.kv_heads);
  const Value mask = in_window(block, sizes) ? window_mask(context) : Value();
  const Value mixed = block.has("attn.softcap")
                          ? capped_attention(context, q, k, v, mask)
                          : scaled_dot_product_attention(q, k, v, {.mask = mask, .causal = !mask.defined()});
  const Value joined = view(transpose(mixed), {x.size(0), x.size(1), sizes.heads * sizes.head_size});
  return litgpt_linear(block, "attn.proj", joined);
}

Value mlp_of(const UnitView& block, const Value& x) {
  if (block.has("mlp.fc")) {
    const Value inner = litgpt_linear(block, "mlp.fc", x);
    return litgpt_linear(block, "mlp.proj", unary("gelu", inner));
  }
  const Value gate = litgpt_linear(block, "mlp.fc_1", x);
  const Value up = litgpt_linear(block, "mlp.fc_2", x);
  const Value product = mul(unary("silu", gate), up);
  return litgpt_linear(block, "mlp.proj", product);
}

Value normed_if_any(const UnitView& block, std::string_view name, const Value& x) {
  return block.has(name) ? litgpt_norm(block[name], x) : x;
}

}  // namespace

Value litgpt_norm(const Parameters& layer, const Value& x) {
  if (layer.module->kind == ModuleKind::layer_norm) return layer_norm(x, layer.weight, layer.bias);
  const Value wide = normalised(to(x, DType::f32));
  const Value weight = layer.module->function == "unit_offset" ? shift(layer.weight) : layer.weight;
  const Value weighted = mul(wide, to(weight, DType::f32));
  return to(weighted, x.dtype());
}

Value litgpt_linear(const UnitView& unit, std::string_view name, const Value& x) {
  const Parameters layer = unit[name];
  const Value result = base_linear(x, layer, {.keeps_input = true});
  return layer.adapter.a.defined() ? plain_adapted(x, result, layer) : result;
}

Value litgpt_block(ForwardContext& context, const UnitView& block, const Value& input) {
  Value x = input;
  Value normed = litgpt_norm(block["norm_1"], x);
  Value attention = attention_of(context, block, normed);
  attention = normed_if_any(block, "post_attention_norm", attention);
  if (block.has("residual")) {
    if (block.has("norm_2")) normed = litgpt_norm(block["norm_2"], x);
    x = add(attention, x);
  } else {
    x = add(attention, x);
    normed = litgpt_norm(block["norm_2"], x);
  }
  const Value inner = normed_if_any(block, "post_mlp_norm", mlp_of(block, normed));
  return add(inner, x);
}

}  // namespace shardplan::autograd
