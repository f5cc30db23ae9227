#include "shard/kernels/optimizer_update.h"

#include <cmath>

#include <fmt/format.h>

#include "base/error.h"

namespace shardplan {
namespace {

float rounded(double value) {
  return static_cast<float>(value);
}

UpdateScalars scalars_of(const UpdateOptions& o) {
  const auto step = static_cast<double>(o.step);
  const bool adam = o.kind == OptimizerKind::adamw || o.kind == OptimizerKind::adam;
  const double bias1 = adam ? 1 - std::pow(o.beta1, step) : 1;
  const double bias2 = adam ? 1 - std::pow(o.beta2, step) : 1;
  return {.kind = o.kind,
          .gradient_factor = o.gradient_factor,
          .keep = rounded(1 - o.lr * o.weight_decay),
          .l2 = rounded(o.weight_decay),
          .beta1 = rounded(o.kind == OptimizerKind::sgd_momentum ? o.momentum : o.beta1),
          .fresh1 = rounded(1 - o.beta1),
          .beta2 = rounded(o.beta2),
          .fresh2 = rounded(1 - o.beta2),
          .bias2_root = rounded(std::sqrt(bias2)),
          .eps = rounded(o.eps),
          .minus_step = rounded(-(o.lr / bias1)),
          .ema_fresh = rounded(1 - o.ema_decay)};
}

// An array that is there is as long as the parameter.
void check_array(const char* what, bool wanted, std::size_t elements, std::size_t parameter_elements) {
  const std::size_t expected = wanted ? parameter_elements : 0;
  SHARDPLAN_CHECK(elements == expected, fmt::format("{} has {} elements, not {}", what, elements, expected));
}

void check(const UpdateOptions& options, const UpdateArrays& a) {
  const OptimizerStates& states = states_of(options.kind);
  const std::size_t elements = a.parameter.elements;
  SHARDPLAN_CHECK(options.step > 0, "the first step is number 1");
  for (const DType dtype : {a.parameter.dtype, a.gradient.dtype, a.first_moment.dtype, a.second_moment.dtype})
    check_kernel_dtype(dtype);
  check_array("gradient", true, a.gradient.elements, elements);
  check_array("first_moment", states.first_moment, a.first_moment.elements, elements);
  check_array("second_moment", states.second_moment, a.second_moment.elements, elements);
  check_array("master", !a.master.empty(), a.master.size(), elements);
  check_array("master_rest", !a.master_rest.empty(), a.master_rest.size(), elements);
  check_array("ema", !a.ema.empty(), a.ema.size(), elements);
  SHARDPLAN_CHECK(a.master.empty() || a.master_rest.empty(), "a master is whole or split");
  SHARDPLAN_CHECK(a.master_rest.empty() || a.parameter.dtype == DType::bf16,
                  fmt::format("a split master belongs to a bf16 parameter, not {}", name(a.parameter.dtype)));
}

}  // namespace

UpdateCall checked_update(const UpdateOptions& options, const UpdateArrays& arrays) {
  check(options, arrays);
  return {scalars_of(options),
          {.elements = arrays.parameter.elements,
           .parameter_dtype = arrays.parameter.dtype,
           .gradient_dtype = arrays.gradient.dtype,
           .first_moment_dtype = arrays.first_moment.dtype,
           .second_moment_dtype = arrays.second_moment.dtype,
           .parameter = arrays.parameter.data,
           .master = arrays.master.empty() ? nullptr : arrays.master.data(),
           .master_rest = arrays.master_rest.empty() ? nullptr : arrays.master_rest.data(),
           .gradient = arrays.gradient.data,
           .first_moment = arrays.first_moment.data,
           .second_moment = arrays.second_moment.data,
           .ema = arrays.ema.empty() ? nullptr : arrays.ema.data()}};
}

void optimizer_update(const UpdateOptions& options, const UpdateArrays& arrays, const OptimizerKernels& kernels) {
  const UpdateCall call = checked_update(options, arrays);
  kernels.update(call.scalars, call.arrays);
}

}  // namespace shardplan
