// Host memory as a tier: page-locked where the device asks for that (MemoryTier::pinned_host), or not.
#pragma once

#include <memory>

#include "offload/tier.h"
#include "runtime/device.h"

namespace shardplan {

class HostTier final : public ByteTier {
 public:
  // Exactly `bytes` are allocated of `device`, all of them at once. Throws OutOfMemory.
  HostTier(Device& device, Bytes bytes, MemoryTier tier = MemoryTier::host);
  ~HostTier() override;
  HostTier(const HostTier&) = delete;
  HostTier& operator=(const HostTier&) = delete;

  std::string name() const override { return std::string(shardplan::name(memory_->tier())); }
  Bytes bytes() const override { return memory_->bytes(); }
  void read(std::uint64_t offset, std::span<std::byte> to) override;
  void write(std::uint64_t offset, std::span<const std::byte> from) override;
  void flush() override {}
  void check() override {}

 private:
  std::unique_ptr<Memory> memory_;
};

}  // namespace shardplan
