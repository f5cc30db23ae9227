#include "shard/plan_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "planner/arena_plan.h"

namespace shardplan {
namespace {

std::size_t lease_count(const StepPlan& plan) {
  std::size_t count = plan.device.slots.size();
  for (const Array& array : plan.device.arrays) count += array.count;
  return count;
}

// A unit without elements has no slot: its buffers are nowhere, and of no length.
bool has_bytes(const StepPlan& plan, BufferRole role, std::uint64_t unit) {
  return slot_bytes(plan, role, run_index_of_unit(plan.layout, unit)) > Bytes{};
}

}  // namespace

PlanMemory::PlanMemory(const StepPlan& plan, Device& device, Communicator& world) : plan_(plan) {
  const std::size_t leases = lease_count(plan);
  arena_ =
      world.make_arena(device, {.tier = MemoryTier::device, .bytes = plan.device.bytes, .rank = 0, .leases = leases});
  arrays_.reserve(leases);
  held_.reserve(plan.device.slots.size());
  for (const Array& array : plan.device.arrays) {
    for (std::uint64_t i = 0; i < array.count; ++i) {
      arrays_.push_back(arena_->take((array.offset + i * array.stride).count(), array.bytes, name(array.role)));
    }
  }
}

ArenaPlace PlanMemory::resident(BufferRole role, std::uint64_t unit, std::size_t buffer) const {
  const auto range = resident_range(plan_, role, unit, buffer);
  SHARDPLAN_CHECK(range.has_value(), fmt::format("the plan has no {} for unit {}", name(role), unit));
  return {arena_.get(), range->offset.count()};
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
