// A tier: bytes that are reached by copying ranges of them in and out. One interface for host memory, for files, and for
// what tests put in their place; ranks, layouts and plans are not known here.
//
// Threads: ranges that do not overlap may be read and written at the same time; the other calls are one thread's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/bytes.h"

namespace shardplan {

class ByteTier {
 public:
  virtual ~ByteTier() = default;
  virtual std::string name() const = 0;  // a file's path
  virtual Bytes bytes() const = 0;

  // All of the range, or IoError with name() and the offset at which it stopped. What a failed write leaves in its range
  // is not known: some bytes old, some new. A range beyond bytes() is a CheckFailure. No allocation unless one fails.
  virtual void read(std::uint64_t offset, std::span<std::byte> to) = 0;
  virtual void write(std::uint64_t offset, std::span<const std::byte> from) = 0;
  // Returns when what has been written would outlive the machine's power. Throws IoError.
  virtual void flush() = 0;
  // Throws IoError if the tier is no longer what it was when it was made: a file removed or cut short by somebody else.
  virtual void check() = 0;
};

void check_range(const ByteTier& tier, std::uint64_t offset, std::size_t bytes);

}  // namespace shardplan
