#include "tests/cuda/update_case.h"

#include <fmt/format.h>

#include <cmath>

#include "tests/support/reference_reduction.h"

namespace shardplan::test {

UpdateCase::UpdateCase(std::uint32_t seed) {
  std::mt19937 random(seed);
  constexpr OptimizerKind kKinds[] = {OptimizerKind::adamw, OptimizerKind::adam, OptimizerKind::sgd,
                                      OptimizerKind::sgd_momentum, OptimizerKind::lion};
  constexpr std::size_t kLengths[] = {0, 1, 3, 4, 5, 17, 511, 1024, 2051};
  elements_ = kLengths[random() % std::size(kLengths)];
  options_.kind = kKinds[random() % std::size(kKinds)];
  options_.lr = 1e-2;
  options_.step = 1 + random() % 50;
  options_.gradient_factor = random() % 2 == 0 ? 1.0F : 0.37F;
  master_ = static_cast<Master>(random() % 3);
  const std::size_t common = random() % 5;
  const bool scattered = random() % 4 == 0;  // then no vector is aligned in all arrays
  const auto array = [&](DType dtype) {
    return std::optional<RandomArray>(std::in_place, dtype, scattered ? random() % 5 : common, elements_, random);
  };
  const auto any = [&] { return kKernelDTypes[random() % std::size(kKernelDTypes)]; };
  parameter_ = array(master_ == Master::split ? DType::bf16 : any());
  if (master_ == Master::whole) master_array_ = array(DType::f32);
  if (master_ == Master::split) rest_ = array(DType::bf16);
  gradient_ = array(any());
  const OptimizerStates& states = states_of(options_.kind);
  if (states.first_moment) first_moment_ = array(any());
  if (states.second_moment) second_moment_ = array(any());
  if (random() % 3 == 0) ema_ = array(DType::f32);
}

UpdateArrays UpdateCase::arrays() {
  UpdateArrays arrays;
  arrays.parameter = parameter_->elements();
  if (master_array_) arrays.master = master_array_->floats();
  if (rest_) arrays.master_rest = rest_->halves();
  arrays.gradient = gradient_->elements();
  if (first_moment_) arrays.first_moment = first_moment_->elements();
  if (second_moment_) arrays.second_moment = second_moment_->elements();
  if (ema_) arrays.ema = ema_->floats();
  return arrays;
}

std::vector<RandomArray*> UpdateCase::all() {
  std::vector<RandomArray*> found;
  for (auto* array : {&parameter_, &master_array_, &rest_, &gradient_, &first_moment_, &second_moment_, &ema_}) {
    if (*array) found.push_back(&**array);
  }
  return found;
}

std::string UpdateCase::text() const {
  constexpr const char* kMasters[] = {"no master", "a master", "a split master"};
  return fmt::format("{}, parameter {}, gradient {}, {}, {} elements", states_of(options_.kind).name,
                     name(parameter_->dtype()), name(gradient_->dtype()), kMasters[static_cast<int>(master_)],
                     elements_);
}

}  // namespace shardplan::test
