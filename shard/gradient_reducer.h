// The way of a gradient (docs/numerics.md): contribution in the wire dtype -> fp32 sum in tree order -> times 1/(N A)
// -> added to the accumulator -> rounded once to the gradient dtype. Carries out the plan's accumulate, on the compute
// stream, and reduce, on the communication stream.
#pragma once

#include <cstdint>

#include "planner/step_plan.h"
#include "runtime/device.h"
#include "shard/operation_events.h"
#include "shard/options.h"
#include "shard/plan_memory.h"

namespace shardplan {

class GradientReducer {
 public:
  GradientReducer(const StepPlan& plan, PlanMemory& memory, const Communicators& communicators, const Kernels& kernels,
                  OperationEvents& events, std::uint64_t shard);

  // Where the client writes the contribution of a unit's flat buffer.
  ArenaPlace contribution(std::uint64_t unit, std::size_t buffer) const;
  // Hands the contribution slot out, if the unit has one, and zeroes all of the unit's contributions.
  void prepare(std::uint64_t unit);
  // Hands out what the reduction of a unit needs besides, before that unit's own backward.
  void prepare_reduction(std::uint64_t unit);

  // Which micro-batch of its step this is: the first stores into accumulators, later ones add; after the last one the
  // gradient is complete.
  struct MicroBatch {
    bool first = true;
    bool last = true;
  };
  void accumulate(std::uint64_t unit, MicroBatch micro_batch);
  void reduce(const Operation& operation, MicroBatch micro_batch);

  // This rank's shard of a unit's reduced gradient.
  ArenaPlace own_gradient(std::uint64_t unit, std::size_t buffer) const;

 private:
  struct Destination {
    ArenaPlace place;
    DType dtype = DType::f32;
    bool add = false;
    bool then_round = false;  // from the accumulator to the gradient
  };
  const BufferLayout& layout_of(std::uint64_t unit, std::size_t buffer) const;
  const BufferPlan& plan_of(std::uint64_t unit, std::size_t buffer) const;
  std::size_t buffers_of(std::uint64_t unit) const;
  bool adds_in_gradient(const BufferPlan& buffer) const;
  Destination destination(std::uint64_t unit, std::size_t buffer, MicroBatch micro_batch) const;
  void finish(std::uint64_t unit, std::size_t buffer, const Destination& destination);
  void reduce_in_group(std::uint64_t unit, std::size_t buffer, MicroBatch micro_batch);
  void reduce_among_replicas(std::uint64_t unit, std::size_t buffer, MicroBatch micro_batch);

  const StepPlan& plan_;
  PlanMemory& memory_;
  Communicators communicators_;
  const Kernels& kernels_;
  Stream& compute_;
  Stream& communication_;
  std::uint64_t shard_;
  float scale_;  // 1/(N A)
};

}  // namespace shardplan
