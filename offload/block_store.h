// Blocks of a tier, each with a checksum and the number of the step that wrote it, both verified when it is read.
//
// The records are memory of the caller's, 32 bytes for each block, and not beside the blocks: a tier that says it wrote and
// did not, or that has an older copy put in its place, cannot give back a record that fits. A block's record changes only
// when its write has succeeded; after one that failed, a read finds out.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "offload/tier.h"

namespace shardplan {

struct BlockRecord {
  std::uint64_t checksum_low = 0;  // XXH3-128
  std::uint64_t checksum_high = 0;
  std::uint64_t step = 0;   // the last one that has been applied to it
  std::uint64_t bytes = 0;  // 0: never written
};
static_assert(sizeof(BlockRecord) == 32);

// Block `index` (of the records), at `offset` of the tier.
struct Block {
  std::uint64_t index = 0;
  std::uint64_t offset = 0;
};

class BlockStore {
 public:
  // `records`, all zero, must outlive the store.
  BlockStore(ByteTier& tier, std::span<BlockRecord> records) : tier_(tier), records_(records) {}

  // As many bytes as were written. Throws IoError, with the tier's name and the block's offset: reading failed, the bytes
  // are not those that were written, or they are of another step. A block that was never written is a CheckFailure.
  // Distinct blocks on any threads. Without a step: of any, and written with the one that the block had.
  void read(const Block& block, std::span<std::byte> to, std::optional<std::uint64_t> step);
  void write(const Block& block, std::span<const std::byte> from, std::optional<std::uint64_t> step);

  std::uint64_t step_of(std::uint64_t index) const { return records_[index].step; }
  ByteTier& tier() const { return tier_; }

 private:
  BlockRecord& record_of(const Block& block);

  ByteTier& tier_;
  std::span<BlockRecord> records_;
};

}  // namespace shardplan
