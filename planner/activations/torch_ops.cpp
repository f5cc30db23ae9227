#include "planner/activations/torch_ops.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/error.h"

namespace shardplan::autograd {
namespace {

struct Meta {
  Shape shape;
  DType dtype = DType::f32;
  bool wanted = false;
};

Meta meta_of(const Value& value) {
  return {value.shape(), value.dtype(), value.requires_grad()};
}

Value fresh(Tape& tape, std::string_view operation, const Meta& meta) {
  return meta.wanted ? tape.allocate(operation, meta.shape, meta.dtype) : Value();
}

// Every input that needs a gradient gets a tensor of its own.
Formula fresh_gradients(std::string_view operation, std::span<const Value> inputs) {
  std::vector<Meta> metas;
  metas.reserve(inputs.size());
  for (const Value& input : inputs) metas.push_back(meta_of(input));
  return [operation, metas = std::move(metas)](Tape& tape, std::span<const Value>, std::vector<Value>) {
    std::vector<Value> gradients;
    gradients.reserve(metas.size());
    for (const Meta& meta : metas) gradients.push_back(fresh(tape, operation, meta));
    return gradients;
  };
}

// The gradient itself goes on, under the shape that the input has.
Formula same_gradient(const Value& input) {
  return [shape = input.shape()](Tape&, std::span<const Value>, std::vector<Value> incoming) {
    std::vector<Value> gradients;
    gradients.push_back(incoming[0].viewed(shape));
    return gradients;
  };
}

Value record(std::string_view operation, std::span<const Value> inputs, Value output, std::vector<Value> saved) {
  Tape& tape = output.tape();
  return tape.record(operation, inputs, std::move(output), std::move(saved), fresh_gradients(operation, inputs));
}

Value simple(std::string_view operation, const Value& x, Value output, std::vector<Value> saved = {}) {
  return record(operation, std::span(&x, 1), std::move(output), std::move(saved));
}

Value like(std::string_view operation, const Value& x) {
  return x.tape().allocate(operation, x.shape(), x.dtype());
}

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

// Of an operand that was broadcast or promoted, the gradient is computed whole first and then summed or cast.
Value gradient_of_operand(Tape& tape, std::string_view operation, const Meta& operand, const Meta& whole) {
  if (!operand.wanted) return {};
  if (elements(operand.shape) == elements(whole.shape) && operand.dtype == whole.dtype) {
    return fresh(tape, operation, operand);
  }
  const Value wide = tape.allocate(operation, whole.shape, whole.dtype);
  return fresh(tape, operation, operand);
}

}  // namespace

Value view(const Value& x, Shape shape) {
  return x.tape().record("view", std::span(&x, 1), x.viewed(std::move(shape)), {}, same_gradient(x));
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
  return simple("slice", x, x.viewed(std::move(shape)));
}

Value contiguous(const Value& x) {
  return x.tape().record("contiguous", std::span(&x, 1), like("contiguous", x), {}, same_gradient(x));
}

Value expand(const Value& x, Shape shape) {
  return simple("expand", x, x.viewed(std::move(shape)));
}

Value cat(std::span<const Value> parts, Shape shape) {
  std::vector<Shape> shapes;
  for (const Value& part : parts) shapes.push_back(part.shape());
  Tape& tape = parts[0].tape();
  Value output = tape.allocate("cat", std::move(shape), parts[0].dtype());
  // Gradients of the parts are views of the whole (FunctionsManual.cpp, cat_tensors_backward).
  return tape.record("cat", parts, std::move(output), {},
                     [shapes = std::move(shapes)](Tape&, std::span<const Value>, std::vector<Value> incoming) {
                       std::vector<Value> gradients;
                       for (const Shape& part : shapes) gradients.push_back(incoming[0].viewed(part));
                       return gradients;
                     });
}

Value to(const Value& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  return simple("to", x, x.tape().allocate("to", x.shape(), dtype));
}

Value add(const Value& a, const Value& b) {
  const std::array inputs{a, b};
  Meta whole{broadcast(a.shape(), b.shape()), promoted(a, b), true};
  Value output = a.tape().allocate("add", whole.shape, whole.dtype);
  return a.tape().record(
      "add", inputs, std::move(output), {},
      [whole, operands = std::array{meta_of(a), meta_of(b)}](Tape& tape, std::span<const Value>,
                                                             std::vector<Value> incoming) {
        std::vector<Value> gradients(2);
        for (std::size_t i = 0; i < 2; ++i) {
          const Meta& operand = operands[i];
          if (!operand.wanted) continue;
          const bool same = elements(operand.shape) == elements(whole.shape) && operand.dtype == whole.dtype;
          gradients[i] = same ? incoming[0].viewed(operand.shape) : fresh(tape, "add backward", operand);
        }
        return gradients;
      });
}

Value mul(const Value& a, const Value& b) {
  const std::array inputs{a, b};
  Meta whole{broadcast(a.shape(), b.shape()), promoted(a, b), true};
  Value output = a.tape().allocate("mul", whole.shape, whole.dtype);
  std::vector<Value> saved;
  if (b.requires_grad()) saved.push_back(a);
  if (a.requires_grad()) saved.push_back(b);
  return a.tape().record(
      "mul", inputs, std::move(output), std::move(saved),
      [whole, operands = std::array{meta_of(a), meta_of(b)}](Tape& tape, std::span<const Value>, std::vector<Value>) {
        std::vector<Value> gradients;
        for (const Meta& operand : operands) {
          gradients.push_back(gradient_of_operand(tape, "mul backward", operand, whole));
        }
        return gradients;
      });
}

Value scale(const Value& x) {
  return simple("mul", x, like("mul", x));
}

Value shift(const Value& x) {
  return x.tape().record("add", std::span(&x, 1), like("add", x), {}, same_gradient(x));
}

Value neg(const Value& x) {
  return simple("neg", x, like("neg", x));
}

Value pow(const Value& x) {
  return simple("pow", x, like("pow", x), {x});
}

Value mean(const Value& x) {
  Shape shape = x.shape();
  shape.back() = 1;
  return simple("mean", x, x.tape().allocate("mean", std::move(shape), x.dtype()));
}

Value rsqrt(const Value& x) {
  return unary_of_output("rsqrt", x);
}

Value unary(std::string_view operation, const Value& x) {
  return simple(operation, x, like(operation, x), {x});
}

Value unary_of_output(std::string_view operation, const Value& x) {
  Value output = like(operation, x);
  std::vector<Value> saved{output};
  return simple(operation, x, std::move(output), std::move(saved));
}

Value softmax(const Value& x) {
  return unary_of_output("softmax", x);
}

Value dropout(const Value& x, double rate) {
  if (rate == 0) return x;
  Value output = like("dropout", x);
  std::vector<Value> saved{x.tape().allocate("dropout mask", x.shape(), DType::boolean)};
  return simple("dropout", x, std::move(output), std::move(saved));
}

Value linear(const Value& x, const Value& weight, const Value& bias, std::uint64_t output) {
  Shape shape = x.shape();
  shape.back() = output;
  std::vector<Value> inputs{x, weight};
  if (bias.defined()) inputs.push_back(bias);
  std::vector<Value> saved;
  if (weight.requires_grad()) saved.push_back(x);
  if (x.requires_grad()) saved.push_back(weight);
  return record("linear", inputs, x.tape().allocate("linear", std::move(shape), x.dtype()), std::move(saved));
}

Value matmul(const Value& a, const Value& b, Shape shape) {
  const std::array inputs{a, b};
  std::vector<Value> saved;
  if (b.requires_grad()) saved.push_back(a);
  if (a.requires_grad()) saved.push_back(b);
  return record("matmul", inputs, a.tape().allocate("matmul", std::move(shape), a.dtype()), std::move(saved));
}

Value embedding(const Value& indices, const Value& weight) {
  Shape shape = indices.shape();
  shape.push_back(weight.size(-1));
  const std::array inputs{weight};
  return record("embedding", inputs, weight.tape().allocate("embedding", std::move(shape), weight.dtype()), {indices});
}

Value layer_norm(const Value& x, const Value& weight, const Value& bias) {
  Shape rows = x.shape();
  rows.back() = 1;
  Tape& tape = x.tape();
  std::vector<Value> inputs{x};
  if (weight.defined()) inputs.push_back(weight);
  if (bias.defined()) inputs.push_back(bias);
  Value output = like("layer_norm", x);
  std::vector<Value> saved{x, tape.allocate("layer_norm mean", rows, DType::f32),
                           tape.allocate("layer_norm rstd", rows, DType::f32)};
  return record("layer_norm", inputs, std::move(output), std::move(saved));
}

Value flash_attention(const Value& q, const Value& k, const Value& v) {
  Tape& tape = q.tape();
  Shape shape = q.shape();
  shape.back() = v.size(-1);
  Value output = tape.allocate("flash attention", shape, q.dtype());
  Shape rows = q.shape();
  rows.pop_back();
  std::vector<Value> saved{q, k, v, output, tape.allocate("log-sum-exp", std::move(rows), DType::f32)};
  const std::array inputs{q, k, v};
  return record("flash attention", inputs, std::move(output), std::move(saved));
}

Value cross_entropy(const Value& logits) {
  Tape& tape = logits.tape();
  const Value probabilities = unary_of_output("log_softmax", logits);
  const std::array inputs{probabilities};
  return record("nll_loss", inputs, tape.allocate("nll_loss", {}, logits.dtype()), {probabilities});
}

}  // namespace shardplan::autograd
