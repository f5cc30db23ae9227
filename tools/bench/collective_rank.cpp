#include "tools/bench/collective_rank.h"

#include <algorithm>
#include <utility>

namespace shardplan::bench {

CollectiveRank::CollectiveRank(std::unique_ptr<Communicator> communicator, Device& device, std::uint64_t bytes)
    : elements_(bytes / sizeof(float)),
      shard_(elements_ / static_cast<std::uint64_t>(communicator->size())),
      // One array after the other, shifted by a page: see docs/design.md on congruent arrays.
      sums_at_(round_up(bytes, 4096) + 4096),
      communicator_(std::move(communicator)) {
  const Bytes used{sums_at_ + shard_ * sizeof(float)};
  arena_ = communicator_->make_arena(device, {.tier = MemoryTier::device, .bytes = used + kArenaShiftRoom});
  lease_ = arena_->take(0, used);
  stream_ = device.make_stream();
  std::fill_n(vector(), elements_, 1.0F / static_cast<float>(communicator_->rank() + 1));
}

void CollectiveRank::run(Collective what) {
  const Piece mine{.first = shard_ * static_cast<std::uint64_t>(communicator_->rank()), .count = shard_};
  const ArenaPlace piece{arena_.get(), mine.first * sizeof(float)};
  if (what != Collective::all_gather) {
    const ArenaPlace sums = what == Collective::all_reduce ? piece : ArenaPlace{arena_.get(), sums_at_};
    communicator_->reduce_scatter(
        {.input = {arena_.get(), 0}, .elements = elements_, .mine = mine, .scale = 0.5F, .output = {.place = sums}},
        *stream_);
  }
  if (what != Collective::reduce_scatter) {
    communicator_->all_gather({.input = piece, .output = {arena_.get(), 0}, .elements = elements_, .mine = mine},
                              *stream_);
  }
}

}  // namespace shardplan::bench
