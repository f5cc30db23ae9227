#include "tests/shard/kernels/reference_update.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/half.h"

namespace shardplan::test {

float reference_lerp(float a, float b, float weight) {
  const float difference = b - a;
  if (weight < 0.5F) {
    const float moved = weight * difference;
    return a + moved;
  }
  const float moved = (1.0F - weight) * difference;
  return b - moved;
}

namespace {

ElementState<float> adam(const UpdateOptions& o, ElementState<float> s, float g) {
  const double bias1 = 1.0 - std::pow(o.beta1, static_cast<double>(o.step));
  const double bias2 = 1.0 - std::pow(o.beta2, static_cast<double>(o.step));
  s.m = reference_lerp(s.m, g, static_cast<float>(1.0 - o.beta1));
  const float old_part = s.v * static_cast<float>(o.beta2);
  const float scaled = static_cast<float>(1.0 - o.beta2) * g;
  const float new_part = scaled * g;
  s.v = old_part + new_part;
  const float root = std::sqrt(s.v);
  const float corrected = root / static_cast<float>(std::sqrt(bias2));
  const float denominator = corrected + static_cast<float>(o.eps);
  const float numerator = -static_cast<float>(o.lr / bias1) * s.m;
  const float change = numerator / denominator;
  s.p = s.p + change;
  return s;
}

float with_l2(const UpdateOptions& o, float p, float g) {
  const float penalty = static_cast<float>(o.weight_decay) * p;
  return g + penalty;
}

ElementState<float> lion(const UpdateOptions& o, ElementState<float> s, float g) {
  const float kept = s.m * static_cast<float>(o.beta1);
  const float fresh = static_cast<float>(1.0 - o.beta1) * g;
  const float direction = kept + fresh;
  float sign = direction;
  if (direction > 0) sign = 1;
  if (direction < 0) sign = -1;
  const float decayed = s.p * static_cast<float>(1.0 - o.lr * o.weight_decay);
  const float change = static_cast<float>(o.lr) * sign;
  s.p = decayed - change;
  const float moment_kept = s.m * static_cast<float>(o.beta2);
  const float moment_fresh = static_cast<float>(1.0 - o.beta2) * g;
  s.m = moment_kept + moment_fresh;
  return s;
}

}  // namespace

ElementState<float> reference_update(const UpdateOptions& o, ElementState<float> s, float gradient) {
  const float g = gradient * o.gradient_factor;
  const auto lr = static_cast<float>(o.lr);
  switch (o.kind) {
    case OptimizerKind::adamw:
      s.p = s.p * static_cast<float>(1.0 - o.lr * o.weight_decay);
      return adam(o, s, g);
    case OptimizerKind::adam:
      return adam(o, s, with_l2(o, s.p, g));
    case OptimizerKind::sgd: {
      const float change = lr * with_l2(o, s.p, g);
      s.p = s.p - change;
      return s;
    }
    case OptimizerKind::sgd_momentum: {
      const float kept = s.m * static_cast<float>(o.momentum);
      s.m = kept + with_l2(o, s.p, g);
      const float change = lr * s.m;
      s.p = s.p - change;
      return s;
    }
    case OptimizerKind::lion:
      return lion(o, s, g);
    default:
      ADD_FAILURE() << "an optimizer that no plan has";
  }
  return s;
}

ElementState<double> exact_update(const UpdateOptions& o, ElementState<double> s, double gradient) {
  double g = gradient * o.gradient_factor;
  const bool decoupled = o.kind == OptimizerKind::adamw || o.kind == OptimizerKind::lion;
  const double decay = o.lr * o.weight_decay * s.p;
  if (!decoupled) g += o.weight_decay * s.p;
  switch (o.kind) {
    case OptimizerKind::adamw:
    case OptimizerKind::adam: {
      s.m = o.beta1 * s.m + (1 - o.beta1) * g;
      s.v = o.beta2 * s.v + (1 - o.beta2) * g * g;
      const auto step = static_cast<double>(o.step);
      const double mean = s.m / (1 - std::pow(o.beta1, step));
      const double spread = std::sqrt(s.v / (1 - std::pow(o.beta2, step)));
      s.p -= o.lr * mean / (spread + o.eps);
      break;
    }
    case OptimizerKind::sgd:
      s.p -= o.lr * g;
      break;
    case OptimizerKind::sgd_momentum:
      s.m = o.momentum * s.m + g;
      s.p -= o.lr * s.m;
      break;
    case OptimizerKind::lion: {
      const double direction = o.beta1 * s.m + (1 - o.beta1) * g;
      s.p -= direction == 0 ? 0 : std::copysign(o.lr, direction);
      s.m = o.beta2 * s.m + (1 - o.beta2) * g;
      break;
    }
    default:
      ADD_FAILURE() << "an optimizer that no plan has";
  }
  if (decoupled) s.p -= decay;
  return s;
}

float load(DType dtype, const std::byte* at) {
  if (dtype == DType::f32) {
    float value = 0;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  std::uint16_t half = 0;
  std::memcpy(&half, at, sizeof half);
  return dtype == DType::bf16 ? bf16_to_fp32(half) : fp16_to_fp32(half);
}

void store(DType dtype, float value, std::byte* at) {
  if (dtype == DType::f32) {
    std::memcpy(at, &value, sizeof value);
    return;
  }
  const std::uint16_t half = dtype == DType::bf16 ? fp32_to_bf16(value) : fp32_to_fp16(value);
  std::memcpy(at, &half, sizeof half);
}

}  // namespace shardplan::test
