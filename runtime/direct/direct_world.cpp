#include "runtime/direct/direct_world.h"

#include <thread>

#include "base/error.h"

namespace shardplan {

WorldBlock::Rank& WorldBlock::rank(int world_rank) {
  const std::uint64_t first = round_up(sizeof(WorldBlock), alignof(Rank));
  return reinterpret_cast<Rank*>(reinterpret_cast<std::byte*>(this) + first)[world_rank];
}

void DirectWorld::poison(int rank, std::string_view operation, std::string_view problem) noexcept {
  if (poisoned()) return;
  WorldBlock::Failure& mine = block().rank(rank_).failure;
  if (mine.begun.exchange(true)) {  // by another thread of this rank, which is at the next lines
    while (!poisoned()) std::this_thread::yield();
    return;
  }
  mine.rank = rank;
  mine.operation = operation;
  mine.problem = problem;
  int none = 0;
  if (!block().first_failure.compare_exchange_strong(none, rank_ + 1)) return;
  for (int peer = 0; peer < ranks_; ++peer) bell(peer).ring();
}

void DirectWorld::throw_failure() const {
  const WorldBlock::Failure& first = block().rank(block().first_failure.load() - 1).failure;
  throw CommunicationError(first.rank, first.operation.c_str(), options_.deadline, first.problem.c_str());
}

}  // namespace shardplan
