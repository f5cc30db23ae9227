// The update of one element, written out again: once operation by operation in fp32, once in double.
#pragma once

#include <string_view>

#include "shard/kernels/optimizer_update.h"

namespace shardplan::test {

template <typename Real>
struct ElementState {
  Real p = 0;
  Real m = 0;
  Real v = 0;
};

// In fp32, each operation rounded: the bits that optimizer_update promises.
ElementState<float> reference_update(const UpdateOptions& options, ElementState<float> before, float gradient);

// In double, with exact hyperparameters: the optimizer as mathematics defines it.
ElementState<double> exact_update(const UpdateOptions& options, ElementState<double> before, double gradient);

// torch.lerp in fp32.
float reference_lerp(float a, float b, float weight);

float load(DType dtype, const std::byte* at);
void store(DType dtype, float value, std::byte* at);

}  // namespace shardplan::test
