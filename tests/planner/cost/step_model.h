// The time of a training step from planner/cost alone, by a simple rule of overlap: what the tests hold against published
// measurements. The simulator walks the step plan instead.
#pragma once

#include <cstdint>
#include <string>

#include "planner/cost/cluster.h"
#include "planner/cost/compute.h"
#include "planner/families/model.h"
#include "planner/policy.h"

namespace shardplan::test {

struct StepSetup {
  std::uint64_t ranks = 8;
  int stage = 1;
  std::uint64_t micro_batches = 1;
  Policy policy;
  DType reduced = DType::bf16;  // what gradients travel in
  Work work;
  double recomputed = 0;            // the part of the forward that runs again
  bool overlapped = true;           // collectives beside computation, all but a first and a last unit's
  std::uint64_t expert_ranks = 1;   // tokens travel to experts and back
  std::uint64_t context_ranks = 1;  // queries, keys, values and outputs are turned from tokens to heads and back
};

// Seconds.
double step_seconds(const Model& model, const StepSetup& setup, const Cluster& cluster);

}  // namespace shardplan::test
