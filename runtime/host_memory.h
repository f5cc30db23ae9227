// Host memory with real pages behind it, and how much of it there is.
#pragma once

#include <cstddef>
#include <string_view>

#include "base/bytes.h"

namespace shardplan {

// What this process could still get: the least of the system's MemAvailable (/proc/meminfo), of what the
// limits of its memory control group and the groups above leave (cgroup v2 memory.max, v1
// memory.limit_in_bytes; page cache that can be dropped counts as free) and of RLIMIT_AS. A source that the
// system does not have sets no limit.
Bytes available_host_memory();

// Zeroed anonymous memory, every page present from construction on, in huge pages where the system grants
// them. Starts on a 2 MiB boundary if it is that large. Move-only; unmapped by the destructor.
class HostMapping {
 public:
  // `tier` names the memory in the error. Throws OutOfMemory.
  HostMapping(Bytes bytes, std::string_view tier);
  ~HostMapping();
  HostMapping(HostMapping&& other) noexcept;
  HostMapping& operator=(HostMapping&&) = delete;

  std::byte* data() const { return data_; }
  Bytes bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  Bytes bytes_;  // whole pages, at least one
};

}  // namespace shardplan
