#include "offload/host_tier.h"

#include <cstring>

namespace shardplan {

HostTier::HostTier(Device& device, Bytes bytes, MemoryTier tier)
    : memory_(device.allocate({.tier = tier, .bytes = bytes})) {
  memory_->handed_out(0, bytes, "tier");
}

HostTier::~HostTier() {
  memory_->given_back(0, memory_->bytes());
}

void HostTier::read(std::uint64_t offset, std::span<std::byte> to) {
  check_range(*this, offset, to.size());
  if (!to.empty()) std::memcpy(to.data(), memory_->data() + offset, to.size());
}

void HostTier::write(std::uint64_t offset, std::span<const std::byte> from) {
  check_range(*this, offset, from.size());
  if (!from.empty()) std::memcpy(memory_->data() + offset, from.data(), from.size());
}

}  // namespace shardplan
