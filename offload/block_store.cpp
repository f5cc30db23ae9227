#include "offload/block_store.h"

#include <fmt/format.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/error.h"

namespace shardplan {

BlockRecord& BlockStore::record_of(const Block& block) {
  SHARDPLAN_CHECK(block.index < records_.size(), fmt::format("no block {} of {}", block.index, records_.size()));
  return records_[block.index];
}

void BlockStore::read(const Block& block, std::span<std::byte> to, std::optional<std::uint64_t> step) {
  const BlockRecord& record = record_of(block);
  SHARDPLAN_CHECK(record.bytes == to.size(), fmt::format("block {}: {} bytes are read of {} that were written",
                                                         block.index, to.size(), record.bytes));
  if (step && record.step != *step) {
    throw IoError(tier_.name(), block.offset, 0, fmt::format("holds step {}: expected step {}", record.step, *step));
  }
  tier_.read(block.offset, to);
  const XXH128_hash_t checksum = XXH3_128bits(to.data(), to.size());
  if (checksum.low64 != record.checksum_low || checksum.high64 != record.checksum_high) {
    throw IoError(
        tier_.name(), block.offset, 0,
        fmt::format("the {} bytes from here are not those that were written: their checksums differ", to.size()));
  }
}

void BlockStore::write(const Block& block, std::span<const std::byte> from, std::optional<std::uint64_t> step) {
  BlockRecord& record = record_of(block);
  const XXH128_hash_t checksum = XXH3_128bits(from.data(), from.size());
  tier_.write(block.offset, from);
  record = {checksum.low64, checksum.high64, step.value_or(record.step), from.size()};
}

}  // namespace shardplan
