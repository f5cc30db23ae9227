#include "runtime/symmetric_arena.h"

#include <fmt/format.h>

#include <algorithm>

namespace shardplan {

std::size_t ArenaGroup::index_of(int world_rank) const {
  const auto place = static_cast<std::size_t>(world_rank);
  if (place < world_ranks_.size() && world_ranks_[place] == world_rank) return place;  // a group of all ranks
  const auto found = std::find(world_ranks_.begin(), world_ranks_.end(), world_rank);
  SHARDPLAN_CHECK(found != world_ranks_.end(), fmt::format("rank {} has no arena in this group", world_rank));
  return static_cast<std::size_t>(found - world_ranks_.begin());
}

}  // namespace shardplan
