// One rank of a collective that is measured: an arena that holds the full vector and, behind it, room for this rank's sums.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/communicator.h"

namespace shardplan::bench {

enum class Collective { all_reduce, reduce_scatter, all_gather };

class CollectiveRank {
 public:
  // Collective; `bytes` of the full vector, fp32. The device must outlive it.
  CollectiveRank(std::unique_ptr<Communicator> communicator, Device& device, std::uint64_t bytes);
  void run(Collective what);

  std::uint64_t elements() const { return elements_; }
  std::uint64_t shard() const { return shard_; }  // elements of each rank's piece
  float* vector() const { return reinterpret_cast<float*>(arena_->data()); }
  float* sums() const { return reinterpret_cast<float*>(arena_->data() + sums_at_); }

 private:
  std::uint64_t elements_;
  std::uint64_t shard_;
  std::uint64_t sums_at_;  // offset in bytes
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<SymmetricArena> arena_;
  Lease lease_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace shardplan::bench
