// A tier whose n-th operation goes wrong, and the operations after it do not: for tests of what a failure leaves behind.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "offload/tier.h"

namespace shardplan {

enum class TierFault : std::uint8_t {
  io_error,     // EIO, and nothing is moved
  no_space,     // a write finds ENOSPC, and nothing is written
  short_write,  // half is written, then EIO
  short_read,   // half is read, then the file ends
  read_flip,    // one bit of what is read differs
  write_flip,   // one bit of what is written differs, and nobody says so
};

// Over a tier that it owns. Reads and writes are counted, by any threads.
class FailingTier final : public ByteTier {
 public:
  explicit FailingTier(std::unique_ptr<ByteTier> inner) : inner_(std::move(inner)) {}

  // Operation `number` from now on, the first being 1, is the one to fail; 0: none. A fault of a read strikes the next read
  // from there on, one of a write the next write.
  void arm(TierFault fault, std::uint64_t number);
  std::uint64_t operations() const { return operations_; }  // so far
  bool struck() const { return struck_; }

  std::string name() const override { return inner_->name(); }
  Bytes bytes() const override { return inner_->bytes(); }
  void read(std::uint64_t offset, std::span<std::byte> to) override;
  void write(std::uint64_t offset, std::span<const std::byte> from) override;
  void flush() override { inner_->flush(); }
  void check() override { inner_->check(); }

 private:
  bool strikes(bool suits);

  std::unique_ptr<ByteTier> inner_;
  TierFault fault_ = TierFault::io_error;
  std::atomic<std::uint64_t> operations_ = 0;
  std::atomic<std::uint64_t> fail_at_ = 0;
  std::atomic<bool> struck_ = false;
};

}  // namespace shardplan
