#include "tests/support/leases.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <vector>

namespace shardplan::test_support {
namespace {

bool on_communication_stream(const Operation& operation) {
  return operation.kind == OperationKind::gather || operation.kind == OperationKind::reduce ||
         operation.kind == OperationKind::agree;
}

// For each operation and each of the two streams: how many operations (by index + 1) are known to have finished when it
// runs. Its own stream's earlier ones have, and what it waits for, and what those waited for.
using Clock = std::array<std::size_t, 2>;

std::vector<Clock> clocks_of(const std::vector<Operation>& operations) {
  std::vector<Clock> clocks;
  Clock latest[2] = {};
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const std::size_t stream = on_communication_stream(operations[i]) ? 1 : 0;
    Clock clock = latest[stream];
    for (const auto& dependency : operations[i].waits_for) {
      if (!dependency) continue;
      const auto other = index_of_dependency(operations, i, *dependency);
      if (!other) continue;
      for (std::size_t s = 0; s < 2; ++s) clock[s] = std::max(clock[s], clocks[*other][s]);
    }
    clock[stream] = i + 1;
    latest[stream] = clock;
    clocks.push_back(clock);
  }
  return clocks;
}

std::string text(const Lease& lease) {
  return fmt::format("{} of unit {} for step {}, moments [{}, {})", name(lease.role), lease.unit, lease.step,
                     lease.begin, lease.end);
}

// The bytes of all flat buffers in a lease's slot.
Bytes content(const StepPlan& plan, const Lease& lease) {
  Bytes total;
  for (std::size_t i = 0; i < run_of_unit(plan.layout, lease.unit).unit.buffers.size(); ++i) {
    total += buffer_in_slot(plan, lease.role, lease.unit, i).bytes;
  }
  return total;
}

// The slot whose uses include the lease's: looked for one use after the other.
const Slot* slot_of(const StepPlan& plan, const Lease& lease) {
  for (const Slot& slot : plan.device.slots) {
    std::uint64_t unit = slot.first_unit;
    std::uint64_t step = slot.first_step;
    for (std::uint64_t use = 0; use < slot.uses; ++use) {
      if (slot.role == lease.role && unit == lease.unit && step == lease.step) return &slot;
      unit += static_cast<std::uint64_t>(slot.unit_stride);  // two's complement: -1 counts down
      step += slot.step_stride;
    }
  }
  return nullptr;
}

std::string slot_problem(const StepPlan& plan, const Lease& lease, Bytes end_of_arrays) {
  const auto range = slot_range(plan, lease.role, lease.step, lease.unit);
  const Slot* slot = slot_of(plan, lease);
  if (slot == nullptr || !range) {
    if (slot != nullptr || range || content(plan, lease) > Bytes{}) return fmt::format("{} has no slot", text(lease));
    return "";
  }
  if (range->offset != slot->offset || range->bytes != slot->bytes) {
    return fmt::format("{} is not where its slot is", text(lease));
  }
  if (lease.begin < slot->begin || lease.end > slot->end) {
    return fmt::format("{} is not within its slot's [{}, {})", text(lease), slot->begin, slot->end);
  }
  if (range->offset < end_of_arrays || range->offset + range->bytes > plan.device.bytes - kArenaBaseShift) {
    return fmt::format("{} is outside the arena's slots", text(lease));
  }
  return "";
}

bool meet(const ByteRange& a, const ByteRange& b) {
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

bool in_order(const Walk& walk, const std::vector<Clock>& clocks, const Lease& first, const Lease& second) {
  for (const std::size_t a : first.accesses) {
    const std::size_t stream = on_communication_stream(walk.operations[a]) ? 1 : 0;
    for (const std::size_t b : second.accesses) {
      if (clocks[b][stream] < a + 1) return false;
    }
  }
  return true;
}

// What is wrong between two leases; `a` was handed out first.
std::string pair_problem(const Walk& walk, const std::vector<Clock>& clocks, const Lease& a, const Lease& b) {
  if (b.begin < a.end) return fmt::format("{} and {} overlap", text(a), text(b));
  if (!in_order(walk, clocks, a, b)) {
    return fmt::format("{} gets the bytes of {} with nothing to wait for", text(b), text(a));
  }
  return "";
}

}  // namespace

std::string lease_problem(const StepPlan& plan, const Walk& walk) {
  const std::vector<Clock> clocks = clocks_of(walk.operations);
  const Bytes end_of_arrays = furthest_array(plan);
  std::vector<ByteRange> ranges;
  for (const Lease& lease : walk.leases) {
    if (const std::string problem = slot_problem(plan, lease, end_of_arrays); !problem.empty()) return problem;
    ranges.push_back(slot_range(plan, lease.role, lease.step, lease.unit).value_or(ByteRange{}));
  }
  for (std::size_t i = 0; i < walk.leases.size(); ++i) {
    for (std::size_t j = 0; j < walk.leases.size(); ++j) {
      const bool first =
          walk.leases[i].begin < walk.leases[j].begin || (walk.leases[i].begin == walk.leases[j].begin && i < j);
      if (i == j || !first || !meet(ranges[i], ranges[j])) continue;
      const std::string problem = pair_problem(walk, clocks, walk.leases[i], walk.leases[j]);
      if (!problem.empty()) return problem;
    }
  }
  return "";
}

LivePeak lease_peak(const StepPlan& plan, const Walk& walk) {
  std::map<std::uint64_t, Bytes> taken;
  std::map<std::uint64_t, Bytes> given_back;
  for (const Lease& lease : walk.leases) {
    const auto range = slot_range(plan, lease.role, lease.step, lease.unit);
    if (!range) continue;
    taken[lease.begin] += range->bytes;
    given_back[lease.end] += range->bytes;
    taken[lease.end] += Bytes{};
  }
  LivePeak peak{plan.device.resident, 0};
  Bytes live = plan.device.resident;
  for (const auto& [moment, bytes] : taken) {
    live += bytes;
    if (given_back.contains(moment)) live -= given_back[moment];
    if (live > peak.bytes) peak = {live, moment};
  }
  return peak;
}

Bytes furthest_array(const StepPlan& plan) {
  Bytes furthest;
  for (const Array& array : plan.device.arrays) {
    if (array.count == 0 || array.bytes == Bytes{}) continue;
    furthest = std::max(furthest, array.offset + (array.count - 1) * array.stride + array.bytes);
  }
  return furthest;
}

Bytes furthest_lease(const StepPlan& plan, const Walk& walk) {
  Bytes furthest;
  for (const Lease& lease : walk.leases) {
    const auto range = slot_range(plan, lease.role, lease.step, lease.unit);
    if (range) furthest = std::max(furthest, range->offset + range->bytes);
  }
  return furthest;
}

}  // namespace shardplan::test_support
