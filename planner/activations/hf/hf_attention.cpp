#include "planner/activations/hf/hf_attention.h"

#include <array>

#include "planner/activations/hf/hf_ulysses.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// A batch without position_ids and attention_mask may be several texts in a row (find_packed_sequence_indices).
Value packed_texts(ForwardContext& context, std::uint64_t s) {
  Tape& tape = context.tape;
  const Shape tokens{context.batch(), s};
  const Value first = tape.allocate("sub", {context.batch(), 1}, DType::i64);
  Value differences;
  {
    const Value extended = tape.allocate("cat", {context.batch(), s + 1}, DType::i64);
    differences = tape.allocate("sub", tokens, DType::i64);
  }
  const Value starts = tape.allocate("ne", tokens, DType::boolean);
  return tape.allocate("cumsum", tokens, DType::i64);
}

// Whether a token sees another one, [b or 1, 1, s, s].
Value visible(ForwardContext& context, const Value& padding, const Value& texts, bool windowed, bool images,
              std::uint64_t s) {
  Tape& tape = context.tape;
  const std::array ranges{tape.allocate("arange", {s}, DType::i64),
                          tape.allocate("arange", {context.batch()}, DType::i64),
                          tape.allocate("arange", {1}, DType::i64)};
  Value mask;
  if (!windowed) mask = tape.allocate("le", {1, 1, s, s}, DType::boolean);
  if (windowed) {
    Value near;
    {
      const Value distance = tape.allocate("sub", {s}, DType::i64);
      const Value greater = tape.allocate("gt", {1, 1, s, s}, DType::boolean);
      near = tape.allocate("bitwise_and", {1, 1, s, s}, DType::boolean);
    }
    const Value before = tape.allocate("le", {1, 1, s, s}, DType::boolean);
    mask = tape.allocate("bitwise_and", {1, 1, s, s}, DType::boolean);
  }
  if (images) {
    const Shape pairs{context.batch(), 1, s, s};
    const std::array same{tape.allocate("bitwise_and", pairs, DType::boolean),
                          tape.allocate("eq", pairs, DType::boolean)};
    const Value of_one = tape.allocate("bitwise_and", pairs, DType::boolean);
    mask = tape.allocate("bitwise_or", pairs, DType::boolean);
  }
  if (!padding.defined() && !texts.defined()) return mask.viewed({context.batch(), 1, s, s});
  mask = tape.allocate("bitwise_and", {1, 1, s, s}, DType::boolean);
  Value more;
  if (padding.defined()) {
    more = tape.allocate("index", {context.batch(), s}, DType::boolean);
  } else {
    const std::array each{tape.allocate("index", texts.shape(), DType::i64),
                          tape.allocate("index", texts.shape(), DType::i64)};
    more = tape.allocate("eq", {context.batch(), 1, s, s}, DType::boolean);
  }
  return tape.allocate("bitwise_and", {context.batch(), 1, s, s}, DType::boolean);
}

Value eager(ForwardContext& context, const Value& query, const Value& key, const Value& value,
            const AttentionCall& call) {
  const std::uint64_t times = query.size(1) / key.size(1);
  const Value k = repeat_kv(key, times);
  const Value v = repeat_kv(value, times);
  const Shape pairs{query.size(0), query.size(1), query.size(2), k.size(2)};
  Value weights = batched_matmul(query, k, pairs);
  weights = scale(weights);
  if (call.softcap) {
    weights = scale(weights);
    weights = unary_of_output("tanh", weights);
    weights = scale(weights);
  }
  if (call.mask.defined()) weights = add(weights, call.mask);
  {
    const Value probabilities = softmax_in(weights, DType::f32);
    weights = to(probabilities, query.dtype());
  }
  weights = dropout(weights, call.dropout);
  if (call.returned) context.block_locals.push_back(weights);
  const Value output = batched_matmul(weights, v, {query.size(0), query.size(1), query.size(2), v.size(-1)});
  return contiguous(transpose(output));
}

}  // namespace

Value make_causal_mask(ForwardContext& context, std::uint64_t window, bool images, std::uint64_t tokens_of_text) {
  const std::uint64_t s = tokens_of_text != 0 ? tokens_of_text : context.tokens();
  Tape& tape = context.tape;
  const NoGrad no_grad(tape);
  const bool eager = context.attention() == AttentionKind::eager;
  const Shape tokens{context.batch(), s};
  const MaskKind given = tokens_of_text != 0 ? MaskKind::none : context.client.mask;
  Value padding;
  if (given != MaskKind::none) padding = tape.allocate("to", tokens, DType::boolean);
  Value texts;
  const bool may_be_packed = given == MaskKind::none && !context.use_cache() && !context.never_packed;
  if (may_be_packed && !images) texts = packed_texts(context, s);
  const bool windowed = window != 0 && window <= s;
  const bool whole = given != MaskKind::padded && !texts.defined() && !windowed;
  if (!eager && whole && !images) return {};
  Value mask = visible(context, padding, texts, window != 0, images, s);
  if (!eager) return mask;
  const DType dtype = context.setup.policy.parameter;
  const std::array numbers{tape.allocate("zero", {}, dtype), tape.allocate("least", {}, dtype)};
  return tape.allocate("where", {context.batch(), 1, s, s}, dtype);
}

void cache(const ForwardContext& context, Value& k, Value& v) {
  if (!context.use_cache()) return;
  const Value keys = cat(std::array{k}, k.shape());
  // Appended to nothing in the keys' dtype, which under autocast is wider.
  const Value wide = bits(k.dtype()) > bits(v.dtype()) ? to(v, k.dtype()) : v;
  const Value values = cat(std::array{wide}, v.shape());
  k = keys;
  v = values;
  k.tape().keep(k);  // what the model returns holds the cache
  v.tape().keep(v);
}

Value repeat_kv(const Value& x, std::uint64_t times) {
  if (times == 1 || x.size(1) > 1) return repeat_heads(x, times);
  const Value expanded = expand(x, {x.size(0), times, x.size(2), x.size(3)});
  // Batch and heads fold into one dim without a copy where the batch is one text.
  return x.size(0) > 1 ? expanded.laid_out(Layout::with_gaps) : expanded;
}

bool in_window(const UnitView& block, const AttentionSizes& sizes) {
  return sizes.window != 0 && (block.number() >= sizes.whole.size() || !sizes.whole[block.number()]);
}

const Value& mask_of(const ForwardContext& context, const UnitView& block, const AttentionSizes& sizes) {
  return in_window(block, sizes) ? context.shared.window_mask : context.shared.mask;
}

Value attend(ForwardContext& context, const Value& q, const Value& k, const Value& v, const AttentionCall& call) {
  const Shape joined{q.size(0), q.size(2), q.size(1) * v.size(-1)};
  if (context.attention() == AttentionKind::eager) return view(eager(context, q, k, v, call), joined);
  if (context.setup.parallel.context > 1) return attend_exchanged(context, q, k, v, call);
  // With a mask, heads are repeated before the kernel; without, the kernel does what it can.
  const std::uint64_t times = call.mask.defined() ? q.size(1) / k.size(1) : 1;
  const Value keys = repeat_kv(k, times);
  const Value values = repeat_kv(v, times);
  const Value output = scaled_dot_product_attention(
      q, keys, values, {.mask = call.mask, .causal = call.causal && !call.mask.defined(), .dropout = call.dropout});
  return view(transpose(output), joined);
}

Value split_heads(const Value& x, std::uint64_t heads) {
  return transpose(view(x, {x.size(0), x.size(1), heads, x.size(2) / heads}));
}

}  // namespace shardplan::autograd
