#include "runtime/arena.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace shardplan {
namespace {

MemoryRequest request_for(const ArenaOptions& options) {
  SHARDPLAN_CHECK(options.rank >= 0, "a rank is not negative");
  SHARDPLAN_CHECK(options.bytes >= kArenaShiftRoom,
                  fmt::format("an arena of {} bytes has no room for the shift of its base", options.bytes.count()));
  return {.tier = options.tier,
          .bytes = options.bytes,
          .shift = static_cast<std::uint64_t>(options.rank % 8) * kArenaShift,
          .shift_room = kArenaShiftRoom};
}

}  // namespace

Lease::Lease(Lease&& other) noexcept
    : arena_(std::exchange(other.arena_, nullptr)), offset_(other.offset_), bytes_(std::exchange(other.bytes_, {})) {}

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    give_back();
    arena_ = std::exchange(other.arena_, nullptr);
    offset_ = other.offset_;
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

std::byte* Lease::data() const {
  return arena_ == nullptr ? nullptr : arena_->data() + offset_;
}

void Lease::give_back() noexcept {
  if (arena_ != nullptr) std::exchange(arena_, nullptr)->take_back(offset_, std::exchange(bytes_, {}));
}

Arena::Arena(Device& device, const ArenaOptions& options) : memory_(device.allocate(request_for(options))) {
  used_.reserve(options.leases);
}

Arena::~Arena() = default;

std::vector<Arena::Used>::const_iterator Arena::first_ending_after(std::uint64_t offset) const {
  return std::partition_point(used_.begin(), used_.end(), [&](const Used& used) { return used.end <= offset; });
}

Lease Arena::take(std::uint64_t offset, Bytes bytes, std::string_view purpose) {
  const std::uint64_t end = checked_add(offset, bytes.count());
  SHARDPLAN_CHECK(offset % kLeaseAlignment == 0,
                  fmt::format("offset {} is no multiple of {}", offset, kLeaseAlignment));
  SHARDPLAN_CHECK(end <= capacity().count(),
                  fmt::format("bytes [{}, {}) are beyond the arena's {} bytes", offset, end, capacity().count()));
  if (bytes.count() != 0) {
    const auto next = first_ending_after(offset);
    SHARDPLAN_CHECK(
        next == used_.end() || next->begin >= end,
        fmt::format("bytes [{}, {}) are wanted while [{}, {}) are in use", offset, end, next->begin, next->end));
    used_.insert(next, Used{offset, end});
    memory_->handed_out(offset, bytes, purpose);
  }
  return {this, offset, bytes};
}

void Arena::take_back(std::uint64_t offset, Bytes bytes) noexcept {
  if (bytes.count() == 0) return;
  used_.erase(first_ending_after(offset));
  memory_->given_back(offset, bytes);
}

bool Arena::holds(std::uint64_t offset, Bytes bytes) const {
  if (bytes.count() == 0) return true;
  const auto used = first_ending_after(offset);
  return used != used_.end() && used->begin <= offset && bytes.count() <= used->end - offset;
}

}  // namespace shardplan
