// A device with a capacity in one tier: what a smaller machine would refuse, this one refuses, with the same
// numbers. Threads: any, as for the inner device; ranks that share it share the capacity.
#pragma once

#include <memory>

#include "runtime/forwarding_device.h"

namespace shardplan {

class LimitedDevice final : public ForwardingDevice {
 public:
  LimitedDevice(Device& inner, MemoryTier tier, Bytes capacity);
  // Throws OutOfMemory when the tier's allocations would exceed the capacity.
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override;

 private:
  class Budget;
  class LimitedMemory;
  MemoryTier tier_;
  std::shared_ptr<Budget> budget_;  // shared with memories, which may outlive the device
};

}  // namespace shardplan
