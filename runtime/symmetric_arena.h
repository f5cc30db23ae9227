// Symmetric arenas: one arena per rank of a group, equal in tier and size, so that a buffer of the plan has
// the same offset in each and a rank finds a peer's bytes at the peer's base plus the offset (direct
// transport).
//
// The arenas of a group are one object. Every rank holds it through its SymmetricArena, and all of the memory
// is freed when the last rank has let go: a rank that dies never takes away bytes that another one is
// reading.
#pragma once

#include <memory>
#include <vector>

#include "runtime/arena.h"

namespace shardplan {

// Ranks are those of the communicator at the top of the family (Communicator::world_rank). Made by
// communicators only.
class ArenaGroup {
 public:
  ArenaGroup(std::uint64_t id, std::vector<int> world_ranks)
      : id_(id), world_ranks_(std::move(world_ranks)), arenas_(world_ranks_.size()) {}

  std::uint64_t id() const { return id_; }  // differs between the groups of a family
  // Each member once, before any reads another's.
  void join(int world_rank, std::unique_ptr<Arena> arena) { arenas_[index_of(world_rank)] = std::move(arena); }
  // Throws CheckFailure for a rank that is not of the group.
  Arena& arena_of(int world_rank) const { return *arenas_[index_of(world_rank)]; }

 private:
  std::size_t index_of(int world_rank) const;

  std::uint64_t id_;
  std::vector<int> world_ranks_;
  std::vector<std::unique_ptr<Arena>> arenas_;
};

// One rank's share of an ArenaGroup. Leases must not outlive it.
class SymmetricArena {
 public:
  SymmetricArena(std::shared_ptr<ArenaGroup> group, int world_rank)
      : group_(std::move(group)), local_(&group_->arena_of(world_rank)) {}

  Arena& local() const { return *local_; }
  Lease take(std::uint64_t offset, Bytes bytes, std::string_view purpose = {}) {
    return local_->take(offset, bytes, purpose);
  }
  std::byte* data() const { return local_->data(); }
  Bytes capacity() const { return local_->capacity(); }

  const ArenaGroup& group() const { return *group_; }
  const std::byte* peer(int world_rank) const { return group_->arena_of(world_rank).data(); }

 private:
  std::shared_ptr<ArenaGroup> group_;
  Arena* local_;
};

}  // namespace shardplan
