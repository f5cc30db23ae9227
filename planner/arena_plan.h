// The device arena of a step plan: arrays (resident), slots (for a part of the step), their offsets and the peak. And
// what the runtime needs to know of it beyond offsets.
#pragma once

#include "planner/schedule.h"
#include "planner/step_plan.h"

namespace shardplan {

// What one unit of a run costs in slots: its flat buffers follow each other, each aligned.
Bytes slot_bytes(const StepPlan& plan, BufferRole role, std::size_t run);

// Whether a rank's reduction of a run's units reads the contribution slot (it reads the resident gradient where
// micro-batches were added up there).
bool reduction_reads_slot(const StepPlan& plan, std::size_t run);

// The moment at which a gradient slot (contribution, partial) of the unit whose backward is `step` is free again.
std::uint64_t gradient_slot_end(const StepPlan& plan, BufferRole role, std::uint64_t step);

// The roles that have an array for every unit, and nothing for a buffer that has none of that role.
struct ArrayLength {
  DType dtype = DType::f32;
  std::uint64_t elements = 0;
};
std::optional<ArrayLength> array_length(const StepPlan& plan, BufferRole role, const BufferLayout& layout,
                                        const BufferPlan& buffer);
inline constexpr std::array kStateRoles{BufferRole::master, BufferRole::first_moment, BufferRole::second_moment,
                                        BufferRole::ema};

// How many units have each class elsewhere, from plan.setup and plan.layout.
OffloadedUnits offloaded_units(const StepPlan& plan);

// Fills the arenas, the file and the blocks from everything else in the plan.
void plan_arena(StepPlan& plan, const Schedule& schedule);

}  // namespace shardplan
