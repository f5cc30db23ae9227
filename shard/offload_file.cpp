#include "shard/offload_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "offload/file_tier.h"
#include "planner/arena_plan.h"
#include "planner/passage.h"

namespace shardplan {
namespace {

std::unique_ptr<ByteTier> make_tier(const StepPlan& plan, const OffloadOptions& options, int rank) {
  const FileTierOptions file{.path = fmt::format("{}/shardplan-rank-{}.tier", options.folder, rank),
                             .bytes = plan.file.bytes,
                             .direct = options.direct,
                             .io = options.io,
                             .callers = options.threads + 1};  // the rank itself, too
  return options.make_tier ? options.make_tier(file) : std::make_unique<FileTier>(file);
}

// Units that pass are put under way whole: their slots are the bound then, else submit() would wait for the disk.
std::unique_ptr<Transfers> make_transfers(const StepPlan& plan, const OffloadOptions& options) {
  const std::uint64_t passing = most_passing_transfers(plan);
  const TransferOptions queue{
      .threads = options.threads,
      .in_flight = passing == 0 ? options.in_flight : std::max(options.in_flight, plan.pinned.bytes),
      .tickets = kRingSlots * kStateRoles.size() + passing};
  return options.make_transfers ? options.make_transfers(queue) : std::make_unique<TransferQueue>(queue);
}

std::span<BlockRecord> as_records(std::span<std::byte> bytes) {
  static_assert(sizeof(BlockRecord) == kBlockRecord.count());
  return {reinterpret_cast<BlockRecord*>(bytes.data()), bytes.size() / sizeof(BlockRecord)};
}

}  // namespace

OffloadFile::OffloadFile(const StepPlan& plan, PlanMemory& memory, const OffloadOptions& options, int rank)
    : records_(as_records(memory.host_buffer(BufferRole::block_records))),
      tier_(make_tier(plan, options, rank)),
      store_(*tier_, records_),
      transfers_(make_transfers(plan, options)) {}

Ticket OffloadFile::submit(Direction direction, const Block& block, std::span<std::byte> memory, std::uint64_t step) {
  return transfers_->submit({.direction = direction, .store = &store_, .block = block, .memory = memory, .step = step});
}

void OffloadFile::restamp(std::uint64_t step) {
  for (BlockRecord& record : records_) record.step = step;
}

}  // namespace shardplan
