// Units whose parameters, or gradients, are in a rank's file: the slots of pinned memory that they pass through, and the
// transfers between the two (planner/passage.h).
//
// A unit is taken into its slot, used there (a gather reads it, a reduction or an update writes into it), and is done with:
// used(), or put() where the file is to have what has changed. What the rank puts on a stream ends later than the call does on
// some devices: a slot is written to the file, and handed on to another unit, only when the stream has come so far.
//
// The unit stays in its slot until another one needs that, and is not read again while it does.
//
// Threads: those of the file's transfers read and write; the calls are the rank's own thread's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "planner/passage.h"
#include "runtime/device.h"
#include "shard/offload_file.h"
#include "shard/plan_memory.h"

namespace shardplan {

// Which of a unit's arrays are read or written.
enum class UnitPart : std::uint8_t {
  none,
  all,
  trainable,  // parameters that an update changes
  in_place,   // of those, the ones that it needs: no master says what they are
  sums,       // of earlier micro-batches: accumulators, or gradients that are their own
  gradients,  // complete ones
};

class PassingUnits {
 public:
  // Of one class: parameters or gradients. Writes every array to `file`: zero, and of step 0. Memory, file and device must
  // outlive it. `shard`: this rank's. Throws IoError.
  PassingUnits(const StepPlan& plan, PlanMemory& memory, OffloadFile& file, Device& device, MemoryClass memory_class,
               std::uint64_t shard);
  ~PassingUnits();
  PassingUnits(const PassingUnits&) = delete;
  PassingUnits& operator=(const PassingUnits&) = delete;

  bool has(std::uint64_t unit) const { return in_file(plan_, memory_class_, unit); }

  // Until used() or put() the unit is in its slot, with what `read` says as the file has it (or as it was put); what else is
  // there is not known. `step`: the number that the blocks must be of, but for what is frozen; none: any. Throws IoError,
  // after which the call may be repeated; of a unit that is taken already it does nothing.
  void take(std::uint64_t unit, UnitPart read, std::optional<std::uint64_t> step);
  // Begins what take() will wait for.
  void read_ahead(std::uint64_t unit, UnitPart read, std::optional<std::uint64_t> step);
  // Whether all arrays of a unit that is taken are in its slot.
  bool whole(std::uint64_t unit) const;
  // What is on `stream` so far is the last that touches the unit's slot.
  void used(std::uint64_t unit, Stream& stream);
  // As used(), and then `changed` is written, with this number.
  void put(std::uint64_t unit, UnitPart changed, std::uint64_t step, Stream& stream);
  // Begins again what could not be written.
  void retry();
  // Waits until all that was put is in the file. Throws the first IoError; retry() and settle() then go on.
  void settle();
  // Empties the slots: what was taken or read is let go, and what was put but not written is lost.
  void forget();

  // Outside of steps, of parameters: the address of an element of an array, until the next call. `write`: it will be
  // changed. close() puts the last unit back.
  std::byte* at(BufferRole role, std::uint64_t unit, std::size_t buffer, bool write);
  void close();

 private:
  enum class SlotState : std::uint8_t { empty, reading, taken, held, changed, unwritten, writing };
  struct Slot {
    SlotState state = SlotState::empty;
    std::uint64_t unit = 0;
    UnitPart valid = UnitPart::none;  // what is in the slot as it is, or will be, in the file
    UnitPart changed = UnitPart::none;
    std::optional<std::uint64_t> step{};  // to be written with; none: each block keeps its own
    bool on_stream = false;               // what used the slot last may not have ended: `last_use` says
    std::unique_ptr<Event> last_use;
    std::vector<Ticket> tickets;  // open ones
  };

  Slot& slot_of(std::uint64_t unit) { return slots_[unit % slots_.size()]; }
  bool moves(UnitPart part, BufferRole role, const BufferPlan& buffer) const;
  Range moved_range(UnitPart part, BufferRole role, const BufferLayout& layout) const;
  void submit(Slot& slot, Direction direction, UnitPart part, std::optional<std::uint64_t> step);
  // All tickets of the slot; throws the first error.
  void wait(Slot& slot);
  void wait_for_stream(Slot& slot);
  void wait_for_write(Slot& slot);
  void write(Slot& slot);
  // Ends what is under way in it, for another unit or another use.
  void bring_to_rest(Slot& slot);
  void begin_read(Slot& slot, std::uint64_t unit, UnitPart read, std::optional<std::uint64_t> step);
  // Begins the writes that streams have made ready.
  void write_what_is_ready();

  const StepPlan& plan_;
  PlanMemory& memory_;
  OffloadFile& file_;
  MemoryClass memory_class_;
  std::uint64_t shard_;
  std::vector<Slot> slots_;
  std::optional<std::uint64_t> looked_at_;  // the unit that at() has taken
  bool look_changed_ = false;
};

}  // namespace shardplan
