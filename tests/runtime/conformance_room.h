// What the conformance tests of communicators have in common: a rank's memory, its values, and what must come out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/communicator.h"

namespace shardplan::test {

inline std::uint64_t width(DType dtype) {
  return bits(dtype) / 8;
}

// An uneven tiling, empty for some ranks: rank r starts at r^2 / N^2 of the buffer.
Piece piece_of(std::uint64_t elements, int rank, int ranks);

// One rank's arena: a full buffer at `full`, room for a piece at `part`, staging for those that need it.
struct Room {
  Room(Communicator& communicator, Device& device, std::uint64_t bytes);

  // From the full buffer, summed by `mine`, to `part`.
  ReduceScatter reduction(std::uint64_t elements, DType wire, const Piece& mine) const;

  std::uint64_t full = 4096;
  std::uint64_t part = 0;
  std::uint64_t staging = 0;
  std::uint64_t staging_bytes = 0;
  std::unique_ptr<SymmetricArena> arena;
  Lease full_lease;
  Lease part_lease;
  Lease staging_lease;
};

// Rank `rank`'s contributions to a buffer.
void fill(std::byte* at, DType dtype, int rank, std::uint64_t elements);

// What reduce_scatter must leave of the contributions of `ranks` ranks for the piece `call.mine`; with Mode::add, on top of
// what fill(..., rank 50, ...) put there.
std::vector<std::byte> reduced(const ReduceScatter& call, int ranks);

}  // namespace shardplan::test
