// Host memory that the device's kernels reach too: how values get in and out of arenas that the host cannot touch.
#pragma once

#include <memory>
#include <span>

#include "runtime/device.h"

namespace shardplan {

// Page-locked where the device asks for that. For initial values and for state in and out, never in a step: beside the plan
// and short-lived, or in the pinned arena where the plan has one. After a kernel or a copy was put on a stream, the host synchronizes the stream before it reads
// the buffer or writes to it.
class HostBuffer {
 public:
  // Throws OutOfMemory.
  HostBuffer(Device& device, Bytes bytes)
      : memory_(device.allocate({.tier = MemoryTier::pinned_host, .bytes = bytes})), bytes_(bytes) {
    memory_->handed_out(0, bytes_, "host buffer");
  }
  // Over bytes that the plan has for this.
  explicit HostBuffer(std::span<std::byte> planned) : planned_(planned), bytes_(planned.size()) {}
  ~HostBuffer() {
    if (memory_) memory_->given_back(0, bytes_);
  }
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;

  std::byte* data() const { return memory_ ? memory_->data() : planned_.data(); }
  std::span<float> floats() const { return {reinterpret_cast<float*>(data()), bytes_.count() / sizeof(float)}; }

 private:
  std::unique_ptr<Memory> memory_;
  std::span<std::byte> planned_;
  Bytes bytes_;
};

}  // namespace shardplan
