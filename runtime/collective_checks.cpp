#include "runtime/collective_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {
namespace {

// A range of bytes in this rank's own arena.
struct Extent {
  const Arena* arena = nullptr;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  bool overlaps(const Extent& other) const {
    return arena == other.arena && std::max(begin, other.begin) < std::min(end, other.end);
  }
};

// Checks that it is aligned and within a lease.
Extent extent_of(const char* what, const ArenaPlace& place, std::uint64_t elements, std::uint64_t width) {
  SHARDPLAN_CHECK(place.arena != nullptr, fmt::format("{} names no arena", what));
  const Arena& arena = place.arena->local();
  const std::uint64_t bytes = checked_multiply(elements, width);
  const std::uint64_t end = checked_add(place.offset, bytes);
  SHARDPLAN_CHECK(place.offset % width == 0, fmt::format("{} at offset {} is not aligned", what, place.offset));
  SHARDPLAN_CHECK(arena.holds(place.offset, Bytes{bytes}),
                  fmt::format("{} [{}, {}) is not within one lease of this rank", what, place.offset, end));
  return {&arena, place.offset, end};
}

// `mine` may be exactly this rank's piece of `shared`; apart from that it must lie outside of it.
void check_overlap(const char* what, const Extent& mine, const Extent& shared, const Piece& piece,
                   std::uint64_t width) {
  if (!mine.overlaps(shared)) return;
  const std::uint64_t begin = shared.begin + piece.first * width;
  SHARDPLAN_CHECK(mine.begin == begin && mine.end == begin + piece.count * width,
                  fmt::format("{} [{}, {}) overlaps the buffer at [{}, {}) elsewhere than at this rank's piece", what,
                              mine.begin, mine.end, shared.begin, shared.end));
}

void check_summable(DType dtype) {
  SHARDPLAN_CHECK(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
                  fmt::format("gradients are reduced in fp32, bf16 or fp16, not in {}", name(dtype)));
}

}  // namespace

std::uint64_t element_bytes(DType dtype) {
  SHARDPLAN_CHECK(bits(dtype) % 8 == 0, fmt::format("{} has no whole bytes per element", name(dtype)));
  return bits(dtype) / 8;
}

void check_call(const ReduceScatter& call) {
  check_summable(call.wire);
  check_summable(call.output.dtype);
  const std::uint64_t width = element_bytes(call.wire);
  const Extent input = extent_of("the input", call.input, call.elements, width);
  const Extent output = extent_of("the output", call.output.place, call.mine.count, element_bytes(call.output.dtype));
  check_overlap("the output", output, input, call.mine, width);
  SHARDPLAN_CHECK(call.group_size >= 0, "a reduction tree's group has at least one rank");
}

void check_records(std::span<const std::byte> mine, std::span<const std::byte> all, int rank, int ranks) {
  SHARDPLAN_CHECK(all.size() == mine.size() * static_cast<std::size_t>(ranks),
                  "all_gather_bytes needs one record per rank");
  const std::byte* place = all.data() + static_cast<std::size_t>(rank) * mine.size();
  const std::less<> before;  // a total order, of pointers into different arrays too
  const bool apart = !before(mine.data(), all.data() + all.size()) || !before(all.data(), mine.data() + mine.size());
  SHARDPLAN_CHECK(mine.empty() || apart || mine.data() == place,
                  "the record overlaps the records elsewhere than at this rank's place");
}

void check_staging(const ReduceScatter& call, int ranks) {
  const std::uint64_t peers = static_cast<std::uint64_t>(ranks) - 1;
  if (peers == 0 || call.elements == 0) return;
  const std::uint64_t width = element_bytes(call.wire);
  SHARDPLAN_CHECK(
      call.staging_bytes >= checked_multiply(peers, width),
      fmt::format("{} bytes of staging hold no element from each of {} other ranks: this communicator needs a "
                  "plan of transport staged",
                  call.staging_bytes, peers));
  const Extent staging = extent_of("the staging", call.staging, call.staging_bytes / width, width);
  const Extent input = extent_of("the input", call.input, call.elements, width);
  const Extent output = extent_of("the output", call.output.place, call.mine.count, element_bytes(call.output.dtype));
  SHARDPLAN_CHECK(!staging.overlaps(input) && !staging.overlaps(output),
                  "the staging overlaps the input or the output");
}

void check_call(const AllGather& call) {
  const std::uint64_t width = element_bytes(call.dtype);
  const Extent input = extent_of("the input", call.input, call.mine.count, width);
  const Extent output = extent_of("the output", call.output, call.elements, width);
  check_overlap("the input", input, output, call.mine, width);
}

void Tiling::add(int world_rank, const Piece& piece) {
  if (piece.count == 0) return;
  SHARDPLAN_CHECK(piece.first == end_, fmt::format("rank {}'s piece starts at element {}, the ones before it end at {}",
                                                   world_rank, piece.first, end_));
  end_ = checked_add(end_, piece.count);
}

void Tiling::ends_at(std::uint64_t elements) const {
  SHARDPLAN_CHECK(end_ == elements, fmt::format("the ranks' pieces end at element {} of {}", end_, elements));
}

}  // namespace shardplan
