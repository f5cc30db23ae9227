// Where there is no liburing.
#include <cerrno>

#include "base/error.h"
#include "offload/io_uring.h"

namespace shardplan {

class IoUrings::Ring {};

IoUrings::IoUrings(int /*callers*/) {
  throw ConfigError("io_uring", "", "this build has none (SHARDPLAN_IO_URING, which needs liburing): expected pread");
}
IoUrings::~IoUrings() = default;

ssize_t IoUrings::read(int /*file*/, std::byte* /*to*/, std::size_t /*bytes*/, std::uint64_t /*offset*/) {
  errno = ENOSYS;
  return -1;
}

ssize_t IoUrings::write(int /*file*/, const std::byte* /*from*/, std::size_t /*bytes*/, std::uint64_t /*offset*/) {
  errno = ENOSYS;
  return -1;
}

}  // namespace shardplan
