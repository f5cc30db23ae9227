#include "tests/runtime/conformance_room.h"

#include "tests/support/reference_reduction.h"

namespace shardplan::test {

Piece piece_of(std::uint64_t elements, int rank, int ranks) {
  const auto start = [&](std::uint64_t r) {
    const auto n = static_cast<std::uint64_t>(ranks);
    return r == n ? elements : elements * r * r / (n * n);
  };
  const std::uint64_t first = start(static_cast<std::uint64_t>(rank));
  return {.first = first, .count = start(static_cast<std::uint64_t>(rank) + 1) - first};
}

Room::Room(Communicator& communicator, Device& device, std::uint64_t bytes) {
  part = round_up(full + bytes, 64) + 4096;
  staging = round_up(part + bytes, 64);
  if (!communicator.reads_peers()) staging_bytes = 8192;
  const Bytes all = Bytes{staging} + Bytes{staging_bytes} + kArenaShiftRoom;
  arena = communicator.make_arena(device, {.tier = MemoryTier::device, .bytes = all});
  full_lease = arena->take(full, Bytes{bytes});
  part_lease = arena->take(part, Bytes{bytes});
  staging_lease = arena->take(staging, Bytes{staging_bytes});
}

ReduceScatter Room::reduction(std::uint64_t elements, DType wire, const Piece& mine) const {
  return {.wire = wire,
          .input = {arena.get(), full},
          .elements = elements,
          .mine = mine,
          .output = {.place = {arena.get(), part}},
          .staging = {arena.get(), staging},
          .staging_bytes = staging_bytes};
}

void fill(std::byte* at, DType dtype, int rank, std::uint64_t elements) {
  for (std::uint64_t i = 0; i < elements; ++i) store(dtype, contribution(rank, i), at + i * width(dtype));
}

std::vector<std::byte> reduced(const ReduceScatter& call, int ranks) {
  std::vector<std::byte> bytes(call.mine.count * width(call.output.dtype));
  std::vector<float> values(static_cast<std::size_t>(ranks));
  for (std::uint64_t i = 0; i < call.mine.count; ++i) {
    for (int rank = 0; rank < ranks; ++rank) {
      std::byte wire[4];
      store(call.wire, contribution(rank, call.mine.first + i), wire);
      values[static_cast<std::size_t>(rank)] = load(call.wire, wire);
    }
    float value = reduce_in_tree_order(values, call.group_size, call.scale);
    std::byte* at = bytes.data() + i * width(call.output.dtype);
    if (call.output.mode == ReductionOutput::Mode::add) {
      std::byte before[4];
      store(call.output.dtype, contribution(50, i), before);
      value = load(call.output.dtype, before) + value;
    }
    store(call.output.dtype, value, at);
  }
  return bytes;
}

}  // namespace shardplan::test
