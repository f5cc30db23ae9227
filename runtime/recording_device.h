// A device that observes what its rank holds, from the ranges really handed out. It knows no plan: what it
// reports is compared with one.
//
// Threads: one rank's device. The reports may be read while the memories live and after.
#pragma once

#include <array>
#include <memory>

#include "runtime/forwarding_device.h"

namespace shardplan {

class RecordingDevice final : public ForwardingDevice {
 public:
  struct Report {
    Bytes held;        // allocated at present
    Bytes held_peak;   // the most that was allocated at one time
    Bytes high_water;  // the furthest end ever handed out, plus the room for shifts: what an allocation had
                       // to be at least. Summed over the tier's allocations, freed ones included
    Bytes live;        // in use at present
    Bytes live_peak;   // the most that was in use at one time
    bool operator==(const Report&) const = default;
  };

  explicit RecordingDevice(Device& inner);
  // One over another would be taken for a copy of it: say Device& of the other.
  RecordingDevice(const RecordingDevice&) = delete;
  RecordingDevice& operator=(const RecordingDevice&) = delete;
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override;
  Report report(MemoryTier tier) const;

 private:
  using Reports = std::array<Report, 3>;
  class RecordingMemory;
  std::shared_ptr<Reports> reports_;  // shared with memories, which may outlive the device
};

}  // namespace shardplan
