// Host memory with real pages behind it, and how much of it there is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/bytes.h"

namespace shardplan {

// What this process could still get: the least of the system's MemAvailable (/proc/meminfo), of what the
// limits of its memory control group and the groups above leave (cgroup v2 memory.max, v1
// memory.limit_in_bytes; page cache that can be dropped counts as free) and of RLIMIT_AS. A source that the
// system does not have sets no limit.
Bytes available_host_memory();

// A file descriptor with one owner; -1 is none.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  int get() const { return number_; }

 private:
  int number_;
};

enum class HostPages : std::uint8_t {
  own,        // of this process alone
  shareable,  // of a file without a name (memfd), which other processes can map, and which is gone with its last user
};

// Zeroed memory, every page present from construction on, in huge pages where the system grants them (for shareable
// pages: where /sys/kernel/mm/transparent_hugepage/shmem_enabled says so). Starts on a 2 MiB boundary if it is that
// large. Move-only; unmapped by the destructor.
class HostMapping {
 public:
  // `tier` names the memory in the error. Throws OutOfMemory; IoError where the system has no more descriptors.
  HostMapping(Bytes bytes, std::string_view tier, HostPages pages = HostPages::own);

  // The same bytes as `file`'s, which another process made; their page tables are filled at once. `file` can be closed
  // afterwards. Throws IoError, which calls it `name`, if the file has fewer bytes or cannot be mapped.
  static HostMapping of_file(const Descriptor& file, Bytes bytes, std::string_view name);

  ~HostMapping();
  HostMapping(HostMapping&& other) noexcept;
  HostMapping& operator=(HostMapping&&) = delete;

  std::byte* data() const { return data_; }
  Bytes bytes() const { return bytes_; }
  int descriptor() const { return file_.get(); }  // -1 for own pages, and for those of_file
  void close_file() { file_ = Descriptor(); }     // nobody else can map it any more

 private:
  HostMapping() = default;
  void map(const Descriptor& file);

  Descriptor file_;
  std::byte* data_ = nullptr;
  Bytes bytes_;  // whole pages, at least one
};

}  // namespace shardplan
