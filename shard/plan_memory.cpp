#include "shard/plan_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "planner/arena_plan.h"
#include "planner/passage.h"

namespace shardplan {
namespace {

std::size_t lease_count(const ArenaPlan& plan) {
  std::size_t count = plan.slots.size();
  for (const Array& array : plan.arrays) count += array.count;
  return count;
}

// A unit without elements has no slot: its buffers are nowhere, and of no length.
bool has_bytes(const StepPlan& plan, BufferRole role, std::uint64_t unit) {
  return slot_bytes(plan, role, run_index_of_unit(plan.layout, unit)) > Bytes{};
}

}  // namespace

PlanMemory::PlanMemory(const StepPlan& plan, Device& device, Communicator& world) : plan_(plan) {
  const auto make = [&](MemoryTier tier, const ArenaPlan& planned) {
    return world.make_arena(device, {.tier = tier, .bytes = planned.bytes, .rank = 0, .leases = lease_count(planned)});
  };
  arena_ = make(MemoryTier::device, plan.device);
  if (plan.pinned.bytes > Bytes{}) pinned_ = make(MemoryTier::pinned_host, plan.pinned);
  arrays_.reserve(lease_count(plan.device) + lease_count(plan.pinned));
  held_.reserve(plan.device.slots.size());
  take_arrays(*arena_, plan.device);
  if (pinned_) take_arrays(*pinned_, plan.pinned);
}

void PlanMemory::take_arrays(SymmetricArena& arena, const ArenaPlan& planned) {
  for (const Array& array : planned.arrays) {
    for (std::uint64_t i = 0; i < array.count; ++i) {
      arrays_.push_back(arena.take((array.offset + i * array.stride).count(), array.bytes, name(array.role)));
    }
  }
}

ArenaPlace PlanMemory::resident(BufferRole role, std::uint64_t unit, std::size_t buffer) const {
  const auto place = resident_place(plan_, role, unit, buffer);
  if (place && place->tier == Tier::file && class_of(role) != MemoryClass::optimizer_states) {
    return {pinned_.get(), passing_place(plan_, role, unit, buffer).offset.count()};
  }
  SHARDPLAN_CHECK(place && place->tier != Tier::file,
                  fmt::format("the plan has no {} for unit {} in memory", name(role), unit));
  return {place->tier == Tier::device ? arena_.get() : pinned_.get(), place->range.offset.count()};
}

std::span<std::byte> PlanMemory::host_buffer(BufferRole role) const {
  const auto place = resident_place(plan_, role, 0, 0);
  if (!place) return {};
  SHARDPLAN_CHECK(place->tier == Tier::pinned, fmt::format("the {} is not in host memory", name(role)));
  return {pinned_->data() + place->range.offset.count(), place->range.bytes.count()};
}

ArenaPlace PlanMemory::control() const {
  return resident(BufferRole::control, 0, 0);
}

void PlanMemory::add_staging(ReduceScatter& call) const {
  const auto range = resident_range(plan_, BufferRole::staging, 0, 0);
  if (!range) return;
  call.staging = {arena_.get(), range->offset.count()};
  call.staging_bytes = range->bytes.count();
}

ArenaPlace PlanMemory::slot(BufferRole role, std::uint64_t unit, std::size_t buffer) const {
  if (!has_bytes(plan_, role, unit)) return {arena_.get(), 0};
  for (const Held& held : held_) {
    if (held.role != role || held.unit != unit) continue;
    return {arena_.get(), held.lease.offset() + buffer_in_slot(plan_, role, unit, buffer).offset.count()};
  }
  SHARDPLAN_CHECK(false, fmt::format("the {} of unit {} is not handed out", name(role), unit));
  return {};
}

std::span<std::byte> PlanMemory::acquire(BufferRole role, std::uint64_t step, std::uint64_t unit, std::uint64_t end) {
  SHARDPLAN_CHECK(!holds(role, unit), fmt::format("the {} of unit {} is handed out already", name(role), unit));
  if (!has_bytes(plan_, role, unit)) return {};
  const auto range = slot_range(plan_, role, step, unit);
  SHARDPLAN_CHECK(range.has_value(), fmt::format("the plan has no {} for unit {} at step {}", name(role), unit, step));
  held_.push_back({role, unit, end, arena_->take(range->offset.count(), range->bytes, name(role))});
  return held_.back().lease.as<std::byte>();
}

bool PlanMemory::holds(BufferRole role, std::uint64_t unit) const {
  return std::any_of(held_.begin(), held_.end(),
                     [&](const Held& held) { return held.role == role && held.unit == unit; });
}

void PlanMemory::release(BufferRole role, std::uint64_t unit) {
  std::erase_if(held_, [&](const Held& held) { return held.role == role && held.unit == unit; });
}

void PlanMemory::release_ended(std::uint64_t moment) {
  std::erase_if(held_, [&](const Held& held) { return held.end <= moment; });
}

void PlanMemory::release_all() {
  held_.clear();
}

}  // namespace shardplan
