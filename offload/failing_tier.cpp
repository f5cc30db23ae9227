#include "offload/failing_tier.h"

#include <cerrno>
#include <vector>

#include "base/error.h"

namespace shardplan {

void FailingTier::arm(TierFault fault, std::uint64_t number) {
  fault_ = fault;
  struck_ = false;
  fail_at_ = number == 0 ? 0 : operations_ + number;
}

bool FailingTier::strikes(bool suits) {
  const std::uint64_t operation = ++operations_;
  if (fail_at_ == 0 || operation < fail_at_ || !suits) return false;
  return !struck_.exchange(true);
}

void FailingTier::read(std::uint64_t offset, std::span<std::byte> to) {
  const bool of_reads =
      fault_ == TierFault::io_error || fault_ == TierFault::short_read || fault_ == TierFault::read_flip;
  if (!strikes(of_reads && !to.empty())) return inner_->read(offset, to);
  if (fault_ == TierFault::io_error) throw IoError(name(), offset, EIO, "cannot be read");
  if (fault_ == TierFault::short_read) {
    inner_->read(offset, to.first(to.size() / 2));
    throw IoError(name(), offset + to.size() / 2, 0, "ends early");
  }
  inner_->read(offset, to);
  to[to.size() / 2] ^= std::byte{0x10};
}

void FailingTier::write(std::uint64_t offset, std::span<const std::byte> from) {
  const bool of_writes = fault_ != TierFault::short_read && fault_ != TierFault::read_flip;
  if (!strikes(of_writes && !from.empty())) return inner_->write(offset, from);
  if (fault_ == TierFault::no_space) throw IoError(name(), offset, ENOSPC, "cannot be written");
  if (fault_ == TierFault::io_error) throw IoError(name(), offset, EIO, "cannot be written");
  if (fault_ == TierFault::short_write) {
    inner_->write(offset, from.first(from.size() / 2));
    throw IoError(name(), offset + from.size() / 2, EIO, "cannot be written");
  }
  std::vector<std::byte> flipped(from.begin(), from.end());
  flipped[from.size() / 2] ^= std::byte{0x10};
  inner_->write(offset, flipped);
}

}  // namespace shardplan
