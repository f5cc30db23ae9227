// ZeRO++ and LoCo: what is kept or sent in fewer bits.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "planner/engines/deepspeed_stages.h"

namespace shardplan {
namespace {

using Class = MemoryClass;

struct Nodes {
  std::uint64_t ranks = 1;  // all of them
  std::uint64_t local = 1;  // of a node
};

Nodes nodes_of(const DeepSpeedPlan& plan) {
  const std::uint64_t ranks = total_ranks(plan.setup);
  return {ranks, std::min(ranks, plan.gpus_per_node)};
}

// coalesced_collectives.py, all_to_all_quant_reduce: matrices whose elements all ranks can share out twice.
bool sent_quantized(const Owned& owned, const Nodes& nodes) {
  return owned.tensor->trainable && owned.tensor->shape.size() > 1 && owned.elements % (2 * nodes.ranks) == 0;
}

// Two buffers in 8 bits, each with an fp32 scale for each of its groups.
Bytes loco_bytes(const Owned& owned, const Nodes& nodes) {
  if (!sent_quantized(owned, nodes)) return {};
  const Shape& shape = owned.tensor->shape;
  const std::uint64_t groups = std::max({shape[0], shape[1], nodes.ranks});
  return bytes_for(DType::i8, owned.elements) + bytes_for(DType::f32, groups) +
         bytes_for(DType::i8, owned.elements / nodes.local) + bytes_for(DType::f32, groups / nodes.local);
}

}  // namespace

std::optional<std::uint64_t> deepspeed_quantization_groups(std::uint64_t elements) {
  constexpr std::uint64_t kTarget = 8000;
  if (elements == 0 || elements % 8 != 0) return std::nullopt;
  const std::uint64_t eighth = elements / 8;
  const std::uint64_t least = divide_up(elements, kTarget);
  // The smallest divisor of `eighth` that is at least `least`.
  std::uint64_t groups = eighth;
  for (std::uint64_t divisor = 1; divisor <= eighth / divisor; ++divisor) {
    if (eighth % divisor != 0) continue;
    if (divisor >= least) groups = std::min(groups, divisor);
    if (eighth / divisor >= least) groups = std::min(groups, eighth / divisor);
  }
  // Halved as long as a group is still larger than the target.
  while (eighth % (2 * groups) == 0 && elements > kTarget * groups) groups *= 2;
  return groups;
}

bool kept_quantized(const DeepSpeedPlan& plan, const Owned& owned) {
  return plan.options.zero_quantized_nontrainable_weights && !owned.tensor->trainable;
}

Bytes quantized_shard_bytes(const Owned& owned) {
  const std::uint64_t shard = deepspeed_shard_elements(owned.elements, owned.ranks);
  const auto groups = deepspeed_quantization_groups(shard);
  if (!groups) {
    throw ConfigError("zero_quantized_nontrainable_weights", "",
                      fmt::format("a shard of {} has {} elements, and what is quantised must have a multiple of 8",
                                  owned.tensor->name, shard));
  }
  return bytes_for(DType::i8, shard) + bytes_for(DType::f32, *groups);
}

bool gradients_quantized(const DeepSpeedPlan& plan) {
  const Nodes nodes = nodes_of(plan);
  return plan.options.zero_quantized_gradients && nodes.ranks / nodes.local > 1;
}

void add_quantized_gradients(const DeepSpeedPlan& plan, TermList& list) {
  const Nodes nodes = nodes_of(plan);
  std::uint64_t largest = 0;
  sum_elements(plan.runs, [&](const Owned& owned) {
    if (owned.tensor->trainable) largest = std::max(largest, owned.elements);
    return std::uint64_t{0};
  });
  constexpr const char* kSource = "deepspeed/runtime/comm/coalesced_collectives.py, all_to_all_quant_reduce";
  list.add({"a gradient in 4 bits, sent and received", Class::communication_buffers, Tier::device, Span::backward,
            2 * bytes_for(DType::f4, largest), "2 x the largest tensor x 1/2 B", counted(largest, DType::f4), kSource});
  if (!plan.options.zeropp_loco) return;
  constexpr const char* kLoco = "coalesced_collectives.py, all_to_all_loco_quant_reduce";
  list.add({"LoCo: the error of the last steps, in 8 bits", Class::communication_buffers, Tier::device, Span::always,
            sum_bytes(plan.runs, [&](const Owned& owned) { return loco_bytes(owned, nodes); }),
            "elements (1 + 1 / GPUs of a node) x 1 B, and fp32 scales",
            fmt::format("matrices whose elements 2 x {} divides", nodes.ranks), kLoco});
  list.add({"LoCo: the error of one gradient", Class::communication_buffers, Tier::device, Span::backward,
            bytes_for(DType::f16, largest), "the largest tensor x 2 B", counted(largest, DType::f16), kLoco});
}

}  // namespace shardplan
