#include "tests/tools/train/reference_gpt.h"

#include <cmath>
#include <numbers>

namespace shardplan::test {
namespace {

using Vector = std::vector<double>;
using Rows = std::vector<Vector>;

Vector normalize(const Vector& x, const Vector& weight, const Vector& bias) {
  double mean = 0;
  double variance = 0;
  for (const double value : x) mean += value / static_cast<double>(x.size());
  for (const double value : x) variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
  Vector y(x.size());
  for (std::size_t j = 0; j < x.size(); ++j) y[j] = (x[j] - mean) / std::sqrt(variance + 1e-5) * weight[j] + bias[j];
  return y;
}

Vector affine(const Vector& x, const Vector& weight, const Vector& bias) {
  Vector y = bias;
  for (std::size_t i = 0; i < y.size(); ++i) {
    for (std::size_t j = 0; j < x.size(); ++j) y[i] += weight[i * x.size() + j] * x[j];
  }
  return y;
}

void add(const Vector& x, Vector& y) {
  for (std::size_t j = 0; j < x.size(); ++j) y[j] += x[j];
}

// What the byte at `place` gathers: queries, keys and values are the thirds of qkv's rows.
Vector attend(const Rows& qkv, std::size_t place, std::size_t heads) {
  const std::size_t width = qkv.front().size() / 3;
  const std::size_t size = width / heads;
  Vector result(width, 0.0);
  for (std::size_t h = 0; h < heads; ++h) {
    Vector weights(place + 1);
    double total = 0;
    for (std::size_t s = 0; s <= place; ++s) {
      double score = 0;
      for (std::size_t j = 0; j < size; ++j) score += qkv[place][h * size + j] * qkv[s][width + h * size + j];
      weights[s] = std::exp(score / std::sqrt(static_cast<double>(size)));
      total += weights[s];
    }
    for (std::size_t s = 0; s <= place; ++s) {
      for (std::size_t j = 0; j < size; ++j) {
        result[h * size + j] += weights[s] / total * qkv[s][2 * width + h * size + j];
      }
    }
  }
  return result;
}

void apply_block(const GptConfig& config, std::span<const Vector> p, Rows& x) {
  Rows qkv;
  for (const Vector& row : x) {
    qkv.push_back(affine(normalize(row, p[block::norm_1_weight], p[block::norm_1_bias]), p[block::qkv_weight],
                         p[block::qkv_bias]));
  }
  for (std::size_t t = 0; t < x.size(); ++t) {
    add(affine(attend(qkv, t, config.heads), p[block::out_weight], p[block::out_bias]), x[t]);
    Vector wide =
        affine(normalize(x[t], p[block::norm_2_weight], p[block::norm_2_bias]), p[block::up_weight], p[block::up_bias]);
    for (double& u : wide) {
      u = 0.5 * u * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (u + 0.044715 * u * u * u)));
    }
    add(affine(wide, p[block::down_weight], p[block::down_bias]), x[t]);
  }
}

double sequence_loss(const GptConfig& config, const ReferenceParameters& parameters,
                     std::span<const std::uint8_t> window) {
  Rows x(config.context, Vector(config.width));
  for (std::size_t t = 0; t < x.size(); ++t) {
    for (std::size_t j = 0; j < config.width; ++j) {
      x[t][j] = parameters[embedding::tokens][window[t] * config.width + j] +
                parameters[embedding::positions][t * config.width + j];
    }
  }
  std::span<const Vector> rest = std::span(parameters).subspan(embedding::count);
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    apply_block(config, rest, x);
    rest = rest.subspan(block::count);
  }
  const Vector& logits_weight = config.tied ? parameters.front() : rest[head::logits_weight];
  double loss = 0;
  for (std::size_t t = 0; t < x.size(); ++t) {
    const Vector logits = affine(normalize(x[t], rest[head::norm_weight], rest[head::norm_bias]), logits_weight,
                                 Vector(kVocabulary, 0.0));
    double total = 0;
    for (const double logit : logits) total += std::exp(logit);
    loss += std::log(total) - logits[window[t + 1]];
  }
  return loss;
}

}  // namespace

double reference_loss(const GptConfig& config, const ReferenceParameters& parameters,
                      std::span<const std::uint8_t> windows) {
  const std::size_t sequences = windows.size() / (config.context + 1);
  double loss = 0;
  for (std::size_t i = 0; i < sequences; ++i) {
    loss += sequence_loss(config, parameters, windows.subspan(i * (config.context + 1), config.context + 1));
  }
  return loss / static_cast<double>(sequences * config.context);
}

}  // namespace shardplan::test
