#include "tools/train/math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <vector>

#include "base/error.h"
#include "tools/train/fast_exp.h"
#include "tools/train/random.h"

namespace shardplan {
namespace {

using Doubles = std::vector<double>;

// A matrix that owns its elements: normal random ones, with a gap behind each row that nothing may write.
struct Owned {
  Owned(std::size_t rows, std::size_t columns, std::uint64_t seed, double deviation = 1)
      : storage(rows * (columns + 3)), matrix{storage.data(), rows, columns, columns + 3} {
    for (std::size_t i = 0; i < storage.size(); ++i) storage[i] = static_cast<float>(deviation * normal(seed, i));
    original = storage;
  }
  double at(std::size_t i, std::size_t j) const { return static_cast<double>(matrix.row(i)[j]); }
  double before(std::size_t i, std::size_t j) const { return static_cast<double>(original[i * matrix.stride + j]); }
  bool gaps_are_untouched() const {
    for (std::size_t i = 0; i < storage.size(); ++i) {
      if (i % matrix.stride >= matrix.columns && storage[i] != original[i]) return false;
    }
    return true;
  }

  std::vector<float> storage;
  Matrix matrix;
  std::vector<float> original;
};

// The derivative of sum(weights * function(x)) with respect to x[j], by central differences.
double slope(const std::function<Doubles(const Doubles&)>& function, Doubles x, const Doubles& weights, std::size_t j) {
  constexpr double kStep = 1e-5;
  const auto weighted = [&] {
    const Doubles y = function(x);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += weights[i] * y[i];
    return sum;
  };
  x[j] += kStep;
  const double above = weighted();
  x[j] -= 2 * kStep;
  return (above - weighted()) / (2 * kStep);
}

Doubles row_before(const Owned& matrix, std::size_t i) {
  Doubles row(matrix.matrix.columns);
  for (std::size_t j = 0; j < row.size(); ++j) row[j] = matrix.before(i, j);
  return row;
}

Doubles softmax(const Doubles& x) {
  double total = 0;
  for (const double value : x) total += std::exp(value);
  Doubles y;
  for (const double value : x) y.push_back(std::exp(value) / total);
  return y;
}

TEST(FastExp, IsExpToFp32) {
  for (double x = -87; x <= 88; x += 0.000917) {
    const auto argument = static_cast<float>(x);
    const double expected = std::exp(static_cast<double>(argument));
    ASSERT_NEAR(static_cast<double>(fast_exp(argument)), expected, expected * 0x1p-22) << argument;
  }
  EXPECT_EQ(fast_exp(0), 1);
  EXPECT_EQ(fast_exp(-0.0F), 1);
}

TEST(FastExp, BeyondItsBounds) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fast_exp(-kInfinity), fast_exp(-87));
  EXPECT_EQ(fast_exp(kInfinity), fast_exp(88));
  EXPECT_TRUE(std::isnormal(fast_exp(-kInfinity)));
  EXPECT_TRUE(std::isfinite(fast_exp(kInfinity)));
  EXPECT_TRUE(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Multiply, AllFormsOnBlocksOfMatrices) {
  use_one_blas_thread();
  for (const auto& [m, n, k] : {std::array<std::size_t, 3>{1, 1, 1}, {5, 7, 3}, {64, 64, 32}, {33, 100, 517}}) {
    Owned a(m, k, 1), a_turned(k, m, 2), b(k, n, 3), b_turned(n, k, 4);
    Owned plain(m, n, 5), turned_b(m, n, 6), turned_a(m, n, 7);
    multiply(a.matrix, b.matrix, plain.matrix, 0.5F);
    multiply(a.matrix, Transposed{b_turned.matrix}, turned_b.matrix);
    multiply(Transposed{a_turned.matrix}, b.matrix, turned_a.matrix, -2);
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        double sums[3] = {};
        for (std::size_t l = 0; l < k; ++l) {
          sums[0] += 0.5 * a.at(i, l) * b.at(l, j);
          sums[1] += a.at(i, l) * b_turned.at(j, l);
          sums[2] += -2 * a_turned.at(l, i) * b.at(l, j);
        }
        const double allowed = 1e-6 * static_cast<double>(k) + 1e-6;
        ASSERT_NEAR(plain.at(i, j), sums[0], allowed);
        ASSERT_NEAR(turned_b.at(i, j), sums[1], allowed);
        ASSERT_NEAR(turned_a.at(i, j), sums[2], allowed);
      }
    }
    EXPECT_TRUE(plain.gaps_are_untouched() && turned_a.gaps_are_untouched() && turned_b.gaps_are_untouched());
  }
}

TEST(Multiply, RefusesShapesThatDoNotFit) {
  Owned a(2, 3, 1), b(4, 5, 2), c(2, 5, 3);
  EXPECT_THROW(multiply(a.matrix, b.matrix, c.matrix), CheckFailure);
}

Doubles layer_norm_reference(const Doubles& x, const Doubles& weight, const Doubles& bias) {
  double mean = 0;
  double variance = 0;
  for (const double value : x) mean += value / static_cast<double>(x.size());
  for (const double value : x) variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
  Doubles y(x.size());
  for (std::size_t j = 0; j < x.size(); ++j) y[j] = (x[j] - mean) / std::sqrt(variance + 1e-5) * weight[j] + bias[j];
  return y;
}

TEST(LayerNorm, ForwardAndBackwardAgainstDouble) {
  for (const std::size_t width : {1U, 5U, 8U, 61U, 128U}) {
    constexpr std::size_t kRows = 6;
    Owned x(kRows, width, 1, 3), y(kRows, width, 2), dy(kRows, width, 3), dx(kRows, width, 4), statistics(kRows, 2, 5);
    Owned weight(1, width, 6), bias(1, width, 7), dweight(1, width, 8), dbias(1, width, 9);
    layer_norm(x.matrix, weight.matrix.data, bias.matrix.data, y.matrix, statistics.matrix);
    layer_norm_backward(dy.matrix, x.matrix, weight.matrix.data, statistics.matrix, dx.matrix, dweight.matrix.data,
                        dbias.matrix.data);
    const Doubles w = row_before(weight, 0);
    const Doubles b = row_before(bias, 0);
    Doubles dw(width, 0.0), db(width, 0.0);
    for (std::size_t i = 0; i < kRows; ++i) {
      const Doubles row = row_before(x, i);
      const Doubles expected = layer_norm_reference(row, w, b);
      const auto of_x = [&](const Doubles& in) { return layer_norm_reference(in, w, b); };
      for (std::size_t j = 0; j < width; ++j) {
        ASSERT_NEAR(y.at(i, j), expected[j], 1e-5);
        ASSERT_NEAR(dx.at(i, j) - dx.before(i, j), slope(of_x, row, row_before(dy, i), j), 1e-5) << width;
        dw[j] += dy.at(i, j) * layer_norm_reference(row, Doubles(width, 1.0), Doubles(width, 0.0))[j];
        db[j] += dy.at(i, j);
      }
    }
    for (std::size_t j = 0; j < width; ++j) {
      EXPECT_NEAR(dweight.at(0, j), dw[j], 1e-5);
      EXPECT_NEAR(dbias.at(0, j), db[j], 1e-5);
    }
    EXPECT_TRUE(y.gaps_are_untouched() && dx.gaps_are_untouched() && statistics.gaps_are_untouched());
  }
}

TEST(Gelu, ForwardAndBackwardAgainstDouble) {
  const auto reference = [](const Doubles& x) {
    const double u = std::sqrt(2 / std::numbers::pi) * (x[0] + 0.044715 * x[0] * x[0] * x[0]);
    return Doubles{0.5 * x[0] * (1 + std::tanh(u))};
  };
  Owned x(7, 301, 1, 4), y(7, 301, 2), d(7, 301, 3);
  for (std::size_t j = 0; j < 20; ++j) x.matrix.row(0)[j] = x.original[j] = static_cast<float>(j) * 10.0F - 100.0F;
  gelu(x.matrix, y.matrix);
  gelu_backward(x.matrix, d.matrix);
  for (std::size_t i = 0; i < 7; ++i) {
    for (std::size_t j = 0; j < 301; ++j) {
      const Doubles argument{x.before(i, j)};
      const double expected = reference(argument)[0];
      ASSERT_NEAR(y.at(i, j), expected, 1e-6 * (1 + std::abs(expected))) << argument[0];
      const double expected_d = slope(reference, argument, {d.before(i, j)}, 0);
      ASSERT_NEAR(d.at(i, j), expected_d, 3e-6 * (1 + std::abs(d.before(i, j)))) << argument[0];
    }
  }
  EXPECT_TRUE(x.gaps_are_untouched() && y.gaps_are_untouched() && d.gaps_are_untouched());
}

TEST(CausalSoftmax, ForwardAndBackwardAgainstDouble) {
  constexpr std::size_t kSize = 37;
  Owned p(kSize, kSize, 1, 4), d(kSize, kSize, 2);
  causal_softmax(p.matrix);
  causal_softmax_backward(p.matrix, d.matrix);
  for (std::size_t i = 0; i < kSize; ++i) {
    Doubles scores = row_before(p, i);
    scores.resize(i + 1);
    const Doubles expected = softmax(scores);
    for (std::size_t j = 0; j < kSize; ++j) {
      ASSERT_NEAR(p.at(i, j), j <= i ? expected[j] : 0, 1e-6);
      ASSERT_NEAR(d.at(i, j), j <= i ? slope(softmax, scores, row_before(d, i), j) : 0, 3e-6);
    }
  }
  EXPECT_TRUE(p.gaps_are_untouched() && d.gaps_are_untouched());
}

TEST(CausalSoftmax, SurvivesScoresThatOverflowExp) {
  std::vector<float> scores{500, 0, -3e38F, 3e38F};
  causal_softmax({scores.data(), 2, 2});
  EXPECT_EQ(scores, (std::vector<float>{1, 0, scores[2], 1}));
  EXPECT_LT(scores[2], 1e-37F);
}

TEST(CrossEntropy, ForwardAndBackwardAgainstDouble) {
  constexpr std::size_t kRows = 9;
  Owned logits(kRows, 256, 1, 3);
  logits.matrix.row(0)[17] = logits.original[17] = 300;  // e^300 is not an fp32
  std::vector<std::uint8_t> targets;
  for (std::size_t i = 0; i < kRows; ++i) targets.push_back(static_cast<std::uint8_t>(31 * i + 17));
  double expected = 0;
  for (std::size_t i = 0; i < kRows; ++i) expected -= std::log(softmax(row_before(logits, i))[targets[i]]);
  EXPECT_NEAR(cross_entropy(logits.matrix, targets), expected, 1e-5 * expected);
  cross_entropy_backward(logits.matrix, targets, 4);
  for (std::size_t i = 0; i < kRows; ++i) {
    const Doubles probabilities = softmax(row_before(logits, i));
    for (std::size_t j = 0; j < 256; ++j) {
      EXPECT_NEAR(logits.at(i, j), 4 * (probabilities[j] - (j == targets[i] ? 1 : 0)), 3e-6);
    }
  }
  EXPECT_TRUE(logits.gaps_are_untouched());
}

}  // namespace
}  // namespace shardplan
