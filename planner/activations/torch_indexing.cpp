#include "planner/activations/torch_indexing.h"

#include <array>
#include <utility>

#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// Zeros of the whole, into which the gradient is put; subclasses of Tensor get a tensor of their own for it.
Formula into_zeros(std::string_view operation, const Value& x) {
  return [operation, meta = meta_of(x)](Tape& tape, std::span<const Value>, std::vector<Value>&) {
    std::vector<Value> gradients;
    Value zeros = tape.allocate(operation, meta.shape, meta.dtype);
    if (!tape.options().adds_in_place) zeros = tape.allocate(operation, meta.shape, meta.dtype);
    gradients.push_back(std::move(zeros));
    return gradients;
  };
}

}  // namespace

std::vector<Value> parts_of(const Value& x, std::span<const Shape> shapes) {
  std::vector<Value> parts;
  for (const Shape& shape : shapes) parts.push_back(x.viewed(shape));
  // split_backward fills in zeros for parts that have no gradient (FunctionsManual.cpp).
  return x.tape().record("split", std::span(&x, 1), std::move(parts), {},
                         [whole = meta_of(x), shapes = std::vector<Shape>(shapes.begin(), shapes.end())](
                             Tape& tape, std::span<const Value>, std::vector<Value>& incoming) {
                           std::vector<Value> zeros;
                           for (std::size_t i = 0; i < shapes.size(); ++i) {
                             if (!incoming[i].defined())
                               zeros.push_back(tape.allocate("zeros", shapes[i], whole.dtype));
                           }
                           std::vector<Value> gradients;
                           gradients.push_back(fresh(tape, "split backward", whole));
                           return gradients;
                         });
}

Value unsqueezed(const Value& x, Shape shape) {
  return x.tape().record("unsqueeze", std::span(&x, 1), x.viewed(std::move(shape)).laid_out(Layout::in_order), {},
                         same_gradient(x));
}

Value overwritten(const Value& x, const Value& values, const Value& mask) {
  const std::array inputs{x, values};
  return x.tape().record(
      "index_put", inputs, x.detached(), {mask},
      [whole = meta_of(x), part = meta_of(values)](Tape& tape, std::span<const Value>, std::vector<Value>&) {
        std::vector<Value> gradients(2);
        Value result = tape.allocate("copy", whole.shape, whole.dtype);
        const Value slice = tape.allocate("clone", whole.shape, whole.dtype);
        const Value rest = fresh(tape, "index_put", whole);
        gradients[1] = fresh(tape, "index", part);
        if (whole.wanted) gradients[0] = std::move(result);
        return gradients;
      });
}

Value fill_at(const Value& x, const Value& index) {
  return simple("index_fill", x, x.detached(), {index});
}

Value masked_scatter(const Value& x, const Value& mask, const Value& values) {
  const std::array inputs{x, values};
  return record("masked_scatter", inputs, like("masked_scatter", x), {mask});
}

Value average_pooled(const Value& x, Shape shape) {
  return simple("avg_pool", x, x.tape().allocate("avg_pool", std::move(shape), x.dtype()), {x});
}

Value resampled(const Value& x, Shape shape) {
  return simple("upsample", x, x.tape().allocate("upsample", std::move(shape), x.dtype()));
}

Value index_at(const Value& x, std::span<const Value> indices, Shape shape) {
  return x.tape().record("index", std::span(&x, 1), x.tape().allocate("index", std::move(shape), x.dtype()),
                         {indices.begin(), indices.end()}, into_zeros("index backward", x));
}

Value index_at(const Value& x, const Value& index, Shape shape) {
  return index_at(x, std::span(&index, 1), std::move(shape));
}

Value index_rows(const Value& x, const Value& index, std::uint64_t rows) {
  Shape shape = x.shape();
  shape[0] = rows;
  return index_at(x, index, std::move(shape));
}

Value gather(const Value& x, const Value& index) {
  return x.tape().record("gather", std::span(&x, 1), x.tape().allocate("gather", index.shape(), x.dtype()), {x, index},
                         into_zeros("gather backward", x));
}

Value scattered(const Value& values, const Value& index, Shape shape) {
  return simple("scatter", values, values.tape().allocate("scatter", std::move(shape), values.dtype()), {index});
}

Value index_add(const Value& sum, const Value& index, const Value& rows) {
  const std::array inputs{sum, rows};
  std::vector<Value> saved;
  if (rows.requires_grad()) saved = {index, rows};
  return sum.tape().record("index_add", inputs, sum.detached(), std::move(saved),
                           [operands = std::array{meta_of(sum), meta_of(rows)}](Tape& tape, std::span<const Value>,
                                                                                std::vector<Value>& incoming) {
                             std::vector<Value> gradients(2);
                             if (operands[0].wanted) gradients[0] = incoming[0];
                             gradients[1] = fresh(tape, "index_select", operands[1]);
                             return gradients;
                           });
}

Largest topk(const Value& x, std::uint64_t count) {
  Tape& tape = x.tape();
  Shape shape = x.shape();
  shape.back() = count;
  Value values = tape.allocate("topk", shape, x.dtype());
  Value indices = tape.allocate("topk indices", shape, DType::i64);
  values = tape.record("topk", std::span(&x, 1), std::move(values), {indices}, into_zeros("topk backward", x));
  return {std::move(values), std::move(indices)};
}

Value largest(const Value& x) {
  return topk(x, 1).values;
}

Value divide_by_sum(const Value& x, bool shifted) {
  Shape rows = x.shape();
  rows.back() = 1;
  Value sum = sum_over(x, std::move(rows));
  if (shifted) sum = shift(sum);
  const std::array inputs{x, sum};
  // The dividend is copied before it is overwritten.
  std::vector<Value> saved{x.tape().allocate("clone", x.shape(), x.dtype()), sum};
  return record("div", inputs, x.detached(), std::move(saved));
}

Value norm_of_rows(const Value& x) {
  Shape rows = x.shape();
  rows.back() = 1;
  Value norm = x.tape().allocate("norm", std::move(rows), x.dtype());
  std::vector<Value> saved{x, norm};
  return x.tape().record("norm", std::span(&x, 1), std::move(norm), std::move(saved),
                         gradient_after("norm backward", x, 1));
}

Value mul_in_place(const Value& x, const Value& factors, bool is_view) {
  const std::array inputs{x, factors};
  std::vector<Value> saved;
  if (factors.requires_grad()) saved.push_back(x.tape().allocate("clone", x.shape(), x.dtype()));
  if (x.requires_grad()) saved.push_back(factors);
  return x.tape().record("mul", inputs, x.detached(), std::move(saved),
                         [is_view, operands = std::array{meta_of(x), meta_of(factors)}](
                             Tape& tape, std::span<const Value>, std::vector<Value>& incoming) {
                           std::vector<Value> gradients(2);
                           const Meta whole{operands[0].shape, operands[0].dtype, true};
                           // torch/csrc/autograd/functions/tensor.cpp, CopySlices: what came, written out, and a copy of it beside the base's gradient.
                           std::array<Value, 2> copies;
                           Value base;
                           if (is_view) {
                             copies[0] = fresh(tape, "clone", whole);
                             incoming.clear();
                             base = fresh(tape, "new_empty_strided", whole);
                             copies[1] = fresh(tape, "clone", whole);
                           }
                           if (operands[1].wanted) gradients[1] = fresh(tape, "mul backward", whole);
                           if (operands[0].wanted) gradients[0] = fresh(tape, "mul backward", whole);
                           if (is_view && operands[0].wanted) gradients[0] = std::move(base);
                           fit(tape, gradients, operands);
                           return gradients;
                         });
}

Value sum_over(const Value& x, Shape shape) {
  return x.tape().record("sum", std::span(&x, 1), x.tape().allocate("sum", std::move(shape), x.dtype()), {},
                         same_gradient(x));
}

Value clamp(const Value& x, int bounds) {
  return x.tape().record("clamp", std::span(&x, 1), like("clamp", x), {x},
                         [bounds, meta = meta_of(x)](Tape& tape, std::span<const Value>, std::vector<Value>& incoming) {
                           std::vector<Value> masks;
                           for (int i = 0; i < bounds; ++i) {
                             masks.push_back(tape.allocate("clamp backward", meta.shape, DType::boolean));
                           }
                           std::vector<Value> gradients;
                           gradients.push_back(fresh(tape, "clamp backward", meta, incoming[0].layout()));
                           return gradients;
                         });
}

}  // namespace shardplan::autograd
