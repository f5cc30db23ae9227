// A file as a tier: one for each rank, with all its space from the start, gone with the tier.
//
// What lies on multiples of kFileAlignment, in the file and in memory, goes directly between disk and memory (O_DIRECT):
// the page cache would hold a second copy of every byte, in memory that the plan gives to others. Ends that do not, and
// everything where the file system refuses direct I/O, go through the page cache. The kernel keeps the two apart: a
// direct transfer first writes back, or drops, the cached pages of its range.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "offload/io_uring.h"
#include "offload/tier.h"
#include "runtime/files/files.h"
#include "runtime/host_memory.h"

namespace shardplan {

// How a range is moved: in one call after the other, or in pieces at once (offload/io_uring.h).
enum class FileIo : std::uint8_t { pread, io_uring };

struct FileTierOptions {
  std::string path;    // made, and overwritten if it is there; its folder must be there
  Bytes bytes;         // all of them are reserved by the constructor
  bool direct = true;  // false: through the page cache in any case
  FileIo io = FileIo::pread;
  int callers = 1;  // with io_uring: threads that read and write at once; more of them wait for each other
};

class FileTier final : public ByteTier {
 public:
  // Locks the file (flock) until the destructor removes it: two tiers never share one, and what a killed process has left
  // is taken over. Throws OutOfMemory if the file system has no room (what is available is what it says it has left),
  // IoError if the file cannot be made, or is another tier's, ConfigError where io_uring is asked for and refused.
  explicit FileTier(const FileTierOptions& options);
  ~FileTier() override;
  FileTier(const FileTier&) = delete;
  FileTier& operator=(const FileTier&) = delete;

  std::string name() const override { return path_; }
  Bytes bytes() const override { return bytes_; }
  void read(std::uint64_t offset, std::span<std::byte> to) override;
  void write(std::uint64_t offset, std::span<const std::byte> from) override;
  void flush() override;
  // One fstat.
  void check() override;

  // Whether aligned ranges bypass the page cache.
  bool direct() const { return direct_.get() >= 0; }

 private:
  void reserve();
  void open_directly();

  std::string path_;
  Bytes bytes_;
  Descriptor file_;                  // through the page cache
  Descriptor direct_;                // none where direct I/O is refused
  std::unique_ptr<IoUrings> rings_;  // or null
};

}  // namespace shardplan
