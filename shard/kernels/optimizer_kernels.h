// The inner loops of shard/kernels: one source (optimizer_kernels.cpp), compiled once for each level of processor, the
// same bits from each. optimizer_update.h and arrays.h are how they are called; what a caller may want from here is
// the choice of a level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/dtype.h"
#include "planner/policy.h"

namespace shardplan {

// Hyperparameters as the loops use them: formed in double, then rounded to fp32 once. Fields that an optimizer does
// not use keep their value here.
struct UpdateScalars {
  OptimizerKind kind = OptimizerKind::adamw;
  float gradient_factor = 1;
  float keep = 1;    // 1 - lr weight_decay: what is left of a parameter (adamw, lion)
  float l2 = 0;      // weight_decay, added to the gradient (adam, sgd, sgd_momentum)
  float beta1 = 0;   // momentum (sgd_momentum)
  float fresh1 = 0;  // 1 - beta1
  float beta2 = 0;
  float fresh2 = 0;      // 1 - beta2
  float bias2_root = 1;  // sqrt(1 - beta2^step)
  float eps = 0;
  float minus_step = 0;  // -lr / (1 - beta1^step) (adamw, adam), else -lr
  float ema_fresh = 0;   // 1 - ema_decay
};

// First elements; null where there is no such array. dtypes are f32, bf16 or f16.
struct UpdatePointers {
  std::size_t elements = 0;
  DType parameter_dtype = DType::f32;
  DType gradient_dtype = DType::f32;
  DType first_moment_dtype = DType::f32;
  DType second_moment_dtype = DType::f32;
  std::byte* parameter = nullptr;
  float* master = nullptr;
  std::uint16_t* master_rest = nullptr;
  const std::byte* gradient = nullptr;
  std::byte* first_moment = nullptr;
  std::byte* second_moment = nullptr;
  float* ema = nullptr;
};

struct OptimizerKernels {
  std::string_view level;  // "x86-64-v2", ..., "portable"
  void (*update)(const UpdateScalars& scalars, const UpdatePointers& arrays);
  double (*sum_of_squares)(DType dtype, const std::byte* values, std::size_t elements);
  void (*cast)(DType to_dtype, std::byte* to, DType from_dtype, const std::byte* from, std::size_t elements);
};

// Those that this processor can run, the best one last. Never empty.
std::span<const OptimizerKernels> optimizer_kernels();
inline const OptimizerKernels& best_optimizer_kernels() {
  return optimizer_kernels().back();
}

}  // namespace shardplan
