// Optimizer states in a rank's file: the blocks that the plan cut them into, the ring that they are updated in, and the
// transfers between the two.
//
// In an update, blocks take turns, in the order of the update program: while one is updated in its slot of the ring, the next
// ones are read and the ones before are written. A slot is handed on only when its block is safely in the file, so whatever
// fails, an updated block is in the ring or in the file; it is never read again and never updated twice, because it carries
// the number of its step. Outside of steps, one block at a time is looked at.
//
// Threads: those of the transfer queue read and write; the calls are the rank's own thread's.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "planner/arena_plan.h"
#include "planner/step_plan.h"
#include "shard/offload_file.h"
#include "shard/plan_memory.h"

namespace shardplan {

// Block `block` of every state of a unit's flat buffer.
struct BlockPlace {
  std::uint64_t unit = 0;
  std::size_t buffer = 0;
  std::uint64_t block = 0;
  bool operator==(const BlockPlace&) const = default;
};

class OffloadedStates {
 public:
  // Writes every state to `file`, which must outlive it: zero, and of step 0. Throws IoError.
  OffloadedStates(const StepPlan& plan, PlanMemory& memory, OffloadFile& file);
  ~OffloadedStates();
  OffloadedStates(const OffloadedStates&) = delete;
  OffloadedStates& operator=(const OffloadedStates&) = delete;

  bool has(std::uint64_t unit) const { return unit < plan_.offloaded.optimizer; }
  // Blocks of a unit's flat buffer: none where it has no state, as of plain SGD without a master.
  std::uint64_t blocks_of(std::uint64_t unit, std::size_t buffer) const;

  // In step `step`, in order of turns. take() waits until the block is in the ring, as step - 1 left it, and reads the next
  // ones meanwhile. put(), after its update, has it written. Both throw IoError, after which the same call may be repeated:
  // what take() gave stays as it is, partly updated or not, until put().
  void take(const BlockPlace& place, std::uint64_t step);
  void put(const BlockPlace& place, std::uint64_t step);
  // Where a state of the block that was taken is.
  std::byte* taken(BufferRole role, const BlockPlace& place) const;
  // Begins again what could not be written.
  void retry();
  // Waits until every block is in the file. Throws the first IoError; retry() and settle() then go on.
  void settle();

  // Outside of steps: the address of an element of an array, and how many from it on lie together there, until the next
  // call. `write`: they will be changed. close() puts the last block back.
  enum class Access : std::uint8_t { read, write };
  std::byte* at(BufferRole role, std::uint64_t unit, std::size_t buffer, std::uint64_t element, Access access);
  std::uint64_t together(std::uint64_t unit, std::size_t buffer, std::uint64_t element) const;
  void close();

 private:
  enum class SlotState : std::uint8_t { empty, reading, taken, unwritten, writing };
  struct Slot {
    SlotState state = SlotState::empty;
    BlockPlace place;
    std::uint64_t step = 0;                            // that it is being updated by
    std::array<Ticket, kStateRoles.size()> tickets{};  // 0: none
  };

  std::uint64_t turn_of(const BlockPlace& place) const;
  BlockPlace place_of(std::uint64_t turn) const;
  Slot& slot_of(std::uint64_t turn) { return slots_[turn % slots_.size()]; }
  std::byte* slot_bytes(const Slot& slot) const;
  void submit(Slot& slot, Direction direction, std::uint64_t step);
  // All tickets of the slot; throws the first error.
  void wait(Slot& slot);
  void wait_for_write(Slot& slot);
  void read_ahead(std::uint64_t turn, std::uint64_t step);

  const StepPlan& plan_;
  OffloadFile& file_;
  std::span<std::byte> ring_;
  std::vector<Slot> slots_;
  std::vector<std::uint64_t> first_turn_;  // of each unit, and the end
  bool changed_ = false;                   // the block that is looked at, in slot 0
};

}  // namespace shardplan
