// What every communicator checks of a collective call, against the contract. Internal to runtime/.
#pragma once

#include <cstdint>

#include "runtime/communicator.h"

namespace shardplan {

// Bytes of an element; CheckFailure where it has no whole number of them.
std::uint64_t element_bytes(DType dtype);

// CheckFailures for arguments that break the contract on this rank alone: places outside of leases, not aligned, that
// overlap where they must not; dtypes that cannot be summed.
void check_call(const ReduceScatter& call);
void check_call(const AllGather& call);

// The ranks' pieces tile a buffer in rank order: begin with 0, add each rank's, and say that it ends.
class Tiling {
 public:
  void add(int world_rank, const Piece& piece);
  void ends_at(std::uint64_t elements) const;

 private:
  std::uint64_t end_ = 0;
};

}  // namespace shardplan
