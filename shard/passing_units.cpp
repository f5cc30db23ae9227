#include "shard/passing_units.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include "base/error.h"
#include "planner/arena_plan.h"

namespace shardplan {
namespace {

constexpr std::array kRoles{BufferRole::parameter, BufferRole::gradient, BufferRole::accumulator};

bool serves(UnitPart valid, UnitPart wanted) {
  return wanted == UnitPart::none || valid == UnitPart::all || valid == wanted;
}

}  // namespace

PassingUnits::PassingUnits(const StepPlan& plan, PlanMemory& memory, OffloadFile& file, Device& device,
                           MemoryClass memory_class, std::uint64_t shard)
    : plan_(plan),
      memory_(memory),
      file_(file),
      memory_class_(memory_class),
      shard_(shard),
      slots_(passing_slots(plan, memory_class)) {
  for (Slot& slot : slots_) {
    slot.last_use = device.make_event();
    slot.tickets.reserve(most_passing_transfers(plan));
  }
  // The slots are zero.
  const std::uint64_t units = units_in_file(plan, memory_class);
  for (std::uint64_t unit = 0; unit < units; ++unit) {
    Slot& slot = slot_of(unit);
    bring_to_rest(slot);
    slot.unit = unit;
    slot.changed = UnitPart::all;
    slot.step = 0;
    write(slot);
  }
  settle();
  forget();
}

// What is under way has to end before the memory is gone, and nobody is left to hear of its errors.
PassingUnits::~PassingUnits() {
  for (Slot& slot : slots_) {
    try {
      wait(slot);
    } catch (const std::exception&) {
      continue;
    }
  }
}

bool PassingUnits::moves(UnitPart part, BufferRole role, const BufferPlan& buffer) const {
  const bool has_accumulator =
      plan_.setup.accumulation > 1 && buffer.policy.gradient_accumulator != buffer.policy.gradient;
  switch (part) {
    case UnitPart::none:
      return false;
    case UnitPart::all:
      return true;
    case UnitPart::trainable:
      return buffer.trainable;
    case UnitPart::in_place:
      return buffer.trainable && !buffer.policy.master;
    case UnitPart::sums:
      return role == (has_accumulator ? BufferRole::accumulator : BufferRole::gradient);
    case UnitPart::gradients:
      return role == BufferRole::gradient;
  }
  return false;
}

// Of gradients that are reduced to this rank's shard, and lie in an array of all shards' length, only that is of use.
Range PassingUnits::moved_range(UnitPart part, BufferRole role, const BufferLayout& layout) const {
  const bool whole_array = role == BufferRole::gradient && !gradients_sharded(plan_);
  const bool reduced = part == UnitPart::gradients || resolved_cadence(plan_.setup) == Cadence::micro_batch;
  if (part != UnitPart::all && whole_array && reduced && optimizer_states_sharded(plan_)) {
    return shard_range(layout, shard_);
  }
  return {0, UINT64_MAX};
}

void PassingUnits::submit(Slot& slot, Direction direction, UnitPart part, std::optional<std::uint64_t> step) {
  const std::size_t run = run_index_of_unit(plan_.layout, slot.unit);
  for (const BufferRole role : kRoles) {
    if (class_of(role) != memory_class_) continue;
    for (std::size_t b = 0; b < plan_.buffers[run].size(); ++b) {
      const BufferLayout& layout = plan_.layout.runs[run].unit.buffers[b];
      const auto length = array_length(plan_, role, layout, plan_.buffers[run][b]);
      if (!length || !moves(part, role, plan_.buffers[run][b])) continue;
      const auto home = resident_place(plan_, role, slot.unit, b);
      std::byte* const memory = memory_.data(memory_.resident(role, slot.unit, b));
      const Range moved = moved_range(part, role, layout);
      // What no update changes is of the step that wrote it first, or of the last load's.
      const bool own_step = !step || !plan_.buffers[run][b].trainable;
      for (std::uint64_t piece = 0; piece < pieces_in(plan_, length->elements); ++piece) {
        const Range range = piece_range(plan_, length->elements, piece);
        if (intersect(range, moved).empty()) continue;
        const std::uint64_t offset = bytes_for(length->dtype, range.begin).count();
        const Bytes bytes = round_up(bytes_for(length->dtype, range.size()), kFilePage);
        const Block block{.index = home->first_block + piece, .offset = home->range.offset.count() + offset};
        slot.tickets.push_back(file_.submit(direction, block, {memory + offset, bytes.count()},
                                            own_step ? file_.step_of(block.index) : *step));
      }
    }
  }
}

void PassingUnits::wait(Slot& slot) {
  std::exception_ptr first;
  for (const Ticket ticket : slot.tickets) {
    try {
      file_.wait(ticket);
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  slot.tickets.clear();
  if (first) std::rethrow_exception(first);
}

void PassingUnits::wait_for_stream(Slot& slot) {
  if (slot.on_stream) slot.last_use->wait();
  slot.on_stream = false;
}

void PassingUnits::write(Slot& slot) {
  wait_for_stream(slot);
  submit(slot, Direction::write, slot.changed, slot.step);
  slot.state = SlotState::writing;
}

void PassingUnits::wait_for_write(Slot& slot) {
  slot.state = SlotState::unwritten;  // until it is
  wait(slot);
  slot.state = SlotState::held;
}

void PassingUnits::write_what_is_ready() {
  for (Slot& slot : slots_) {
    if (slot.state != SlotState::changed || (slot.on_stream && !slot.last_use->reached())) continue;
    slot.on_stream = false;
    write(slot);
  }
}

void PassingUnits::bring_to_rest(Slot& slot) {
  SHARDPLAN_CHECK(slot.state != SlotState::taken, fmt::format("the slot of unit {} is in use", slot.unit));
  if (slot.state == SlotState::reading) {
    slot.state = SlotState::empty;
    try {
      wait(slot);
    } catch (const IoError&) {
      return;  // nobody has asked for it
    }
  }
  if (slot.state == SlotState::changed || slot.state == SlotState::unwritten) write(slot);
  if (slot.state == SlotState::writing) wait_for_write(slot);
  wait_for_stream(slot);
}

void PassingUnits::begin_read(Slot& slot, std::uint64_t unit, UnitPart read, std::optional<std::uint64_t> step) {
  bring_to_rest(slot);
  slot.state = SlotState::empty;
  slot.unit = unit;
  slot.valid = read;
  submit(slot, Direction::read, read, step);
  slot.state = SlotState::reading;
}

void PassingUnits::take(std::uint64_t unit, UnitPart read, std::optional<std::uint64_t> step) {
  Slot& slot = slot_of(unit);
  const bool here = slot.unit == unit && slot.state != SlotState::empty;
  if (here && slot.state == SlotState::taken) return;
  write_what_is_ready();
  if (here && slot.state != SlotState::reading) bring_to_rest(slot);
  if (!here || !serves(slot.valid, read)) begin_read(slot, unit, read, step);
  if (slot.state == SlotState::reading) {
    slot.state = SlotState::empty;  // unless it comes
    wait(slot);
  }
  slot.state = SlotState::taken;
}

void PassingUnits::read_ahead(std::uint64_t unit, UnitPart read, std::optional<std::uint64_t> step) {
  Slot& slot = slot_of(unit);
  if (slot.state == SlotState::taken || (slot.state != SlotState::empty && slot.unit == unit)) return;
  begin_read(slot, unit, read, step);
}

bool PassingUnits::whole(std::uint64_t unit) const {
  const Slot& slot = slots_[unit % slots_.size()];
  return slot.state == SlotState::taken && slot.unit == unit && slot.valid == UnitPart::all;
}

void PassingUnits::used(std::uint64_t unit, Stream& stream) {
  Slot& slot = slot_of(unit);
  SHARDPLAN_CHECK(slot.state == SlotState::taken && slot.unit == unit, "a unit is given back that was not taken");
  stream.record(*slot.last_use);
  slot.on_stream = true;
  slot.state = SlotState::held;
}

void PassingUnits::put(std::uint64_t unit, UnitPart changed, std::uint64_t step, Stream& stream) {
  used(unit, stream);
  Slot& slot = slot_of(unit);
  slot.changed = changed;
  slot.step = step;
  if (slot.valid != UnitPart::all) slot.valid = changed;
  slot.state = SlotState::changed;
  write_what_is_ready();
}

void PassingUnits::retry() {
  for (Slot& slot : slots_) {
    if (slot.state == SlotState::unwritten) write(slot);
  }
}

void PassingUnits::settle() {
  std::exception_ptr first;
  for (Slot& slot : slots_) {
    try {
      if (slot.state == SlotState::changed) write(slot);
      if (slot.state == SlotState::writing) wait_for_write(slot);
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  if (first) std::rethrow_exception(first);
}

void PassingUnits::forget() {
  for (Slot& slot : slots_) {
    slot.state = SlotState::empty;
    try {
      wait(slot);
    } catch (const std::exception&) {
      continue;
    }
  }
  looked_at_.reset();
  look_changed_ = false;
}

std::byte* PassingUnits::at(BufferRole role, std::uint64_t unit, std::size_t buffer, bool write) {
  if (looked_at_ != unit) {
    close();
    take(unit, UnitPart::all, std::nullopt);
    looked_at_ = unit;
  }
  look_changed_ = look_changed_ || write;
  return memory_.data(memory_.resident(role, unit, buffer));
}

void PassingUnits::close() {
  if (!looked_at_) return;
  Slot& slot = slot_of(*std::exchange(looked_at_, std::nullopt));
  slot.state = SlotState::held;
  if (!std::exchange(look_changed_, false)) return;
  slot.changed = UnitPart::all;
  slot.step.reset();
  try {
    write(slot);
    wait_for_write(slot);
  } catch (...) {
    slot.state = SlotState::empty;
    throw;
  }
}

}  // namespace shardplan
