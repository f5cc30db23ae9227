// PyTorch's operations that pick elements by index, as routers and mixtures of experts do. Facts are from the same places as
// those of torch_ops.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/activations/tape.h"

namespace shardplan::autograd {

// x[index]: a copy of this shape, by an index that is kept. Its backward writes into zeros of the whole.
Value index_at(const Value& x, const Value& index, Shape shape);
// x[indices[0], indices[1], ...]
Value index_at(const Value& x, std::span<const Value> indices, Shape shape);
Value index_rows(const Value& x, const Value& index, std::uint64_t rows);  // the same: rows of x
// Views of these shapes, one behind the other (unbind, chunk along any dim); the backward puts their gradients together.
std::vector<Value> parts_of(const Value& x, std::span<const Shape> shapes);
// The same elements under another shape of as many dims or more: a view wherever x lies.
Value unsqueezed(const Value& x, Shape shape);
// x[mask] = values: x itself, which is a view of a tensor of its size (torch/csrc/autograd/functions/tensor.cpp, CopySlices).
Value overwritten(const Value& x, const Value& values, const Value& mask);
// x[..., index] = a number: x itself (index_fill_). Its backward copies the gradient.
Value fill_at(const Value& x, const Value& index);
// x.masked_scatter(mask, values): x with values where the mask, which is kept, has them.
Value masked_scatter(const Value& x, const Value& mask, const Value& values);
// torch.nn.AvgPool2d: keeps x.
Value average_pooled(const Value& x, Shape shape);
// An image or a table brought to another size (F.interpolate).
Value resampled(const Value& x, Shape shape);
// x.gather(-1, index): keeps x too
Value gather(const Value& x, const Value& index);
// The values at `index` of zeros of this shape (zeros.scatter_(-1, index, values)), or in any order (new_x[index] = values).
Value scattered(const Value& values, const Value& index, Shape shape);
// sum.index_add_(0, index, rows): `sum` itself, with rows added to it.
Value index_add(const Value& sum, const Value& index, const Value& rows);

// The `count` largest of each row, and where they are.
struct Largest {
  Value values;
  Value indices;
};
Largest topk(const Value& x, std::uint64_t count);
// x.max(dim=-1, keepdim=True).values
Value largest(const Value& x);

// x /= x.sum(dim=-1, keepdim=True): x itself, divided. `shifted`: by the sum plus a number.
Value divide_by_sum(const Value& x, bool shifted = false);
// torch.norm(x, dim=-1, keepdim=True): keeps x and the norm of each row.
Value norm_of_rows(const Value& x);
// x *= factors, broadcast: x itself; what it was is copied first where the factors need a gradient. `is_view`: of another tensor.
Value mul_in_place(const Value& x, const Value& factors, bool is_view = false);
// The sum over a dim: `shape` is what comes out. Its gradient is seen as often as there are summands.
Value sum_over(const Value& x, Shape shape);
// Within one bound or two.
Value clamp(const Value& x, int bounds);

}  // namespace shardplan::autograd
