#include "shard/kernels/arrays.h"

#include <cmath>

#include <fmt/format.h>

#include "base/error.h"

namespace shardplan {

void check_kernel_dtype(DType dtype) {
  SHARDPLAN_CHECK(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
                  fmt::format("kernels know fp32, bf16 and fp16, not {}", name(dtype)));
}

void cast(const Elements& to, const ConstElements& from, const OptimizerKernels& kernels) {
  check_kernel_dtype(to.dtype);
  check_kernel_dtype(from.dtype);
  SHARDPLAN_CHECK(to.elements == from.elements, fmt::format("a cast of {} elements to {}", from.elements, to.elements));
  kernels.cast(to.dtype, to.data, from.dtype, from.data, from.elements);
}

SumOfSquares sum_of_squares(const ConstElements& values, const OptimizerKernels& kernels) {
  check_kernel_dtype(values.dtype);
  // Squares of finite fp32 values are below 2^257: a sum of them that is not finite needs 2^767 elements.
  const double sum = kernels.sum_of_squares(values.dtype, values.data, values.elements);
  return {.sum = sum, .finite = std::isfinite(sum)};
}

}  // namespace shardplan
