// What every communicator checks of a collective call, against the contract. Internal to runtime/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/communicator.h"

namespace shardplan {

// Bytes of an element; CheckFailure where it has no whole number of them.
std::uint64_t element_bytes(DType dtype);

// CheckFailures for arguments that break the contract on this rank alone: places outside of leases, not aligned, that
// overlap where they must not; dtypes that cannot be summed.
void check_call(const ReduceScatter& call);
void check_call(const AllGather& call);

// One record per rank; `mine` lies at this rank's place among them, or apart from all.
void check_records(std::span<const std::byte> mine, std::span<const std::byte> all, int rank, int ranks);

// Staging of a communicator of `ranks` that exchanges copies: within a lease, apart from input and output, and large
// enough for an element from each other rank.
void check_staging(const ReduceScatter& call, int ranks);

// The ranks' pieces tile a buffer in rank order: begin with 0, add each rank's, and say that it ends.
class Tiling {
 public:
  void add(int world_rank, const Piece& piece);
  void ends_at(std::uint64_t elements) const;

 private:
  std::uint64_t end_ = 0;
};

}  // namespace shardplan
