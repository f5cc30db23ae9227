#include "shard/offloaded_states.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "base/error.h"

namespace shardplan {
OffloadedStates::OffloadedStates(const StepPlan& plan, PlanMemory& memory, OffloadFile& file)
    : plan_(plan), file_(file), ring_(memory.host_buffer(BufferRole::ring)), slots_(plan.blocks.ring_slots) {
  first_turn_.reserve(plan.offloaded.optimizer + 1);
  std::uint64_t turns = 0;
  for (std::uint64_t unit = 0; unit < plan.offloaded.optimizer; ++unit) {
    first_turn_.push_back(turns);
    const std::size_t buffers = run_of_unit(plan.layout, unit).unit.buffers.size();
    for (std::size_t b = 0; b < buffers; ++b) {
      turns += blocks_of(unit, b);
    }
  }
  first_turn_.push_back(turns);
  for (std::uint64_t turn = 0; turn < turns; ++turn) {
    Slot& slot = slot_of(turn);
    if (slot.state == SlotState::writing) wait_for_write(slot);
    slot.place = place_of(turn);
    submit(slot, Direction::write, 0);
    slot.state = SlotState::writing;
  }
  settle();
}

// What is under way has to end before the memory is gone, and nobody is left to hear of its errors.
OffloadedStates::~OffloadedStates() {
  for (Slot& slot : slots_) {
    try {
      wait(slot);
    } catch (const std::exception&) {
      continue;
    }
  }
}

std::uint64_t OffloadedStates::blocks_of(std::uint64_t unit, std::size_t buffer) const {
  const ByteRange last = role_in_ring_slot(plan_, BufferRole::ema, unit, buffer);
  return last.offset + last.bytes > Bytes{} ? blocks_in(plan_, state_elements(plan_, unit, buffer)) : 0;
}

std::uint64_t OffloadedStates::turn_of(const BlockPlace& place) const {
  std::uint64_t turn = first_turn_[place.unit] + place.block;
  for (std::size_t b = 0; b < place.buffer; ++b) turn += blocks_of(place.unit, b);
  return turn;
}

BlockPlace OffloadedStates::place_of(std::uint64_t turn) const {
  const auto after = std::upper_bound(first_turn_.begin(), first_turn_.end(), turn);
  BlockPlace place{.unit = static_cast<std::uint64_t>(after - first_turn_.begin()) - 1};
  place.block = turn - first_turn_[place.unit];
  for (std::uint64_t blocks = 0; place.block >= (blocks = blocks_of(place.unit, place.buffer)); ++place.buffer) {
    place.block -= blocks;
  }
  return place;
}

std::byte* OffloadedStates::slot_bytes(const Slot& slot) const {
  return ring_.data() + (static_cast<std::uint64_t>(&slot - slots_.data()) * plan_.blocks.slot).count();
}

// One transfer for each state, of whole pages.
void OffloadedStates::submit(Slot& slot, Direction direction, std::uint64_t step) {
  const BlockPlace& place = slot.place;
  const Range elements = block_range(plan_, state_elements(plan_, place.unit, place.buffer), place.block);
  for (std::size_t i = 0; i < kStateRoles.size(); ++i) {
    const auto home = resident_place(plan_, kStateRoles[i], place.unit, place.buffer);
    if (!home || home->range.bytes == Bytes{}) continue;
    const std::uint64_t width =
        home->range.bytes.count() / state_elements(plan_, place.unit, place.buffer);  // bytes of an element
    const Bytes bytes = round_up(Bytes{elements.size() * width}, kFilePage);
    const ByteRange part = role_in_ring_slot(plan_, kStateRoles[i], place.unit, place.buffer);
    const Block block{.index = home->first_block + place.block,
                      .offset = home->range.offset.count() + elements.begin * width};
    slot.tickets[i] = file_.submit(direction, block, {slot_bytes(slot) + part.offset.count(), bytes.count()}, step);
  }
}

void OffloadedStates::wait(Slot& slot) {
  std::exception_ptr first;
  for (Ticket& ticket : slot.tickets) {
    if (ticket == 0) continue;
    try {
      file_.wait(std::exchange(ticket, 0));
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  if (first) std::rethrow_exception(first);
}

void OffloadedStates::wait_for_write(Slot& slot) {
  slot.state = SlotState::unwritten;  // until it is
  wait(slot);
  slot.state = SlotState::empty;
}

void OffloadedStates::read_ahead(std::uint64_t turn, std::uint64_t step) {
  const std::uint64_t end = std::min(turn + std::max<std::uint64_t>(slots_.size(), 2) / 2, first_turn_.back() - 1);
  for (std::uint64_t next = turn + 1; next <= end; ++next) {
    Slot& slot = slot_of(next);
    if (slot.state == SlotState::writing) wait_for_write(slot);
    if (slot.state != SlotState::empty) continue;
    slot.place = place_of(next);
    slot.step = step;
    submit(slot, Direction::read, step - 1);
    slot.state = SlotState::reading;
  }
}

void OffloadedStates::take(const BlockPlace& place, std::uint64_t step) {
  const std::uint64_t turn = turn_of(place);
  Slot& slot = slot_of(turn);
  if (slot.state == SlotState::taken && slot.place == place) return;
  if (slot.state == SlotState::writing) wait_for_write(slot);
  if (slot.state == SlotState::empty) {
    slot.place = place;
    slot.step = step;
    submit(slot, Direction::read, step - 1);
    slot.state = SlotState::reading;
  }
  SHARDPLAN_CHECK(slot.state == SlotState::reading && slot.place == place && slot.step == step,
                  fmt::format("block {} of unit {} is taken out of turn", place.block, place.unit));
  // Begun before this one is waited for, so that the disk never is.
  read_ahead(turn, step);
  slot.state = SlotState::empty;  // unless it comes
  wait(slot);
  slot.state = SlotState::taken;
}

void OffloadedStates::put(const BlockPlace& place, std::uint64_t step) {
  Slot& slot = slot_of(turn_of(place));
  SHARDPLAN_CHECK(slot.state == SlotState::taken && slot.place == place, "a block is put that was not taken");
  submit(slot, Direction::write, step);
  slot.state = SlotState::writing;
}

std::byte* OffloadedStates::taken(BufferRole role, const BlockPlace& place) const {
  const Slot& slot = slots_[turn_of(place) % slots_.size()];
  return slot_bytes(slot) + role_in_ring_slot(plan_, role, place.unit, place.buffer).offset.count();
}

void OffloadedStates::retry() {
  for (Slot& slot : slots_) {
    if (slot.state != SlotState::unwritten) continue;
    submit(slot, Direction::write, slot.step);
    slot.state = SlotState::writing;
  }
}

void OffloadedStates::settle() {
  std::exception_ptr first;
  for (Slot& slot : slots_) {
    try {
      if (slot.state == SlotState::writing) wait_for_write(slot);
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  if (first) std::rethrow_exception(first);
}

std::byte* OffloadedStates::at(BufferRole role, std::uint64_t unit, std::size_t buffer, std::uint64_t element,
                               Access access) {
  const std::uint64_t size = plan_.blocks.block_elements;
  const BlockPlace place{unit, buffer, element / size};
  Slot& slot = slots_.front();
  if (slot.state != SlotState::taken || slot.place != place) {
    close();
    slot.place = place;
    const auto home = resident_place(plan_, role, unit, buffer);
    slot.step = file_.step_of(home->first_block + place.block);
    submit(slot, Direction::read, slot.step);
    wait(slot);
    slot.state = SlotState::taken;
  }
  changed_ = changed_ || access == Access::write;
  const auto home = resident_place(plan_, role, unit, buffer);
  const std::uint64_t width = home->range.bytes.count() / state_elements(plan_, unit, buffer);
  const ByteRange part = role_in_ring_slot(plan_, role, unit, buffer);
  return slot_bytes(slot) + part.offset.count() + element % size * width;
}

std::uint64_t OffloadedStates::together(std::uint64_t unit, std::size_t buffer, std::uint64_t element) const {
  const std::uint64_t elements = state_elements(plan_, unit, buffer);
  return block_range(plan_, elements, element / plan_.blocks.block_elements).end - element;
}

void OffloadedStates::close() {
  if (slots_.empty()) return;
  Slot& slot = slots_.front();
  for (const Slot& other : slots_) {
    SHARDPLAN_CHECK(other.state == SlotState::empty || (&other == &slot && other.state == SlotState::taken),
                    "a block is looked at in the middle of an update");
  }
  if (slot.state == SlotState::empty) return;
  if (std::exchange(changed_, false)) {
    submit(slot, Direction::write, slot.step);
    slot.state = SlotState::empty;
    wait(slot);
  }
  slot.state = SlotState::empty;
}

}  // namespace shardplan
