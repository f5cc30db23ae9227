// The formulas of optimizer_update.h for one element, written once: for the CPU's loops and for the GPU's threads.
//
// Everything is constexpr and always inlined where it is compiled with optimization (optimizer_kernels.cpp says why that
// matters). Every operation is rounded on its own; who compiles this says so: -ffp-contract=off, -fmad=false. Float is
// float: templates, since clang refuses a constexpr function that no compiler can evaluate, and a square root is none.
#pragma once

#include "shard/kernels/optimizer_kernels.h"

namespace shardplan::formulas {

// a + weight (b - a), from the nearer end, as torch.lerp does.
constexpr float lerp(float a, float b, float weight) {
  const bool near_a = weight < 0.5F;
  return (near_a ? a : b) + (near_a ? weight : weight - 1.0F) * (b - a);
}

template <typename Float>
constexpr void adam_step(const UpdateScalars& s, Float& p, Float g, Float& m, Float& v) {
  m = lerp(m, g, s.fresh1);
  v = v * s.beta2 + (s.fresh2 * g) * g;
  const float denominator = __builtin_sqrtf(v) / s.bias2_root + s.eps;
  p = p + (s.minus_step * m) / denominator;
}

struct AdamW {
  static constexpr int kMoments = 2;
  template <typename Float>
  static constexpr void update(const UpdateScalars& s, Float& p, Float g, Float& m, Float& v) {
    p = p * s.keep;
    adam_step(s, p, g, m, v);
  }
};
struct Adam {
  static constexpr int kMoments = 2;
  template <typename Float>
  static constexpr void update(const UpdateScalars& s, Float& p, Float g, Float& m, Float& v) {
    adam_step(s, p, g + s.l2 * p, m, v);
  }
};
struct Sgd {
  static constexpr int kMoments = 0;
  template <typename Float>
  static constexpr void update(const UpdateScalars& s, Float& p, Float g, Float& /*m*/, Float& /*v*/) {
    p = p + s.minus_step * (g + s.l2 * p);
  }
};
struct SgdMomentum {
  static constexpr int kMoments = 1;
  template <typename Float>
  static constexpr void update(const UpdateScalars& s, Float& p, Float g, Float& m, Float& /*v*/) {
    m = m * s.beta1 + (g + s.l2 * p);
    p = p + s.minus_step * m;
  }
};
struct Lion {
  static constexpr int kMoments = 1;
  template <typename Float>
  static constexpr void update(const UpdateScalars& s, Float& p, Float g, Float& m, Float& /*v*/) {
    const float direction = m * s.beta1 + s.fresh1 * g;
    const float sign = direction > 0.0F ? 1.0F : (direction < 0.0F ? -1.0F : direction);
    p = p * s.keep + s.minus_step * sign;
    m = m * s.beta2 + s.fresh2 * g;
  }
};

}  // namespace shardplan::formulas
