// What computing costs: the seconds of each unit's forward and backward by the roofline of its modules, and of the
// optimizer's passes over memory.
//
// Roofline (Williams, Waterman and Patterson 2009): a kernel takes as long as its arithmetic at the dtype's rate or its
// bytes at the memory's, whichever is longer, and a constant besides, which is why small products are inefficient
// (Hockney's n_1/2). Kernels are taken as fused: a module reads what it needs once and writes its output once.
// docs/cost_model.md has the formulas of each kind of module with their sources.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/cost/cluster.h"
#include "planner/expert_load.h"
#include "planner/families/model.h"
#include "planner/families/module_rows.h"
#include "planner/policy.h"

namespace shardplan {

// One micro-batch of one rank.
struct Work {
  std::uint64_t tokens = 0;    // micro-batch x sequence; with context parallelism, this rank's part of them
  std::uint64_t sequence = 0;  // tokens that one token's attention spans, before the causal mask takes its half
  bool causal = true;
  DType compute = DType::bf16;
  // Weight gradients: their dtype, and whether they are added to what is there (read as well as written).
  DType gradient = DType::bf16;
  bool accumulates = false;
  // Ranks that share out the experts of a mixture. Each has experts / expert_ranks of them, for the tokens of all.
  std::uint64_t expert_ranks = 1;
  ExpertLoad expert_load{};
  // How many tokens of a sample pass each module of the model, and between which of them attention is; and how many samples
  // this rank has, a part of one with context parallelism. Null: `tokens` pass all modules. Referred to, not copied.
  const RowsOfModules* rows = nullptr;
  double samples = 1;
  bool operator==(const Work&) const = default;
};

struct PassSeconds {
  double forward = 0;   // and of recompute, which is a forward again
  double backward = 0;  // gradients of inputs and of weights; of frozen parts, what later ones need

  PassSeconds& operator+=(const PassSeconds& other);
  bool operator==(const PassSeconds&) const = default;
};

// `count` units in a row that cost the same, in the order of the catalog's units.
struct UnitRunSeconds {
  std::uint64_t count = 1;
  PassSeconds each;
  bool operator==(const UnitRunSeconds&) const = default;
};

// Unit after unit, equal ones in a row together. What is frozen, the catalog says. A model without modules costs 2 flops
// per parameter and token forward and 4 backward (Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1). Throws ConfigError
// where the cluster's GPU does not say how fast it is.
std::vector<UnitRunSeconds> unit_seconds(const Model& model, const Work& work, const Cluster& cluster);
const PassSeconds& seconds_of_unit(const std::vector<UnitRunSeconds>& runs, std::uint64_t unit);
PassSeconds sum(const std::vector<UnitRunSeconds>& runs);

// Flops per second that large matrix products reach.
double matmul_rate(const Cluster& cluster, DType compute);
// Bytes per second that kernels move, reads and writes together.
double memory_rate(const Cluster& cluster);

// Passes over `elements` elements, each one kernel.
double update_seconds(std::uint64_t elements, const Policy& policy, OptimizerKind optimizer, const Cluster& cluster);
double cast_seconds(std::uint64_t elements, DType from, DType to, const Cluster& cluster);
double accumulate_seconds(std::uint64_t elements, DType contribution, DType accumulator, const Cluster& cluster);
double norm_seconds(std::uint64_t elements, DType gradient, const Cluster& cluster);
double zero_seconds(Bytes bytes, const Cluster& cluster);

}  // namespace shardplan
