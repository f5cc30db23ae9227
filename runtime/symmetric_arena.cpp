#include "runtime/symmetric_arena.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace shardplan {

void ArenaGroup::join(int world_rank, std::shared_ptr<Arena> arena) {
  Member& member = members_[index_of(world_rank)];
  member = {.base = arena->data(), .arena = arena.get(), .keeper = std::move(arena)};
}

void ArenaGroup::join(int world_rank, const std::byte* base, std::shared_ptr<const void> keeper) {
  members_[index_of(world_rank)] = {.base = base, .keeper = std::move(keeper)};
}

Arena& ArenaGroup::arena_of(int world_rank) const {
  Arena* const arena = members_[index_of(world_rank)].arena;
  SHARDPLAN_CHECK(arena != nullptr, fmt::format("rank {}'s arena is not of this process", world_rank));
  return *arena;
}

const std::byte* ArenaGroup::base_of(int world_rank) const {
  const std::byte* const base = members_[index_of(world_rank)].base;
  SHARDPLAN_CHECK(base != nullptr, fmt::format("rank {}'s arena cannot be read from here", world_rank));
  return base;
}

std::size_t ArenaGroup::index_of(int world_rank) const {
  const auto place = static_cast<std::size_t>(world_rank);
  if (place < world_ranks_.size() && world_ranks_[place] == world_rank) return place;  // a group of all ranks
  const auto found = std::find(world_ranks_.begin(), world_ranks_.end(), world_rank);
  SHARDPLAN_CHECK(found != world_ranks_.end(), fmt::format("rank {} has no arena in this group", world_rank));
  return static_cast<std::size_t>(found - world_ranks_.begin());
}

}  // namespace shardplan
