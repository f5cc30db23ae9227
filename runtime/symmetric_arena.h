// Symmetric arenas: one arena per rank of a group, equal in tier and size, so that a buffer of the plan has
// the same offset in each and a rank finds a peer's bytes at the peer's base plus the offset (direct
// transport).
//
// A rank that leaves or dies never takes away bytes that another one is reading: whoever holds a SymmetricArena
// keeps the memory of the whole group. Among the threads of a process all of it is freed when the last rank has
// let go; among processes each has mapped what the others made, and pages are freed with their last mapping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/arena.h"

namespace shardplan {

// Ranks are those of the communicator at the top of the family (Communicator::world_rank). Made by
// communicators only.
class ArenaGroup {
 public:
  ArenaGroup(std::uint64_t id, std::vector<int> world_ranks)
      : id_(id), world_ranks_(std::move(world_ranks)), members_(world_ranks_.size()) {}

  std::uint64_t id() const { return id_; }  // differs between the groups of a family
  // Each member once, before any reads another's: an arena of this process, or another process's memory, which `keeper`
  // keeps mapped and whose offset 0 is at `base` here.
  void join(int world_rank, std::shared_ptr<Arena> arena);
  void join(int world_rank, const std::byte* base, std::shared_ptr<const void> keeper);

  // Both throw CheckFailure for a rank that is not of the group, or has nothing here that can be named so.
  Arena& arena_of(int world_rank) const;
  const std::byte* base_of(int world_rank) const;

 private:
  struct Member {
    const std::byte* base = nullptr;
    Arena* arena = nullptr;
    std::shared_ptr<const void> keeper = nullptr;
  };
  std::size_t index_of(int world_rank) const;

  std::uint64_t id_;
  std::vector<int> world_ranks_;
  std::vector<Member> members_;
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
  // Offset 0 of a peer's arena. CheckFailure where this rank cannot read it.
  const std::byte* peer(int world_rank) const { return group_->base_of(world_rank); }

 private:
  std::shared_ptr<ArenaGroup> group_;
  Arena* local_;
};

}  // namespace shardplan
