#include "planner/setup.h"

#include <fmt/format.h>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {

Placements placements_of_stage(int stage) {
  constexpr Placement kReplicated = Placement::replicated;
  constexpr Placement kSharded = Placement::sharded;
  switch (stage) {
    case 0:
      return {kReplicated, kReplicated, kReplicated};
    case 1:
      return {kReplicated, kReplicated, kSharded};
    case 2:
      return {kReplicated, kSharded, kSharded};
    case 3:
      return {kSharded, kSharded, kSharded};
    default:
      throw ConfigError("--zero", "", fmt::format("{} is not a ZeRO stage: expected 0, 1, 2 or 3", stage));
  }
}

std::string_view name(Transport transport) {
  return transport == Transport::staged ? "staged" : "direct";
}
std::string_view name(Reduction reduction) {
  return reduction == Reduction::fast ? "fast" : "canonical";
}
std::string_view name(Cadence cadence) {
  return cadence == Cadence::step ? "step" : "micro_batch";
}
std::string_view name(Recompute recompute) {
  return recompute == Recompute::full ? "full" : "none";
}

std::uint64_t shard_count(const Setup& setup) {
  return setup.world_size / setup.replicate;
}

std::uint64_t total_ranks(const Setup& setup) {
  return checked_multiply(setup.world_size, checked_multiply(setup.parallel.tensor, setup.parallel.pipeline));
}

std::uint64_t data_parallel(const Setup& setup) {
  return setup.world_size / setup.parallel.context;
}

std::uint64_t expert_world_size(const Setup& setup) {
  const Parallelism& p = setup.parallel;
  return checked_multiply(setup.world_size, p.tensor) / checked_multiply(p.expert, resolved_expert_tensor(p));
}

std::uint64_t data_ranks(const Setup& setup, const Tensor& tensor) {
  return tensor.expert ? expert_world_size(setup) : setup.world_size;
}

Cadence resolved_cadence(const Setup& setup) {
  if (setup.cadence) return *setup.cadence;
  return setup.stage >= 2 ? Cadence::micro_batch : Cadence::step;
}

std::uint64_t resolved_reduction_group(const Setup& setup) {
  return setup.reduction_group.value_or(shard_count(setup));
}

OptimizerChoice optimizer_choice(const Setup& setup) {
  return {.kind = setup.optimizer, .adafactor_first_moment = setup.adafactor_first_moment};
}

void validate(const Setup& setup) {
  const auto require = [](bool condition, const char* flag, const std::string& problem) {
    if (!condition) throw ConfigError(flag, "", problem);
  };
  require(setup.world_size > 0, "--gpus", "0 is no world size: expected 1 or more");
  require(setup.world_size <= 1U << 20, "--gpus", fmt::format("{} is more than 1048576", setup.world_size));
  require(setup.replicate > 0 && setup.world_size % setup.replicate == 0, "--replicate",
          fmt::format("{} does not divide the {} ranks of the data axis", setup.replicate, setup.world_size));
  validate(setup.parallel);
  require(setup.world_size % setup.parallel.context == 0, "--cp",
          fmt::format("{} does not divide the {} ranks of the data axis", setup.parallel.context, setup.world_size));
  const std::uint64_t experts = checked_multiply(setup.parallel.expert, resolved_expert_tensor(setup.parallel));
  require(checked_multiply(setup.world_size, setup.parallel.tensor) % experts == 0, "--ep",
          fmt::format("{} x {} (--etp) does not divide the {} x {} ranks of the data and the tensor axis",
                      setup.parallel.expert, resolved_expert_tensor(setup.parallel), setup.world_size,
                      setup.parallel.tensor));
  placements_of_stage(setup.stage);
  require(setup.accumulation > 0, "--grad-accum", "0 is no number of micro-batches: expected 1 or more");
  require(!setup.adafactor_first_moment || setup.optimizer == OptimizerKind::adafactor, "--adafactor-first-moment",
          "needs --optimizer adafactor");
  require(!setup.optimizer_in_backward || setup.accumulation == 1, "--optimizer-in-backward",
          "keeps no gradients to add to: expected --grad-accum 1");
  require(setup.prefetch <= 64, "--prefetch", fmt::format("{} units ahead is more than 64", setup.prefetch));
  require(setup.stage < 2 || shard_count(setup) == 1 || resolved_cadence(setup) == Cadence::micro_batch, "--cadence",
          fmt::format("stage {} shards gradients, so it reduces every micro-batch: expected micro_batch", setup.stage));
  const auto require_float = [&](DType dtype, const char* flag) {
    require(is_trainable_dtype(dtype), flag,
            fmt::format("{} cannot be trained in: expected fp32, bf16, fp16 or fp64", name(dtype)));
  };
  require_float(setup.policy.parameter, "--param-dtype");
  require_float(setup.policy.gradient, "--grad-dtype");
  require_float(setup.policy.gradient_accumulator, "--grad-accum-dtype");
  require_float(setup.policy.first_moment, "--moment-dtype");
  require_float(setup.policy.second_moment, "--moment-dtype");
  require_float(setup.policy.wire, "--wire-dtype");
  if (setup.policy.master) require_float(*setup.policy.master, "--master-dtype");
  for (const OffloadedClass* placed : {&setup.offload.optimizer, &setup.offload.gradients, &setup.offload.parameters}) {
    require(placed->fraction > 0 && placed->fraction <= 1, "--offload",
            fmt::format("{} is no fraction: expected a number above 0, at most 1", placed->fraction));
  }
  require(setup.offload.block_elements > 0 && setup.offload.block_elements % 2048 == 0, "--offload",
          fmt::format("blocks of {} elements: expected a multiple of 2048", setup.offload.block_elements));
  const std::uint64_t group = resolved_reduction_group(setup);
  require(group > 0 && setup.world_size % group == 0, "--reduction-group",
          fmt::format("{} does not divide the {} ranks of the data axis", group, setup.world_size));
  require(setup.replicate == 1 || group == shard_count(setup), "--reduction-group",
          fmt::format("with --replicate the groups are the shard groups: expected {}", shard_count(setup)));
}

}  // namespace shardplan
