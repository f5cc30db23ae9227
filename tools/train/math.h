// The mathematics of the example, each function beside its derivative. All of it is fp32, on the caller's thread.
//
// Determinism: the same inputs give the same bits, whatever other threads do and wherever the operands lie. Sums have a
// fixed order, there is no atomic, and a matrix product is one OpenBLAS call on one thread. For equal shapes OpenBLAS
// then runs the same kernel over the same blocks in the same order. Which kernel that is, it chooses by the processor:
// runs whose bits are compared must use the same kind of machine and the same OpenBLAS.
//
// Threads: every function may run on several threads at once, on different outputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace shardplan {

// A matrix in somebody else's memory: `rows` of `columns` elements, `stride` elements from one row to the next.
template <typename Element>
struct BasicMatrix {
  Element* data = nullptr;
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t stride = columns;

  Element* row(std::size_t i) const { return data + i * stride; }
  std::size_t elements() const { return rows * columns; }
  BasicMatrix block(std::size_t row_0, std::size_t column_0, std::size_t row_count, std::size_t column_count) const {
    return {data + row_0 * stride + column_0, row_count, column_count, stride};
  }
  // NOLINTNEXTLINE(google-explicit-constructor): as a pointer becomes one to const
  operator BasicMatrix<const Element>() const { return {data, rows, columns, stride}; }
};
using Matrix = BasicMatrix<float>;
using ConstMatrix = BasicMatrix<const float>;

// A factor of a product that is read with rows and columns exchanged.
struct Transposed {
  ConstMatrix matrix;
};

// Makes OpenBLAS use the calling thread alone, for the whole process. Before the first product; from any thread, any
// number of times.
void use_one_blas_thread();

// c = scale * a b.
void multiply(ConstMatrix a, ConstMatrix b, Matrix c, float scale = 1);
void multiply(ConstMatrix a, Transposed b, Matrix c, float scale = 1);
void multiply(Transposed a, ConstMatrix b, Matrix c, float scale = 1);

// y = x w^T + bias, with w as PyTorch's Linear keeps it: a row per output.
void linear(ConstMatrix x, ConstMatrix weight, const float* bias, Matrix y);

// y += x.
void add(ConstMatrix x, Matrix y);

// sums[j] = the sum of column j, in order of rows.
void column_sums(ConstMatrix x, float* sums);

// y = (x - mean) / sqrt(variance + 1e-5) * weight + bias in each row. `statistics` keeps (mean, 1 / sqrt(...)) of each
// row for the derivative, which adds to dx, and sets dweight and dbias.
void layer_norm(ConstMatrix x, const float* weight, const float* bias, Matrix y, Matrix statistics);
void layer_norm_backward(ConstMatrix dy, ConstMatrix x, const float* weight, ConstMatrix statistics, Matrix dx,
                         float* dweight, float* dbias);

// GELU's tanh form, 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3); that is x sigmoid(2u). Leaves in x the
// slope at x, by which the derivative multiplies d, turning it from that of y into that of x.
void gelu(Matrix x, Matrix y);
void gelu_backward(ConstMatrix slope, Matrix d);

// Row i of the square matrix becomes the softmax of its first i + 1 elements, followed by zeros: a byte attends to
// itself and to what came before. The derivative turns d from that of the probabilities into that of the scores.
void causal_softmax(Matrix scores);
void causal_softmax_backward(ConstMatrix probabilities, Matrix d);

// Turns each row of logits into probabilities; returns the sum of -log(probability of the row's target), in nats. The
// derivative turns probabilities into `scale` times that of the sum with respect to the logits.
double cross_entropy(Matrix logits, std::span<const std::uint8_t> targets);
void cross_entropy_backward(Matrix probabilities, std::span<const std::uint8_t> targets, float scale);

}  // namespace shardplan
