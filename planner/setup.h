// The setup: everything besides the model that decides a step plan. A plain struct with defaults.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "planner/catalog.h"
#include "planner/offload.h"
#include "planner/optimizer_states.h"
#include "planner/parallelism.h"
#include "planner/policy.h"

namespace shardplan {

// Replicated or sharded over the data axis' shard group.
enum class Placement : std::uint8_t { replicated, sharded };

// A ZeRO stage is three placements and nothing else.
struct Placements {
  Placement parameter = Placement::replicated;
  Placement gradient = Placement::replicated;
  Placement optimizer_state = Placement::replicated;
  bool operator==(const Placements&) const = default;
};
// 0: RRR, 1: RRS, 2: RSS, 3: SSS (Rajbhandari et al., ZeRO, arXiv 1910.02054, sec. 5). Throws ConfigError elsewhere.
Placements placements_of_stage(int stage);

// direct: ranks read each other's arenas (threads, a shared mapping). staged: copies through planned buffers.
enum class Transport : std::uint8_t { direct, staged };

// canonical: the plan's reduction tree, the same bits everywhere. fast: the vendor's order, with a tolerance.
enum class Reduction : std::uint8_t { canonical, fast };

// micro_batch: reduce each micro-batch and add the reduced sums (what sharded gradients need).
// step: add locally, reduce once per step.
enum class Cadence : std::uint8_t { micro_batch, step };

// none: activations stay. full: each unit's forward runs again before its backward.
enum class Recompute : std::uint8_t { none, full };

std::string_view name(Transport transport);
std::string_view name(Reduction reduction);
std::string_view name(Cadence cadence);
std::string_view name(Recompute recompute);

struct Setup {
  // Ranks on the data axis, those of the context axis among them (planner/parallelism.h). They form `replicate` groups of world_size / replicate consecutive ranks: a group shards,
  // groups replicate each other (hybrid sharding). More replicas: less traffic between groups, more memory.
  std::uint64_t world_size = 1;
  std::uint64_t replicate = 1;

  // More is less memory per rank; 3 costs half as much traffic again as 0 to 2.
  int stage = 0;

  Policy policy;
  OptimizerKind optimizer = OptimizerKind::adamw;
  // Adafactor with beta1: +1 moment per parameter.
  bool adafactor_first_moment = false;
  // Each tensor is updated as soon as its gradient is there, which is then dropped: no gradients are kept but the
  // largest tensor's (torch, optimizer step in backward; LOMO, arXiv 2306.09782). Excludes accumulation.
  bool optimizer_in_backward = false;
  // An exponential moving average of the parameters, fp32, kept where the optimizer states are: +4 bytes/parameter.
  bool ema = false;

  // How many units ahead parameters are gathered at stage 3, and, from 1 on, whether a reduction overlaps the next
  // unit's backward. Each unit ahead costs one gathered unit; 0 is the least memory and hides nothing.
  std::uint64_t prefetch = 1;

  // Micro-batches per step (A). More than 1 needs a gradient accumulator: full-size at cadence step, shard-size at
  // micro_batch.
  std::uint64_t accumulation = 1;
  // Empty: step for stages 0 and 1, micro_batch for 2 and 3.
  std::optional<Cadence> cadence;

  Recompute recompute = Recompute::none;

  Transport transport = Transport::direct;
  Reduction reduction = Reduction::canonical;
  // Consecutive ranks whose contributions are summed first; the groups' sums follow in order. Empty: the shard group
  // (the whole world without hybrid sharding), which is the only choice with replicas. Changes bits, never bytes.
  std::optional<std::uint64_t> reduction_group;

  // What lives elsewhere than on the device. Less device memory, slower steps, the same bits.
  Offload offload{};

  // The other axes. What a rank holds of the model because of them is in its catalog (planner/parallel.h).
  Parallelism parallel{};

  bool operator==(const Setup&) const = default;
};

std::uint64_t shard_count(const Setup& setup);  // world_size / replicate

// All ranks: world_size x tensor x pipeline.
std::uint64_t total_ranks(const Setup& setup);
// Ranks on the data axis that have batches of their own: world_size / context.
std::uint64_t data_parallel(const Setup& setup);

// Ranks on the data axis of experts: world_size x tensor / (expert x expert_tensor). Where experts are not apart, the
// same as world_size.
std::uint64_t expert_world_size(const Setup& setup);
// Of a tensor: where its states are sharded and its gradients reduced.
std::uint64_t data_ranks(const Setup& setup, const Tensor& tensor);

// The cadence and the reduction group as they will be used.
Cadence resolved_cadence(const Setup& setup);
std::uint64_t resolved_reduction_group(const Setup& setup);

OptimizerChoice optimizer_choice(const Setup& setup);

// Throws ConfigError, with the flag as its source, for a setup that contradicts itself.
void validate(const Setup& setup);

}  // namespace shardplan
