// The host's processors as a device. Its three tiers are the same memory: populated pages, huge where the
// system grants them, zeroed. Streams execute inline, so an event is reached as soon as it is recorded.
//
// In builds with AddressSanitizer, bytes outside the ranges handed out are poisoned: touching one is an error
// there.
#pragma once

#include <mutex>

#include "runtime/device.h"
#include "runtime/host_memory.h"

namespace shardplan {

class CpuDevice final : public Device {
 public:
  // `shareable`: ranks that are processes of one machine can read each other's memory.
  explicit CpuDevice(HostPages pages = HostPages::own) : pages_(pages) {}
  std::string name() const override { return "cpu"; }
  // Refuses what the system could not back at this moment (available_host_memory), instead of being killed
  // for it later. Ranks that allocate at the same time through one CpuDevice take turns, so that they do not
  // count the same free bytes twice.
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override;
  std::unique_ptr<Stream> make_stream() override;
  std::unique_ptr<Event> make_event() override;

 private:
  const HostPages pages_;
  std::mutex turn_;
};

}  // namespace shardplan
