#include "planner/passage.h"

#include <algorithm>
#include <array>
#include <span>

#include "base/error.h"
#include "planner/arena_plan.h"

namespace shardplan {
namespace {

// So many elements of 4 bits, the shortest dtype, are a page.
constexpr std::uint64_t kPieceGranule = 8192;
static_assert(kPieceGranule / 2 == kFilePage.count());

constexpr std::array kClasses{MemoryClass::parameters, MemoryClass::gradients};

std::span<const BufferRole> roles_of(MemoryClass memory_class) {
  static constexpr std::array kParameters{BufferRole::parameter};
  static constexpr std::array kGradients{BufferRole::gradient, BufferRole::accumulator};
  if (memory_class == MemoryClass::parameters) return kParameters;
  return kGradients;
}

BufferRole slots_role(MemoryClass memory_class) {
  return memory_class == MemoryClass::parameters ? BufferRole::passing_parameters : BufferRole::passing_gradients;
}

// Calls visit(role, buffer, length) for what a unit of the run has of a class, in the order of a slot.
template <typename Visitor>
void for_each_array(const StepPlan& plan, MemoryClass memory_class, std::size_t run, Visitor&& visit) {
  const UnitLayout& unit = plan.layout.runs[run].unit;
  for (const BufferRole role : roles_of(memory_class)) {
    for (std::size_t b = 0; b < unit.buffers.size(); ++b) {
      const auto length = array_length(plan, role, unit.buffers[b], plan.buffers[run][b]);
      if (length) visit(role, b, *length);
    }
  }
}

Bytes pages_of(const ArrayLength& length) {
  return round_up(bytes_for(length.dtype, length.elements), kFilePage);
}

}  // namespace

std::uint64_t units_in_file(const StepPlan& plan, MemoryClass memory_class) {
  const bool parameters = memory_class == MemoryClass::parameters;
  const OffloadedClass& placed = parameters ? plan.setup.offload.parameters : plan.setup.offload.gradients;
  if (placed.tier != Tier::file) return 0;
  return parameters ? plan.offloaded.parameters : plan.offloaded.gradients;
}

bool in_file(const StepPlan& plan, MemoryClass memory_class, std::uint64_t unit) {
  return unit < units_in_file(plan, memory_class);
}

std::uint64_t passing_slots(const StepPlan& plan, MemoryClass memory_class) {
  return std::min(kPassingSlots, units_in_file(plan, memory_class));
}

Bytes passing_slot_bytes(const StepPlan& plan, MemoryClass memory_class, std::uint64_t slot) {
  const std::uint64_t slots = passing_slots(plan, memory_class);
  const std::uint64_t units = units_in_file(plan, memory_class);
  Bytes most;
  for (std::size_t run = 0; run < plan.layout.runs.size(); ++run) {
    const LayoutRun& layout_run = plan.layout.runs[run];
    // The run's first unit that uses the slot.
    const std::uint64_t first = layout_run.first_unit + (slot + slots - layout_run.first_unit % slots) % slots;
    if (first >= std::min(units, layout_run.first_unit + layout_run.count)) continue;
    Bytes bytes;
    for_each_array(plan, memory_class, run,
                   [&](BufferRole, std::size_t, const ArrayLength& length) { bytes += pages_of(length); });
    most = std::max(most, bytes);
  }
  return most;
}

ByteRange passing_place(const StepPlan& plan, BufferRole role, std::uint64_t unit, std::size_t buffer) {
  const MemoryClass memory_class = class_of(role);
  const std::uint64_t slot = unit % passing_slots(plan, memory_class);
  const auto slots = std::find_if(plan.pinned.arrays.begin(), plan.pinned.arrays.end(), [&](const Array& array) {
    return array.role == slots_role(memory_class) && array.buffer == slot;
  });
  SHARDPLAN_CHECK(in_file(plan, memory_class, unit) && slots != plan.pinned.arrays.end(),
                  "a unit that is not in the file does not pass");
  ByteRange place{.offset = slots->offset, .bytes = {}};
  bool found = false;
  for_each_array(plan, memory_class, run_index_of_unit(plan.layout, unit),
                 [&](BufferRole each, std::size_t b, const ArrayLength& length) {
                   if (found) return;
                   found = each == role && b == buffer;
                   if (found) place.bytes = bytes_for(length.dtype, length.elements);
                   if (!found) place.offset += pages_of(length);
                 });
  SHARDPLAN_CHECK(found, "a unit passes with the arrays that it has");
  return place;
}

Bytes pinned_without_passing_slots(const StepPlan& plan) {
  Bytes bytes = plan.pinned.bytes;
  for (const Array& array : plan.pinned.arrays) {
    if (array.role == BufferRole::passing_parameters || array.role == BufferRole::passing_gradients)
      bytes -= array.bytes;
  }
  return bytes;
}

std::uint64_t piece_elements(const StepPlan& plan, std::uint64_t elements) {
  const std::uint64_t least = std::max(plan.blocks.block_elements, divide_up(elements, kMostPieces));
  return divide_up(least, kPieceGranule) * kPieceGranule;
}

std::uint64_t pieces_in(const StepPlan& plan, std::uint64_t elements) {
  return divide_up(elements, piece_elements(plan, elements));
}

Range piece_range(const StepPlan& plan, std::uint64_t elements, std::uint64_t piece) {
  const std::uint64_t begin = piece * piece_elements(plan, elements);
  return {begin, std::min(elements, begin + piece_elements(plan, elements))};
}

std::uint64_t file_blocks(const StepPlan& plan, BufferRole role, std::uint64_t elements) {
  return class_of(role) == MemoryClass::optimizer_states ? blocks_in(plan, elements) : pieces_in(plan, elements);
}

std::uint64_t most_passing_transfers(const StepPlan& plan) {
  std::uint64_t all = 0;
  for (const MemoryClass memory_class : kClasses) {
    std::uint64_t most = 0;
    for (std::size_t run = 0; run < plan.layout.runs.size(); ++run) {
      if (!in_file(plan, memory_class, plan.layout.runs[run].first_unit)) continue;
      std::uint64_t pieces = 0;
      for_each_array(plan, memory_class, run, [&](BufferRole, std::size_t, const ArrayLength& length) {
        pieces += pieces_in(plan, length.elements);
      });
      most = std::max(most, pieces);
    }
    all += passing_slots(plan, memory_class) * most;
  }
  return all;
}

}  // namespace shardplan
