// A rank's file: the tier, the records of its blocks, and what carries transfers between it and pinned host memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "offload/block_store.h"
#include "offload/transfer_queue.h"
#include "planner/step_plan.h"
#include "shard/options.h"
#include "shard/plan_memory.h"

namespace shardplan {

class OffloadFile {
 public:
  // Makes the file, in which no block has been written yet. Throws OutOfMemory where the disk has no room, IoError.
  OffloadFile(const StepPlan& plan, PlanMemory& memory, const OffloadOptions& options, int rank);

  // As of Transfers: every ticket is waited for, once, and wait() throws what went wrong.
  Ticket submit(Direction direction, const Block& block, std::span<std::byte> memory, std::uint64_t step);
  void wait(Ticket ticket) { transfers_->wait(ticket); }

  // The number that a block was written with.
  std::uint64_t step_of(std::uint64_t block) const { return store_.step_of(block); }
  // Gives every block this number: after a load, which wrote all of them.
  void restamp(std::uint64_t step);
  // Throws IoError if the file was removed or cut short.
  void check() { tier_->check(); }

 private:
  std::span<BlockRecord> records_;
  std::unique_ptr<ByteTier> tier_;
  BlockStore store_;
  std::unique_ptr<Transfers> transfers_;  // last: its threads use the others
};

}  // namespace shardplan
