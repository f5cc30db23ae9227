#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

namespace {

Value last_padded_to(const Value& x, std::uint64_t multiple) {
  if (x.size(-1) % multiple == 0) return x;
  Shape shape = x.shape();
  shape.back() = round_up(shape.back(), multiple);
  return simple("pad", x, x.tape().allocate("pad", std::move(shape), x.dtype()));
}

// That of a kernel that works on [b, s, h, d], for a tensor that is [b, h, s, d].
Layout swapped_layout(const Shape& shape) {
  return shape[1] > 1 && shape[2] > 1 ? Layout::swapped : Layout::in_order;
}

// Gradients of q, k and v, which lie as they do, or as the kernel has them.
Formula attention_gradients(std::string_view operation, std::span<const Value> inputs, std::optional<Layout> layout) {
  struct Input {
    Meta meta;
    Layout layout;
  };
  std::vector<Input> metas;
  for (const Value& input : inputs) metas.push_back({meta_of(input), layout.value_or(input.layout())});
  return [operation, metas = std::move(metas)](Tape& tape, std::span<const Value>, std::vector<Value>&) {
    std::vector<Value> gradients;
    for (const Input& input : metas) gradients.push_back(fresh(tape, operation, input.meta, input.layout));
    return gradients;
  };
}

}  // namespace

Value flash_attention(const Value& query, const Value& key, const Value& value) {
  Tape& tape = query.tape();
  const std::array inputs{last_padded_to(query, 8), last_padded_to(key, 8), last_padded_to(value, 8)};
  const auto& [q, k, v] = inputs;
  Shape shape = q.shape();
  shape.back() = v.size(-1);
  Value output = tape.allocate("flash attention", shape, q.dtype(), q.layout());
  Shape rows = q.shape();
  rows.pop_back();
  std::vector<Value> saved{q,
                           k,
                           v,
                           output,
                           tape.allocate("log-sum-exp", std::move(rows), DType::f32),
                           tape.allocate("random state", {2}, DType::u64),
                           tape.allocate("random state", {}, DType::u64)};
  output = tape.record("flash attention", inputs, std::move(output), std::move(saved),
                       attention_gradients("flash attention backward", inputs, std::nullopt));
  if (v.size(-1) == value.size(-1)) return output;
  shape.back() = value.size(-1);
  return slice(output, std::move(shape)).laid_out(Layout::with_gaps);
}

Value efficient_attention(const Value& q, const Value& k, const Value& v, const Value& bias) {
  Tape& tape = q.tape();
  Shape shape = q.shape();
  shape.back() = v.size(-1);
  Value output = tape.allocate("efficient attention", shape, q.dtype(), swapped_layout(shape));
  const std::array inputs{q, k, v};
  std::vector<Value> saved{q, k, v, output};
  const bool kept = tape.grad_enabled() &&
                    std::any_of(inputs.begin(), inputs.end(), [](const Value& input) { return input.requires_grad(); });
  const Shape rows{q.size(0), q.size(1), kept ? round_up(q.size(2), std::uint64_t{32}) : 0};
  saved.push_back(tape.allocate("log-sum-exp", rows, DType::f32));
  saved.push_back(tape.allocate("random state", {}, DType::i64));
  saved.push_back(tape.allocate("random state", {}, DType::i64));
  if (bias.defined()) saved.push_back(bias);
  return tape.record("efficient attention", inputs, std::move(output), std::move(saved),
                     attention_gradients("efficient attention backward", inputs, swapped_layout(shape)));
}

Value repeat_heads(const Value& x, std::uint64_t times) {
  if (times == 1) return x;
  Shape shape = x.shape();
  shape[1] *= times;
  // A copy of the expanded tensor; its backward sums over the copies.
  return simple("repeat", x, x.tape().allocate("clone", std::move(shape), x.dtype()));
}

Value batched_matmul(const Value& left, const Value& right, const Shape& shape) {
  const Value a = lowered(left);
  const Value b = lowered(right);
  const auto folded = [](const Value& x) { return view(x, {x.size(0) * x.size(1), x.size(2), x.size(3)}); };
  const Value product = matmul(folded(a), folded(b), {shape[0] * shape[1], shape[2], shape[3]});
  return view(product, shape);
}

namespace {

// A boolean mask as what is added to scores (attention.cpp, convert_boolean_attn_mask).
Value additive(const Value& mask, DType dtype) {
  Tape& tape = mask.tape();
  const Value no = tape.allocate("scalar", {}, dtype);
  const Value yes = tape.allocate("scalar", {}, dtype);
  return tape.allocate("where", mask.shape(), dtype);
}

// Rows of a bias start at multiples of 16 elements (attention.cpp, pad_bias).
Value aligned(const Value& bias) {
  return bias.defined() && bias.size(-1) % 16 != 0 ? last_padded_to(bias, 16) : bias;
}

bool may_use_flash(const Value& q, const Value& v, const Value& mask) {
  return bits(q.dtype()) == 16 && !mask.defined() && q.size(-1) == v.size(-1) && q.size(-1) <= 256;
}

bool may_use_efficient(const Value& q, const Value& k, const Value& v) {
  const std::uint64_t whole = bits(q.dtype()) == 16 ? 8 : 4;
  return q.size(1) == k.size(1) && q.size(-1) % whole == 0 && v.size(-1) % whole == 0;
}

}  // namespace

Value plain_attention(const Value& query, const Value& key, const Value& value, const SdpaOptions& options) {
  Tape& tape = query.tape();
  // 16-bit operands are brought to fp32 (attention.cpp, _scaled_dot_product_attention_math).
  const DType inside = bits(query.dtype()) == 16 ? DType::f32 : query.dtype();
  const Value wide_query = to(query, inside);
  const Value wide_key = to(key, inside);
  const Value wide_value = to(value, inside);
  const Value q = scale(wide_query);
  Value bias = options.mask;
  if (options.causal) {
    const Shape pairs{q.size(2), key.size(2)};
    Value lower;
    {
      const Value ones = tape.allocate("ones", pairs, DType::boolean);
      lower = tape.allocate("tril", pairs, DType::boolean);
    }
    bias = additive(lower, q.dtype());
  } else if (bias.defined() && bias.dtype() == DType::boolean) {
    bias = additive(bias, query.dtype());
  }
  const auto repeated = [&, times = q.size(1) / key.size(1)](const Value& x) {
    // Expanded, one text's heads are a view of one; several texts' are copied to be one batch.
    const bool view = options.broadcasts && x.size(0) == 1;
    return view ? expand(x, {1, q.size(1), x.size(2), x.size(3)}) : repeat_heads(x, times);
  };
  const Value k = options.broadcasts ? wide_key : repeated(wide_key);
  const Value v = repeated(wide_value);
  const Shape pairs{q.size(0), q.size(1), q.size(2), key.size(2)};
  Value scores = [&] {
    const Value scaled = options.broadcasts ? repeated(scale(k)) : scale(k);
    return batched_matmul(q, scaled, pairs);
  }();
  if (bias.defined()) scores = add(scores, bias);
  scores = softmax(scores);
  scores = dropout(scores, options.dropout);
  const Value mixed = batched_matmul(scores, v, {q.size(0), q.size(1), q.size(2), v.size(-1)});
  Value output = to(mixed, query.dtype());
  // Probabilities are returned too, in the operands' dtype.
  if (inside != query.dtype()) tape.allocate("to", scores.shape(), query.dtype());
  return output;
}

namespace {

// Of the operands as they are.
Value attention_by_kernel(const Value& q, const Value& k, const Value& v, const SdpaOptions& options) {
  const bool flash = may_use_flash(q, v, options.mask);
  if (!flash && !may_use_efficient(q, k, v)) return plain_attention(q, k, v, options);
  q.tape().attend(q.size(0) * q.size(2), k.size(2), options.causal);
  if (flash) return flash_attention(q, k, v);
  Value bias = options.mask;
  if (!bias.defined() || bias.dtype() != DType::boolean) return efficient_attention(q, k, v, aligned(bias));
  bias = additive(bias, q.dtype());
  return efficient_attention(q, k, v, aligned(bias));
}

}  // namespace

Value scaled_dot_product_attention(const Value& query, const Value& key, const Value& value,
                                   const SdpaOptions& options) {
  if (query.tape().autocast()) {
    const Value q = lowered(query);
    const Value k = lowered(key);
    const Value v = lowered(value);
    SdpaOptions inside = options;
    inside.mask = lowered(options.mask);
    Tape& tape = query.tape();
    const std::optional<DType> autocast = tape.switch_autocast({});
    Value output = attention_by_kernel(q, k, v, inside);
    tape.switch_autocast(autocast);
    return output;
  }
  return attention_by_kernel(query, key, value, options);
}

}  // namespace shardplan::autograd
