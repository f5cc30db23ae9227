#include "planner/activations/torch_formula.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

Meta meta_of(const Value& value) {
  return {value.shape(), value.dtype(), value.requires_grad()};
}

Value fresh(Tape& tape, std::string_view operation, const Meta& meta, Layout layout) {
  return meta.wanted ? tape.allocate(operation, meta.shape, meta.dtype, layout) : Value();
}

std::vector<Value> one(Value value) {
  std::vector<Value> values;
  values.push_back(std::move(value));
  return values;
}

void fit(Tape& tape, std::vector<Value>& gradients, std::span<const Meta> operands) {
  tape.evaluated();
  for (std::size_t i = 0; i < operands.size(); ++i) {
    Value& gradient = gradients[i];
    if (!gradient.defined()) continue;
    const Meta& operand = operands[i];
    if (elements(gradient.shape()) != elements(operand.shape)) {
      gradient = tape.allocate("sum", operand.shape, gradient.dtype());
    } else if (gradient.shape() != operand.shape) {
      gradient = gradient.viewed(operand.shape);
    }
    if (gradient.dtype() != operand.dtype) {
      gradient = tape.allocate("to", operand.shape, operand.dtype, gradient.layout());
    }
  }
}

Formula fresh_gradients(std::string_view operation, std::span<const Value> inputs, std::vector<std::size_t> order) {
  std::vector<Meta> metas;
  metas.reserve(inputs.size());
  for (const Value& input : inputs) metas.push_back(meta_of(input));
  return [operation, metas = std::move(metas), order = std::move(order)](Tape& tape, std::span<const Value>,
                                                                         std::vector<Value>& incoming) {
    std::vector<Value> gradients(metas.size());
    for (const std::size_t i : order) {
      const bool alike = metas[i].shape == incoming[0].shape();
      gradients[i] = fresh(tape, operation, metas[i], alike ? incoming[0].layout() : Layout::in_order);
    }
    return gradients;
  };
}

Formula fresh_gradients(std::string_view operation, std::span<const Value> inputs) {
  std::vector<std::size_t> order(inputs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  return fresh_gradients(operation, inputs, std::move(order));
}

Formula same_gradient(const Value& input) {
  return [shape = input.shape()](Tape&, std::span<const Value>, std::vector<Value>& incoming) {
    std::vector<Value> gradients;
    gradients.push_back(incoming[0].viewed(shape));
    return gradients;
  };
}

Formula gradient_after(std::string_view operation, const Value& input, int temporaries) {
  return [operation, temporaries, meta = meta_of(input)](Tape& tape, std::span<const Value>,
                                                         std::vector<Value>& incoming) {
    std::vector<Value> made;
    for (int i = 0; i < temporaries; ++i) made.push_back(fresh(tape, operation, meta, incoming[0].layout()));
    std::vector<Value> gradients;
    gradients.push_back(fresh(tape, operation, meta, incoming[0].layout()));
    return gradients;
  };
}

Value record(std::string_view operation, std::span<const Value> inputs, Value output, std::vector<Value> saved) {
  Tape& tape = output.tape();
  return tape.record(operation, inputs, std::move(output), std::move(saved), fresh_gradients(operation, inputs));
}

Value simple(std::string_view operation, const Value& x, Value output, std::vector<Value> saved) {
  return record(operation, std::span(&x, 1), std::move(output), std::move(saved));
}

Value like(std::string_view operation, const Value& x) {
  return x.tape().allocate(operation, x.shape(), x.dtype(),
                           x.layout() == Layout::with_gaps ? Layout::in_order : x.layout());
}

Value lowered(const Value& x) {
  if (!x.defined() || !x.tape().autocast() || x.dtype() != DType::f32) return x;
  const DType dtype = *x.tape().autocast();
  Value* copy = x.tape().cached_cast(x);
  if (copy == nullptr) return to(x, dtype);
  if (!copy->defined()) *copy = to(x, dtype);
  return *copy;
}

Value widened(const Value& x) {
  return x.defined() && x.tape().autocast() ? to(x, DType::f32) : x;
}

}  // namespace shardplan::autograd
