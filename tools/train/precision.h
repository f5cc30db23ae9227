// Between a unit's tensors, in the dtypes of the training's policy, and the fp32 in which the example computes.
#pragma once

#include <span>

#include "shard/views.h"

namespace shardplan {

// The tensor's elements in fp32: where they lie if that is their dtype, widened into `scratch` (as many floats) if they
// are bf16 or fp16. Throws ConfigError for another dtype.
const float* in_fp32(const TensorView& tensor, float* scratch);

// Adds one value to each element of a gradient: the sum in fp32, rounded to the gradient's dtype. Nothing happens to an
// empty gradient: a frozen tensor's.
void add_to_gradient(const TensorView& gradient, std::span<const float> values);

}  // namespace shardplan
