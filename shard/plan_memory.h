// A rank's arenas, as the step plan lays them out: resident arrays are handed out once, slots when the plan's
// operations say so. Decides nothing: every offset is asked of the plan.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "planner/step_plan.h"
#include "runtime/communicator.h"

namespace shardplan {

class PlanMemory {
 public:
  // Collective over `world`: makes the arenas, of the device and, where something is offloaded, of pinned host memory, and
  // hands out every array. Throws OutOfMemory.
  PlanMemory(const StepPlan& plan, Device& device, Communicator& world);

  // Where a buffer's first element is, on the device or in pinned host memory, which kernels and collectives reach alike. Of
  // parameters and gradients in a file: where it is while the unit is in its slot of pinned memory. A buffer that the plan
  // does not have there, or a slot that is not handed out, is a CheckFailure.
  ArenaPlace resident(BufferRole role, std::uint64_t unit, std::size_t buffer) const;
  ArenaPlace slot(BufferRole role, std::uint64_t unit, std::size_t buffer) const;
  ArenaPlace control() const;
  // One that belongs to no unit, in pinned host memory; empty where the plan has none.
  std::span<std::byte> host_buffer(BufferRole role) const;
  // Names the plan's staging in a reduction; leaves it without, where the plan has none.
  void add_staging(ReduceScatter& call) const;
  std::byte* data(const ArenaPlace& place) const { return place.arena->data() + place.offset; }

  // Hands out the slot for `unit`'s buffers at `step`; it is given back by release, or by release_ended once `end` has
  // come. Returns its bytes.
  std::span<std::byte> acquire(BufferRole role, std::uint64_t step, std::uint64_t unit, std::uint64_t end);
  bool holds(BufferRole role, std::uint64_t unit) const;
  void release(BufferRole role, std::uint64_t unit);
  void release_ended(std::uint64_t moment);
  void release_all();

 private:
  struct Held {
    BufferRole role;
    std::uint64_t unit;
    std::uint64_t end;
    Lease lease;
  };

  void take_arrays(SymmetricArena& arena, const ArenaPlan& planned);

  const StepPlan& plan_;
  std::unique_ptr<SymmetricArena> arena_;
  std::unique_ptr<SymmetricArena> pinned_;  // where the plan has one
  std::vector<Lease> arrays_;
  std::vector<Held> held_;
};

}  // namespace shardplan
