#include <algorithm>

#include "planner/engines/deepspeed.h"

namespace shardplan {
namespace {

// additional_buffer_factor 1.5, cut to a whole number.
Bytes with_buffers(std::uint64_t bytes, std::uint64_t nodes = 1) {
  return Bytes{checked_multiply(bytes, 3) / checked_multiply(2, nodes)};
}

}  // namespace

DeepSpeedEstimate deepspeed_estimate_zero2(const DeepSpeedEstimateInput& input) {
  const std::uint64_t p = input.parameters;
  const std::uint64_t gpus = checked_multiply(input.nodes, input.gpus_per_node);
  if (input.offload_optimizer) {
    return {.gpu = Bytes{2} * p, .cpu = with_buffers(checked_multiply(p, std::max<std::uint64_t>(4 * gpus, 16)))};
  }
  const std::uint64_t whole = input.until_0_14_0 ? 4 : 2;
  const std::uint64_t split = input.until_0_14_0 ? 16 : 18;
  return {.gpu = Bytes{whole} * p + Bytes{checked_multiply(split, p) / gpus},
          .cpu = with_buffers(checked_multiply(p, 4 * input.gpus_per_node))};
}

DeepSpeedEstimate deepspeed_estimate_zero3(const DeepSpeedEstimateInput& input) {
  const std::uint64_t p = input.parameters;
  const std::uint64_t gpus = checked_multiply(input.nodes, input.gpus_per_node);
  const Bytes largest = Bytes{4} * input.largest_layer;
  // What every process builds for itself without zero.Init.
  const std::uint64_t built = checked_multiply(p, 4 * input.gpus_per_node);
  const auto states = [&](std::uint64_t per_parameter) {
    const Bytes sharded = with_buffers(checked_multiply(p, per_parameter), input.nodes);
    return input.zero_init ? sharded : std::max(sharded, with_buffers(built));
  };
  if (input.offload_optimizer && input.offload_param) return {.gpu = largest, .cpu = states(18)};
  if (input.offload_optimizer) {
    return {.gpu = largest + Bytes{checked_multiply(2, p) / gpus}, .cpu = states(16)};
  }
  return {
      .gpu = largest + Bytes{checked_multiply(18, p) / gpus},
      .cpu = with_buffers(input.zero_init ? checked_multiply(input.largest_layer, 4 * input.gpus_per_node) : built)};
}

}  // namespace shardplan
