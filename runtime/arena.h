// An arena: the one allocation that a rank makes per tier. The plan decides every offset; the arena hands
// ranges out and takes them back, and never chooses.
//
//   Arena arena(device, {.bytes = plan.device.bytes, .rank = rank});
//   Lease lease = arena.take(offset, bytes);      // lease.data(), lease.as<float>()
//   ...                                           // given back by lease.give_back() or its destructor
//
// Rank r's offset 0 lies (r mod 8) x 4096 bytes into the allocation: equal offsets of several ranks would
// otherwise meet in the same cache sets. The room for that, kArenaShiftRoom, is part of `bytes` on every
// rank.
//
// A range is handed out at most once at a time, and nothing outside of a lease may be touched: with
// AddressSanitizer that is an error at the byte. A lease must not outlive its arena. Threads: one, the owning
// rank's; other ranks only read data() and capacity().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "runtime/device.h"

namespace shardplan {

inline constexpr Bytes kArenaShift = 4_KiB;
inline constexpr Bytes kArenaShiftRoom = 7 * kArenaShift;
inline constexpr std::uint64_t kLeaseAlignment = 8;  // bytes; what AddressSanitizer can tell apart

struct ArenaOptions {
  MemoryTier tier = MemoryTier::device;
  Bytes bytes = {};          // all of it, kArenaShiftRoom included
  int rank = 0;              // decides the shift
  std::size_t leases = 256;  // how many may be out at once without an allocation here; 16 bytes each
};

class Arena;

// A range in use. Move-only; an empty one holds nothing.
class Lease {
 public:
  Lease() = default;
  ~Lease() { give_back(); }
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&& other) noexcept;

  bool empty() const { return arena_ == nullptr; }
  std::uint64_t offset() const { return offset_; }
  Bytes bytes() const { return bytes_; }
  std::byte* data() const;
  // The range as whole elements of T.
  template <typename T>
  std::span<T> as() const {
    SHARDPLAN_CHECK(bytes_.count() % sizeof(T) == 0, "a lease is viewed as elements that do not fill it");
    return {reinterpret_cast<T*>(data()), bytes_.count() / sizeof(T)};
  }
  void give_back() noexcept;

 private:
  friend class Arena;
  Lease(Arena* arena, std::uint64_t offset, Bytes bytes) : arena_(arena), offset_(offset), bytes_(bytes) {}

  Arena* arena_ = nullptr;
  std::uint64_t offset_ = 0;
  Bytes bytes_;
};

class Arena {
 public:
  // Throws OutOfMemory; a CHECK fails if `bytes` is less than kArenaShiftRoom.
  Arena(Device& device, const ArenaOptions& options);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // CheckFailure, naming both ranges, if a byte of it is in use or beyond capacity(), or if the offset is no
  // multiple of kLeaseAlignment. 0 bytes are a lease of nothing, wherever it is. `purpose` is for Memory.
  Lease take(std::uint64_t offset, Bytes bytes, std::string_view purpose = {});

  MemoryTier tier() const { return memory_->tier(); }
  std::byte* data() const { return memory_->data(); }  // offset 0
  Bytes capacity() const { return memory_->capacity(); }
  std::optional<SharedHandle> shared_handle() const { return memory_->shared_handle(); }
  // Whether one lease that is out contains the whole range.
  bool holds(std::uint64_t offset, Bytes bytes) const;

 private:
  friend class Lease;
  struct Used {
    std::uint64_t begin;
    std::uint64_t end;
  };
  std::vector<Used>::const_iterator first_ending_after(std::uint64_t offset) const;
  void take_back(std::uint64_t offset, Bytes bytes) noexcept;

  std::unique_ptr<Memory> memory_;
  std::vector<Used> used_;  // in order of place, none empty, no two overlapping
};

}  // namespace shardplan
