#include "planner/activations/hf/hf_modules.h"

#include <fmt/format.h>

#include <array>

#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

bool ends_with(std::string_view name, std::string_view module) {
  return name.ends_with(module) && (name.size() == module.size() || name[name.size() - module.size() - 1] == '.');
}

// 0.5 * x * (1.0 + tanh(sqrt(2 / pi) * (x + 0.044715 * pow(x, 3)))) (NewGELUActivation)
Value gelu_new(const Value& x) {
  const Value half = scale(x);
  Value inner;
  {
    const Value cubed = scale(pow(x));
    inner = add(x, cubed);
  }
  inner = scale(inner);
  inner = unary_of_output("tanh", inner);
  return mul(half, shift(inner));
}

// x * sigmoid(1.702 * x) (QuickGELUActivation)
Value quick_gelu(const Value& x) {
  return mul(x, unary_of_output("sigmoid", scale(x)));
}

}  // namespace

double dropout_rate(const UnitView& unit, std::string_view module) {
  return unit.has(module) ? unit.module(module).rate : 0;
}

Value dropout(const Value& x, const UnitView& unit, std::string_view module) {
  return dropout(x, dropout_rate(unit, module));
}

Value drop_path(const Value& x, double rate) {
  if (rate == 0 || !x.tape().training()) return x;
  Shape samples(x.shape().size(), 1);
  samples[0] = x.size(0);
  const Value kept = [&] {
    const Value random = x.tape().allocate("rand", samples, x.dtype());
    return x.tape().allocate("add", samples, x.dtype());
  }();
  return mul(scale(x), kept);
}

double dropout_rate(const ForwardContext& context, std::string_view module) {
  for (const ModuleRun& run : context.model.modules) {
    for (const Module& m : run.modules) {
      if (!run.numbered && m.kind == ModuleKind::dropout && m.name == module) return m.rate;
    }
  }
  return 0;
}

Value activate(const Value& x, std::string_view function) {
  if (function == "gelu_new") return gelu_new(x);
  if (function == "quick_gelu") return quick_gelu(x);
  if (function == "relu2") return pow(unary_of_output("relu", x));
  for (const std::string_view saves_output : {"relu", "tanh", "sigmoid"}) {
    if (function == saves_output) return unary_of_output(saves_output, x);
  }
  for (const std::string_view saves_input : {"gelu", "gelu_pytorch_tanh", "silu", "swish", "mish"}) {
    if (function == saves_input) return unary(saves_input, x);
  }
  throw NotModelled(fmt::format("the activation function {}", function));
}

Value activate(const Value& x, const UnitView& unit, std::string_view module) {
  unit.passes(module, x);
  return activate(x, unit.module(module).function);
}

const AttentionSizes& attention_of(const ForwardContext& context, std::string_view stack) {
  for (const ModuleRun& run : context.model.modules) {
    if (!run.numbered || (!stack.empty() && run.name != stack)) continue;
    for (const Module& module : run.modules) {
      if (module.attention) return *module.attention;
    }
  }
  throw NotModelled("blocks without attention");
}

std::string prefix_of(const ForwardContext& context, std::string_view module) {
  for (const ModuleRun& run : context.model.modules) {
    for (const Module& m : run.modules) {
      if (!run.numbered && ends_with(m.name, module)) return m.name.substr(0, m.name.size() - module.size());
    }
  }
  throw NotModelled(fmt::format("a model without {}", module));
}

Value arange(ForwardContext& context, std::uint64_t count) {
  return context.tape.allocate("arange", {count}, DType::i64);
}

Value make_older_mask(ForwardContext& context, bool always, std::uint64_t window) {
  Tape& tape = context.tape;
  const NoGrad no_grad(tape);
  const std::uint64_t s = context.tokens();
  const bool given = always || context.client.mask != MaskKind::none;
  const bool windowed = window != 0 && window <= s;
  if (context.attention() != AttentionKind::eager && context.client.mask != MaskKind::padded && !windowed) return {};
  const Shape pairs{1, 1, s, given ? s : s + 1};
  Value mask = tape.allocate("full", pairs, context.setup.policy.parameter);
  mask = tape.allocate("triu", pairs, context.setup.policy.parameter);
  if (!given) return mask.viewed({1, 1, s, s});
  return tape.allocate("clone", {context.batch(), 1, s, s}, context.setup.policy.parameter);
}

Value padding_of_pairs(ForwardContext& context) {
  return padding_of_pairs(context, context.tokens());
}

Value padding_of_pairs(ForwardContext& context, std::uint64_t queries) {
  Tape& tape = context.tape;
  const DType dtype = context.setup.policy.parameter;
  const Shape pairs{context.batch(), 1, queries, context.tokens()};
  const Value expanded = tape.allocate("to", pairs, dtype);
  const Value inverted = tape.allocate("rsub", pairs, dtype);
  const Value hidden = tape.allocate("to", pairs, DType::boolean);
  return tape.allocate("masked_fill", pairs, dtype);
}

Value eager_attention(ForwardContext& context, const Value& q, const Value& k, const Value& v,
                      const AttentionCall& call) {
  Value scores = batched_matmul(q, k, {q.size(0), q.size(1), q.size(2), k.size(2)});
  scores = scale(scores);
  if (call.mask.defined()) scores = add(scores, call.mask);
  Value weights = softmax(scores);
  weights = dropout(weights, call.dropout);
  if (call.returned) context.block_locals.push_back(weights);
  const Value mixed = contiguous(transpose(batched_matmul(weights, v, {q.size(0), q.size(1), q.size(2), v.size(-1)})));
  return view(mixed, {q.size(0), q.size(2), q.size(1) * v.size(-1)});
}

Value first_token(const Value& x) {
  return slice(x, {x.size(0), x.size(2)});
}

void pool_aside(ForwardContext& context, const Value& hidden) {
  const auto unit = unit_with(context, "pooler.dense");
  if (!unit) return;
  const NoGrad no_grad(context.tape);
  context.tape.keep(activate(linear(first_token(hidden), (*unit)["pooler.dense"]), *unit, "pooler.activation"));
  context.tape.release_kept();
}

Value token_loss(const Value& logits) {
  return cross_entropy(view(logits, {logits.elements() / logits.size(-1), logits.size(-1)}));
}

Value shifted_loss_of_all(ForwardContext& context, const Value& logits) {
  const std::uint64_t batch = context.batch();
  const std::uint64_t tokens = context.tokens() - 1;
  const Shape labels{batch * tokens};
  Value most = slice(logits, {batch, tokens, logits.size(-1)});
  if (batch > 1) most = contiguous(most);
  return cross_entropy(
      view(most, {labels[0], logits.size(-1)}),
      batch > 1 ? context.tape.allocate("labels", labels, DType::i64) : context.tape.outside(labels, DType::i64));
}

namespace {

// The logits of each text's last token that is no padding, [b, labels] (GenericForSequenceClassification).
Value of_last_tokens(ForwardContext& context, const Value& logits) {
  Tape& tape = context.tape;
  const Shape tokens{context.batch(), context.tokens()};
  Value last;
  {
    const NoGrad no_grad(tape);
    const Value is_text = tape.allocate("to", tokens, DType::i32);
    const Value places = tape.allocate("arange", {tokens[1]}, DType::i32);
    const Value numbered = tape.allocate("mul", tokens, DType::i32);
    last = tape.allocate("argmax", {tokens[0]}, DType::i64);
  }
  return index_at(logits, std::array{arange(context, tokens[0]), last}, {tokens[0], logits.size(-1)});
}

}  // namespace

namespace {

// Without a head what is trained is the sum of the features. A head that has no loss here is a linear module behind everything else.
Value sum_of_features(ForwardContext& context, const Value& hidden) {
  const ModuleRun& last = context.model.modules.back();
  if (last.numbered) return hidden;
  for (const Module& m : last.modules) {
    if (m.kind == ModuleKind::linear) throw NotModelled(fmt::format("the head {}", m.name));
  }
  return unit_with(context, last.modules.back().name) ? total(hidden) : hidden;
}

}  // namespace

Value label_loss(ForwardContext& context, std::string_view words, const Value& hidden) {
  if (!has_module(context, words) && !has_module(context, "score")) return sum_of_features(context, hidden);
  const auto unit = unit_with(context, "score");
  if (!unit) return hidden;
  Tape& tape = context.tape;
  const Purpose before = tape.set_purpose(Purpose::loss);
  const Parameters score = (*unit)["score"];
  // Of each token there is a bias, and the loss is in fp32 (GenericForTokenClassification, ForTokenClassification).
  Value loss = score.bias.defined()
                   ? token_loss(to(linear(dropout(hidden, dropout_rate(context, "dropout")), score), DType::f32))
                   : token_loss(of_last_tokens(context, linear(hidden, score)));
  tape.set_purpose(before);
  return loss;
}

Value language_loss(ForwardContext& context, std::string_view head, const Value& hidden, bool wide) {
  Tape& tape = context.tape;
  const auto unit = unit_with(context, head);
  if (!unit) return label_loss(context, head, hidden);
  const Purpose before = tape.set_purpose(Purpose::loss);
  Value logits = linear(hidden, (*unit)[head]);
  if (wide) logits = to(logits, DType::f32);
  Value loss = causal_loss(context, logits);
  if (wide) loss = to(loss, hidden.dtype());
  tape.set_purpose(before);
  return loss;
}

}  // namespace shardplan::autograd
