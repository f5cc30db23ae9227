#include "tools/train/math.h"

#include <cblas.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <numbers>

#include "base/error.h"
#include "tools/train/fast_exp.h"

namespace shardplan {
namespace {

constexpr float kNormEpsilon = 1e-5F;

// The sum of term(0), ..., term(count - 1) in eight interleaved partial sums: a fixed order that vectorises.
template <typename Term>
float sum(std::size_t count, Term term) {
  constexpr std::size_t kLanes = 8;
  std::array<float, kLanes> partial{};
  const std::size_t whole = count - count % kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) partial[lane] += term(i + lane);
  }
  for (std::size_t i = whole; i < count; ++i) partial[i - whole] += term(i);
  return ((partial[0] + partial[1]) + (partial[2] + partial[3])) +
         ((partial[4] + partial[5]) + (partial[6] + partial[7]));
}

// NaNs passed over: they come through in what is made of the elements.
float largest(const float* x, std::size_t count) {
  float result = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < count; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

// x becomes its softmax. Returns the logarithm of the sum of e^x.
float softmax(float* x, std::size_t count) {
  const float shift = largest(x, count);
  for (std::size_t i = 0; i < count; ++i) x[i] = fast_exp(x[i] - shift);
  const float total = sum(count, [&](std::size_t i) { return x[i]; });
  const float factor = 1 / total;
  for (std::size_t i = 0; i < count; ++i) x[i] *= factor;
  return shift + std::log(total);
}

void product(CBLAS_TRANSPOSE turn_a, ConstMatrix a, CBLAS_TRANSPOSE turn_b, ConstMatrix b, Matrix c, float scale) {
  const std::size_t a_rows = turn_a == CblasTrans ? a.columns : a.rows;
  const std::size_t a_columns = turn_a == CblasTrans ? a.rows : a.columns;
  const std::size_t b_rows = turn_b == CblasTrans ? b.columns : b.rows;
  const std::size_t b_columns = turn_b == CblasTrans ? b.rows : b.columns;
  SHARDPLAN_CHECK(a_rows == c.rows && a_columns == b_rows && b_columns == c.columns, "the shapes do not fit");
  cblas_sgemm(CblasRowMajor, turn_a, turn_b, static_cast<blasint>(c.rows), static_cast<blasint>(c.columns),
              static_cast<blasint>(a_columns), scale, a.data, static_cast<blasint>(a.stride), b.data,
              static_cast<blasint>(b.stride), 0, c.data, static_cast<blasint>(c.stride));
}

}  // namespace

void use_one_blas_thread() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

void multiply(ConstMatrix a, ConstMatrix b, Matrix c, float scale) {
  product(CblasNoTrans, a, CblasNoTrans, b, c, scale);
}

void multiply(ConstMatrix a, Transposed b, Matrix c, float scale) {
  product(CblasNoTrans, a, CblasTrans, b.matrix, c, scale);
}

void multiply(Transposed a, ConstMatrix b, Matrix c, float scale) {
  product(CblasTrans, a.matrix, CblasNoTrans, b, c, scale);
}

void linear(ConstMatrix x, ConstMatrix weight, const float* bias, Matrix y) {
  multiply(x, Transposed{weight}, y);
  for (std::size_t i = 0; i < y.rows; ++i) {
    float* const row = y.row(i);
    for (std::size_t j = 0; j < y.columns; ++j) row[j] += bias[j];
  }
}

void add(ConstMatrix x, Matrix y) {
  for (std::size_t i = 0; i < y.rows; ++i) {
    const float* const from = x.row(i);
    float* const to = y.row(i);
    for (std::size_t j = 0; j < y.columns; ++j) to[j] += from[j];
  }
}

void column_sums(ConstMatrix x, float* sums) {
  std::fill_n(sums, x.columns, 0.0F);
  for (std::size_t i = 0; i < x.rows; ++i) {
    const float* const row = x.row(i);
    for (std::size_t j = 0; j < x.columns; ++j) sums[j] += row[j];
  }
}

void layer_norm(ConstMatrix x, const float* weight, const float* bias, Matrix y, Matrix statistics) {
  const auto count = static_cast<float>(x.columns);
  for (std::size_t i = 0; i < x.rows; ++i) {
    const float* const in = x.row(i);
    float* const out = y.row(i);
    const float mean = sum(x.columns, [&](std::size_t j) { return in[j]; }) / count;
    const float variance = sum(x.columns, [&](std::size_t j) { return (in[j] - mean) * (in[j] - mean); }) / count;
    const float inverse = 1 / std::sqrt(variance + kNormEpsilon);
    for (std::size_t j = 0; j < x.columns; ++j) out[j] = (in[j] - mean) * inverse * weight[j] + bias[j];
    statistics.row(i)[0] = mean;
    statistics.row(i)[1] = inverse;
  }
}

void layer_norm_backward(ConstMatrix dy, ConstMatrix x, const float* weight, ConstMatrix statistics, Matrix dx,
                         float* dweight, float* dbias) {
  const auto count = static_cast<float>(x.columns);
  column_sums(dy, dbias);
  std::fill_n(dweight, x.columns, 0.0F);
  for (std::size_t i = 0; i < x.rows; ++i) {
    const float* const in = x.row(i);
    const float* const d = dy.row(i);
    float* const out = dx.row(i);
    const float mean = statistics.row(i)[0];
    const float inverse = statistics.row(i)[1];
    const auto normalized = [&](std::size_t j) { return (in[j] - mean) * inverse; };
    const float along_one = sum(x.columns, [&](std::size_t j) { return d[j] * weight[j]; }) / count;
    const float along_x = sum(x.columns, [&](std::size_t j) { return d[j] * weight[j] * normalized(j); }) / count;
    for (std::size_t j = 0; j < x.columns; ++j) {
      dweight[j] += d[j] * normalized(j);
      out[j] += inverse * (d[j] * weight[j] - along_one - normalized(j) * along_x);
    }
  }
}

void gelu(Matrix x, Matrix y) {
  constexpr float kTwice = 2 * std::numbers::sqrt2_v<float> * std::numbers::inv_sqrtpi_v<float>;
  constexpr float kCubic = 0.044715F;
  for (std::size_t i = 0; i < x.rows; ++i) {
    float* const in = x.row(i);
    float* const out = y.row(i);
    for (std::size_t j = 0; j < x.columns; ++j) {
      const float value = in[j];
      const float square = value * value;
      const float gate = 1 / (1 + fast_exp(-kTwice * value * (1 + kCubic * square)));
      out[j] = value * gate;
      in[j] = gate + out[j] * (1 - gate) * kTwice * (1 + 3 * kCubic * square);
    }
  }
}

void gelu_backward(ConstMatrix slope, Matrix d) {
  for (std::size_t i = 0; i < d.rows; ++i) {
    const float* const factor = slope.row(i);
    float* const row = d.row(i);
    for (std::size_t j = 0; j < d.columns; ++j) row[j] *= factor[j];
  }
}

void causal_softmax(Matrix scores) {
  for (std::size_t i = 0; i < scores.rows; ++i) {
    float* const row = scores.row(i);
    softmax(row, i + 1);
    std::fill(row + i + 1, row + scores.columns, 0.0F);
  }
}

void causal_softmax_backward(ConstMatrix probabilities, Matrix d) {
  for (std::size_t i = 0; i < d.rows; ++i) {
    const float* const p = probabilities.row(i);
    float* const row = d.row(i);
    const float mean = sum(i + 1, [&](std::size_t j) { return p[j] * row[j]; });
    for (std::size_t j = 0; j <= i; ++j) row[j] = p[j] * (row[j] - mean);
    std::fill(row + i + 1, row + d.columns, 0.0F);
  }
}

double cross_entropy(Matrix logits, std::span<const std::uint8_t> targets) {
  double nats = 0;
  for (std::size_t i = 0; i < logits.rows; ++i) {
    const float of_target = logits.row(i)[targets[i]];
    nats += static_cast<double>(softmax(logits.row(i), logits.columns) - of_target);
  }
  return nats;
}

void cross_entropy_backward(Matrix probabilities, std::span<const std::uint8_t> targets, float scale) {
  for (std::size_t i = 0; i < probabilities.rows; ++i) {
    float* const row = probabilities.row(i);
    row[targets[i]] -= 1;
    for (std::size_t j = 0; j < probabilities.columns; ++j) row[j] *= scale;
  }
}

}  // namespace shardplan
