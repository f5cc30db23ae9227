#include "planner/activations/torch_ops.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "planner/activations/torch_formula.h"

namespace shardplan::autograd {

namespace {

Shape broadcast(const Shape& a, const Shape& b) {
  const Shape& longer = a.size() >= b.size() ? a : b;
  const Shape& shorter = a.size() >= b.size() ? b : a;
  Shape shape = longer;
  const std::size_t ahead = longer.size() - shorter.size();
  for (std::size_t i = 0; i < shorter.size(); ++i) shape[ahead + i] = std::max(longer[ahead + i], shorter[i]);
  return shape;
}

bool is_floating(DType dtype) {
  return is_trainable_dtype(dtype);
}

DType promoted(const Value& a, const Value& b) {
  if (a.dtype() == b.dtype()) return a.dtype();
  // A tensor with dims decides over one without (torch.result_type); else the wider one, fp32 for bf16 with fp16.
  if (a.shape().empty() != b.shape().empty() && is_floating(a.dtype()) == is_floating(b.dtype())) {
    return a.shape().empty() ? b.dtype() : a.dtype();
  }
  if (!is_floating(a.dtype())) return b.dtype();
  if (!is_floating(b.dtype())) return a.dtype();
  if (bits(a.dtype()) == bits(b.dtype())) return DType::f32;
  return bits(a.dtype()) > bits(b.dtype()) ? a.dtype() : b.dtype();
}

// Of two operands, the layout of the one that is not broadcast; of the first if none is.
Layout layout_of(const Value& a, const Value& b) {
  return a.shape().size() >= b.shape().size() && a.elements() >= b.elements() ? a.layout() : b.layout();
}

// A view of dims 1 and 2 as one dim with dim 3, or as a batch, must copy where they lie swapped; a batch of one has none.
bool copies(const Value& x, const Shape& shape) {
  if (x.layout() == Layout::in_order) return false;
  if (x.layout() == Layout::with_gaps) return true;
  const bool joins_batch = shape.size() == 3 && x.shape().size() == 4 && shape[1] == x.size(2) && shape[2] == x.size(3);
  return !joins_batch || x.size(0) > 1;
}

Value reshaped(Tape& tape, const Value& x, const Shape& shape) {
  if (copies(x, shape)) return tape.allocate("clone", shape, x.dtype());
  return x.viewed(shape).laid_out(Layout::in_order);
}

}  // namespace

Value view(const Value& x, const Shape& shape) {
  Tape& tape = x.tape();
  if (x.layout() == Layout::swapped && shape == x.shape()) return x;
  return tape.record("view", std::span(&x, 1), reshaped(tape, x, shape), {},
                     [from = x.shape()](Tape& t, std::span<const Value>, std::vector<Value>& incoming) {
                       std::vector<Value> gradients;
                       gradients.push_back(reshaped(t, incoming[0], from));
                       return gradients;
                     });
}

namespace {

Value swapped(const Value& x) {
  Shape shape = x.shape();
  std::swap(shape[1], shape[2]);
  const bool matters = shape[1] > 1 && shape[2] > 1;
  Layout layout = x.layout();
  if (matters && layout != Layout::with_gaps) {
    layout = layout == Layout::in_order ? Layout::swapped : Layout::in_order;
  }
  return x.viewed(std::move(shape)).laid_out(layout);
}

}  // namespace

Value transpose(const Value& x) {
  return x.tape().record("transpose", std::span(&x, 1), swapped(x), {},
                         [](Tape&, std::span<const Value>, std::vector<Value>& incoming) {
                           std::vector<Value> gradients;
                           gradients.push_back(swapped(incoming[0]));
                           return gradients;
                         });
}

std::vector<Value> split(const Value& x, std::span<const std::uint64_t> sizes) {
  std::vector<Value> parts;
  for (const std::uint64_t size : sizes) {
    Shape shape = x.shape();
    shape.back() = size;
    parts.push_back(x.viewed(std::move(shape)));
  }
  return x.tape().record("split", std::span(&x, 1), std::move(parts), {},
                         fresh_gradients("split backward", std::span(&x, 1)));
}

Value slice(const Value& x, Shape shape) {
  if (shape == x.shape()) return x;
  return simple("slice", x, x.viewed(std::move(shape)));
}

Value contiguous(const Value& x) {
  return x.tape().record("contiguous", std::span(&x, 1), x.tape().allocate("contiguous", x.shape(), x.dtype()), {},
                         same_gradient(x));
}

Value expand(const Value& x, Shape shape) {
  return simple("expand", x, x.viewed(std::move(shape)));
}

Value copied(const Value& x, Shape shape) {
  return simple("clone", x, x.tape().allocate("clone", std::move(shape), x.dtype()));
}

Value cat(std::span<const Value> parts, Shape shape) {
  DType widest = parts[0].dtype();
  for (const Value& part : parts) {
    if (is_floating(part.dtype()) && bits(part.dtype()) > bits(widest)) widest = part.dtype();
  }
  // Of autocast's list `promote`.
  std::vector<Value> alike;
  for (const Value& part : parts) alike.push_back(part.tape().autocast() ? to(part, widest) : part);
  std::vector<Shape> shapes;
  for (const Value& part : parts) shapes.push_back(part.shape());
  Tape& tape = parts[0].tape();
  Value output = tape.allocate("cat", std::move(shape), widest);
  // Gradients of the parts are views of the whole (FunctionsManual.cpp, cat_tensors_backward).
  return tape.record("cat", alike, std::move(output), {},
                     [shapes = std::move(shapes)](Tape&, std::span<const Value>, std::vector<Value>& incoming) {
                       std::vector<Value> gradients;
                       for (const Shape& part : shapes) gradients.push_back(incoming[0].viewed(part));
                       return gradients;
                     });
}

Value to(const Value& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  return simple("to", x, x.tape().allocate("to", x.shape(), dtype, x.layout()));
}

Value add(const Value& a, const Value& b) {
  const std::array inputs{a, b};
  Value output = a.tape().allocate("add", broadcast(a.shape(), b.shape()), promoted(a, b), layout_of(a, b));
  return a.tape().record("add", inputs, std::move(output), {},
                         [operands = std::array{meta_of(a), meta_of(b)}](Tape& tape, std::span<const Value>,
                                                                         std::vector<Value>& incoming) {
                           std::vector<Value> gradients(2);
                           for (std::size_t i = 0; i < 2; ++i) {
                             if (operands[i].wanted) gradients[i] = incoming[0];
                           }
                           fit(tape, gradients, operands);
                           return gradients;
                         });
}

Value sub(const Value& a, const Value& b) {
  const std::array inputs{a, b};
  Value output = a.tape().allocate("sub", broadcast(a.shape(), b.shape()), promoted(a, b), layout_of(a, b));
  return a.tape().record("sub", inputs, std::move(output), {},
                         [operands = std::array{meta_of(a), meta_of(b)}](Tape& tape, std::span<const Value>,
                                                                         std::vector<Value>& incoming) {
                           const Value& gradient = incoming[0];
                           std::vector<Value> gradients(2);
                           if (operands[1].wanted) {
                             gradients[1] = tape.allocate("neg", gradient.shape(), gradient.dtype(), gradient.layout());
                           }
                           if (operands[0].wanted) gradients[0] = gradient;
                           fit(tape, gradients, operands);
                           return gradients;
                         });
}

Value mul(const Value& a, const Value& b) {
  const std::array inputs{a, b};
  const Meta whole{broadcast(a.shape(), b.shape()), promoted(a, b), true};
  Value output = a.tape().allocate("mul", whole.shape, whole.dtype, layout_of(a, b));
  std::vector<Value> saved;
  if (b.requires_grad()) saved.push_back(a);
  if (a.requires_grad()) saved.push_back(b);
  return a.tape().record("mul", inputs, std::move(output), std::move(saved),
                         [whole, operands = std::array{meta_of(a), meta_of(b)}](Tape& tape, std::span<const Value>,
                                                                                std::vector<Value>& incoming) {
                           std::vector<Value> gradients(2);
                           for (const std::size_t i : {1U, 0U}) {  // "other", "self"
                             if (!operands[i].wanted) continue;
                             gradients[i] = fresh(tape, "mul backward", whole, incoming[0].layout());
                           }
                           fit(tape, gradients, operands);
                           return gradients;
                         });
}

Value scale(const Value& x) {
  return simple("mul", x, like("mul", x));
}

Value shift(const Value& x) {
  return x.tape().record("add", std::span(&x, 1), like("add", x), {}, same_gradient(x));
}

Value scaled_in_place(const Value& x) {
  return simple("div", x, x);
}

Value add_in_place(const Value& a, const Value& b) {
  const std::array inputs{a, b};
  return a.tape().record("add", inputs, a, {},
                         [operands = std::array{meta_of(a), meta_of(b)}](Tape& tape, std::span<const Value>,
                                                                         std::vector<Value>& incoming) {
                           std::vector<Value> gradients(2);
                           for (std::size_t i = 0; i < 2; ++i) {
                             if (operands[i].wanted) gradients[i] = incoming[0];
                           }
                           fit(tape, gradients, operands);
                           return gradients;
                         });
}

Value neg(const Value& x) {
  return simple("neg", x, like("neg", x));
}

Value pow(const Value& operand) {
  const Value x = widened(operand);
  // grad * (exponent * self.pow(exponent - 1))
  return x.tape().record("pow", std::span(&x, 1), like("pow", x), {x}, gradient_after("pow backward", x, 2));
}

Value mean(const Value& x) {
  Shape shape = x.shape();
  shape.back() = 1;
  return simple("mean", x, x.tape().allocate("mean", std::move(shape), x.dtype()));
}

Value mean(const Value& x, Shape shape) {
  return simple("mean", x, x.tape().allocate("mean", std::move(shape), x.dtype()));
}

// Its gradient is one number, seen as often as there are elements.
Value total(const Value& x) {
  return x.tape().record("sum", std::span(&x, 1), x.tape().allocate("sum", {}, x.dtype()), {}, same_gradient(x));
}

Value rsqrt(const Value& operand) {
  const Value x = widened(operand);
  // -0.5 * grad * result.pow(3)
  Value output = like("rsqrt", x);
  std::vector<Value> saved{output};
  return x.tape().record("rsqrt", std::span(&x, 1), std::move(output), std::move(saved),
                         gradient_after("rsqrt backward", x, 2));
}

Value div(const Value& a, const Value& b) {
  const std::array inputs{a, b};
  const Meta whole{broadcast(a.shape(), b.shape()), promoted(a, b), true};
  Value output = a.tape().allocate("div", whole.shape, whole.dtype, layout_of(a, b));
  std::vector<Value> saved{b};
  if (b.requires_grad()) saved.push_back(a);
  return a.tape().record(
      "div", inputs, std::move(output), std::move(saved),
      [whole, operands = std::array{meta_of(a), meta_of(b)}](Tape& tape, std::span<const Value>, std::vector<Value>&) {
        std::vector<Value> gradients(2);
        if (operands[1].wanted) {  // -grad * ((self / other) / other)
          const Value quotient = fresh(tape, "div backward", whole);
          gradients[1] = fresh(tape, "div backward", whole);
        }
        if (operands[0].wanted) gradients[0] = fresh(tape, "div backward", whole);
        fit(tape, gradients, operands);
        return gradients;
      });
}

Value where(const Value& mask, const Value& x) {
  std::vector<Value> saved;
  if (mask.defined()) saved.push_back(mask);
  return simple("where", x, like("where", x), std::move(saved));
}

Value index(const Value& x, Shape shape) {
  std::vector<Value> saved{x.tape().allocate("index", {1}, DType::i64)};
  return simple("index", x, x.tape().allocate("index", std::move(shape), x.dtype()), std::move(saved));
}

Value unary(std::string_view operation, const Value& x) {
  return simple(operation, x, like(operation, x), {x});
}

Value unary_of_output(std::string_view operation, const Value& x) {
  Value output = like(operation, x);
  std::vector<Value> saved{output};
  return simple(operation, x, std::move(output), std::move(saved));
}

Value custom_gelu(const Value& x) {
  {
    const std::array terms{like("mul", x), like("mul", x), like("tanh", x)};
  }
  return x.tape().record("gelu", std::span(&x, 1), like("mul", x), {x}, gradient_after("gelu backward", x, 4));
}

// Of three dims or more x is scores, [batch, heads, queries, keys] or [heads, queries, keys].
Value softmax(const Value& x) {
  const std::size_t dims = x.shape().size();
  if (dims >= 3) x.tape().attend((dims > 3 ? x.size(0) : 1) * x.size(-2), x.size(-1), false);
  return unary_of_output("softmax", widened(x));
}

Value softmax_in(const Value& x, DType dtype) {
  return softmax(to(x, dtype));
}

Value dropout(const Value& x, double rate) {
  if (rate == 0 || !x.tape().training()) return x;
  Value output = like("dropout", x);
  std::vector<Value> saved{x.tape().allocate("dropout mask", x.shape(), DType::boolean)};
  return simple("dropout", x, std::move(output), std::move(saved));
}

Value linear(const Value& operand, const Value& parameter, const Value& offset, std::uint64_t output) {
  const Value x = lowered(operand);
  const Value weight = lowered(parameter);
  const Value bias = lowered(offset);
  Shape shape = x.shape();
  shape.back() = output;
  std::vector<Value> saved;
  if (weight.requires_grad()) saved.push_back(x);
  if (x.requires_grad()) saved.push_back(weight);
  Value y = x.tape().allocate("linear", std::move(shape), x.dtype());
  if (!bias.defined()) {
    const std::array inputs{x, weight};
    return x.tape().record("linear", inputs, std::move(y), std::move(saved),
                           fresh_gradients("linear backward", inputs, {1, 0}));  // mm: "mat2", "self"
  }
  // addmm: "mat1", "mat2", "self"; what comes before x, a view of it, was made before the weight's transpose, so its turn is last.
  const std::array inputs{weight, bias, x};
  return x.tape().record("linear", inputs, std::move(y), std::move(saved),
                         fresh_gradients("linear backward", inputs, {2, 0, 1}));
}

Value matmul(const Value& left, const Value& right, Shape shape) {
  const Value a = lowered(left);
  const Value b = lowered(right);
  const std::array inputs{a, b};
  std::vector<Value> saved;
  if (b.requires_grad()) saved.push_back(a);
  if (a.requires_grad()) saved.push_back(b);
  return a.tape().record("matmul", inputs, a.tape().allocate("matmul", std::move(shape), a.dtype()), std::move(saved),
                         fresh_gradients("matmul backward", inputs, {1, 0}));  // bmm: "mat2", "self"
}

Value convolution(const Value& operand, const Value& parameter, const Value& offset, Shape shape) {
  const Value x = lowered(operand);
  const Value weight = lowered(parameter);
  const Value bias = lowered(offset);
  std::vector<Value> inputs{x, weight};
  if (bias.defined()) inputs.push_back(bias);
  return record("convolution", inputs, x.tape().allocate("convolution", std::move(shape), x.dtype()), {x, weight});
}

Value embedding(const Value& indices, const Value& weight) {
  Shape shape = indices.shape();
  shape.push_back(weight.size(-1));
  const std::array inputs{weight};
  return record("embedding", inputs, weight.tape().allocate("embedding", std::move(shape), weight.dtype()), {indices});
}

Value layer_norm(const Value& operand, const Value& parameter, const Value& offset) {
  const Value x = widened(operand);
  const Value weight = widened(parameter);
  const Value bias = widened(offset);
  Shape rows = x.shape();
  rows.back() = 1;
  Tape& tape = x.tape();
  std::vector<Value> inputs{x};
  if (weight.defined()) inputs.push_back(weight);
  if (bias.defined()) inputs.push_back(bias);
  Value output = like("layer_norm", x);
  std::vector<Value> saved{x, tape.allocate("layer_norm mean", rows, DType::f32),
                           tape.allocate("layer_norm rstd", rows, DType::f32)};
  if (weight.defined()) saved.push_back(weight);
  return record("layer_norm", inputs, std::move(output), std::move(saved));
}

Value fused_rms_norm(const Value& x, const Value& weight) {
  Shape rows = x.shape();
  rows.back() = 1;
  Value output = like("rms_norm", x);
  const std::array inputs{x, weight};
  return record("rms_norm", inputs, std::move(output),
                {x, x.tape().allocate("rms_norm rstd", rows, DType::f32), weight});
}

Value cross_entropy(const Value& logits, const Value& labels) {
  Tape& tape = logits.tape();
  // cross_entropy asks for its log-softmax in the logits' dtype; nll_loss is on autocast's list.
  const Value probabilities = widened(unary_of_output("log_softmax", logits));
  const std::array inputs{probabilities};
  Value output = tape.allocate("nll_loss", {}, probabilities.dtype());
  std::vector<Value> saved{probabilities, tape.allocate("nll_loss weight", {}, probabilities.dtype())};
  if (labels.defined()) saved.push_back(labels);
  return record("nll_loss", inputs, std::move(output), std::move(saved));
}

}  // namespace shardplan::autograd
