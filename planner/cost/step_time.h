// The time of a training step in closed form, by a simple rule of overlap: fast enough for a search through set-ups. The
// simulator (tools/simulate) walks the step plan instead, for the data axis alone.
//
// docs/cost_model.md, 'The time of a step', has the formulas with their sources.
#pragma once

#include <cstdint>

#include "planner/cost/cluster.h"
#include "planner/cost/compute.h"
#include "planner/families/model.h"
#include "planner/parallelism.h"
#include "planner/policy.h"

namespace shardplan {

struct StepSetup {
  std::uint64_t ranks = 8;  // on the data axis, those of the context axis among them
  int stage = 1;
  std::uint64_t micro_batches = 1;
  Policy policy;
  OptimizerKind optimizer = OptimizerKind::adamw;
  DType reduced = DType::bf16;      // what gradients travel in
  Work work;                        // of one micro-batch, as if one rank had the whole of each layer
  double recomputed = 0;            // the part of the forward that runs again
  bool overlapped = true;           // collectives beside computation, all but a first and a last unit's
  std::uint64_t expert_ranks = 1;   // tokens travel to experts and back
  std::uint64_t context_ranks = 1;  // queries, keys, values and outputs are turned from tokens to heads and back

  // Ranks are numbered tensor first, then context and data, then pipeline (Megatron-LM, core/parallel_state.py).
  std::uint64_t tensor_ranks = 1;
  bool sequence_parallel = false;
  std::uint64_t stages = 1;
  std::uint64_t virtual_stages = 1;
  PipelineSchedule schedule = PipelineSchedule::one_f_one_b;
};

// Seconds. The parts add up to the whole.
struct StepTime {
  double computing = 0;
  double communicating = 0;  // exposed: nothing is computed meanwhile
  double bubble = 0;         // of the pipeline
  double updating = 0;

  double seconds() const { return computing + communicating + bubble + updating; }
};

// Throws ConfigError where the cluster's GPU does not say how fast it is.
StepTime step_time(const Model& model, const StepSetup& setup, const Cluster& cluster);

}  // namespace shardplan
