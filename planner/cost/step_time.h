// The time of a training step in closed form, by a simple rule of overlap: fast enough for a search through set-ups. The
// simulator (tools/simulate) walks the step plan instead, for the data axis alone.
//
// docs/cost_model.md, 'The time of a step', has the formulas with their sources.
#pragma once

#include <array>
#include <cstdint>
#include <map>

#include "planner/cost/cluster.h"
#include "planner/cost/compute.h"
#include "planner/families/model.h"
#include "planner/offload.h"
#include "planner/parallelism.h"
#include "planner/policy.h"

namespace shardplan {

struct StepSetup {
  std::uint64_t ranks = 8;  // on the data axis, those of the context axis among them
  // Groups of ranks / replicas ranks that shard; gradients are summed over the replicas of a shard besides (stages 1 to 3).
  std::uint64_t replicas = 1;
  int stage = 1;
  std::uint64_t micro_batches = 1;
  bool reduces_each = false;  // gradients in each micro-batch (cadence micro_batch): stages 2 and 3 do so anyway
  // As engine shardplan does it: gradients of micro-batches are added up by a kernel of their own, and a step ends when updated
  // parameters have been gathered (stages 1 and 2). Else the products that make gradients add them up (work.accumulates), and
  // gathers hide behind the next forward (Megatron-LM, --overlap-param-gather).
  bool by_shardplan = false;
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
  bool gathers_logits = false;  // each tensor rank has the loss of all words
  std::uint64_t stages = 1;
  std::uint64_t virtual_stages = 1;
  PipelineSchedule schedule = PipelineSchedule::one_f_one_b;

  Offload offload{};  // reached over the GPU's link to its host, each way at the same time; a file by its disk besides
};

// Seconds. The parts add up to the whole.
struct StepTime {
  double computing = 0;
  double communicating = 0;  // exposed: nothing is computed meanwhile
  double bubble = 0;         // of the pipeline
  double updating = 0;

  double seconds() const { return computing + communicating + bubble + updating; }
  StepTime& operator+=(const StepTime& other);
};

// Times of many set-ups of one model on one cluster: what they share is computed once. They differ in anything but policy, what of
// `work` follows from it, and the load of experts; its rows follow from its sequence. A model without anything that is trained (a reference, an encoder) has
// forwards alone. The model and the cluster are referred to, not copied.
class StepTimes {
 public:
  StepTimes(const Model& model, const Cluster& cluster);

  // Throws ConfigError where the cluster's GPU does not say how fast it is.
  StepTime of(const StepSetup& setup);

 private:
  struct Run {
    std::uint64_t count = 0;
    bool numbered = false;
    std::uint64_t elements = 0;  // of one unit, those of experts not among them
    std::uint64_t expert_elements = 0;
    std::uint64_t trainable = 0;  // both together
  };
  struct Traffic {
    double gather = 0;   // of one pass over all units
    double reduce = 0;   // of all units' gradients once
    double largest = 0;  // unit's collective: what nothing hides
  };
  struct Parts {
    PassSeconds blocks;
    PassSeconds before;
    PassSeconds behind;
  };
  struct Passing;
  using Key = std::array<std::uint64_t, 6>;

  const Parts& parts_of(const Work& work);
  PassSeconds slowest_stage(const StepSetup& setup);
  const Traffic& traffic_of(const StepSetup& setup);
  bool trains() const { return trainable_ > 0; }
  double walks() const { return trains() ? 2 : 1; }  // over the units, by each micro-batch
  double exchange_seconds(const StepSetup& setup);
  double tensor_seconds(const StepSetup& setup) const;
  double logits_seconds(const StepSetup& setup) const;
  double passing_seconds(const StepSetup& setup) const;
  // Of a rank: what it updates, or with `held` all of its parameters.
  double shard_elements(const StepSetup& setup, bool held, int sharded_from) const;
  double update_seconds_of(const StepSetup& setup) const;
  Passing passing_of(const StepSetup& setup);

  const Model& model_;
  const Cluster& cluster_;
  std::vector<Run> runs_;
  double blocks_ = 0;
  std::uint64_t elements_ = 0;
  std::uint64_t trainable_ = 0;
  std::map<std::uint64_t, const RowsOfModules*> rows_;  // by sequence
  std::map<Key, Parts> parts_;
  std::map<Key, Traffic> traffic_;
  std::map<Key, double> exchanges_;
};

// The same of one set-up.
StepTime step_time(const Model& model, const StepSetup& setup, const Cluster& cluster);

}  // namespace shardplan
