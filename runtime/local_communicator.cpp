#include "runtime/local_communicator.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "runtime/direct/direct_communicator.h"

namespace shardplan {
namespace {

// Threads: an offer is the address of a shared_ptr that its owner keeps where it is.
class ThreadNeighbours final : public Neighbours {
 public:
  CommonMemory make_common(Bytes bytes) override {
    constexpr std::align_val_t kAlignment{128};
    auto* const memory = static_cast<std::byte*>(operator new(bytes.count(), kAlignment));
    std::memset(memory, 0, bytes.count());
    auto owner =
        std::make_shared<std::shared_ptr<std::byte>>(memory, [](std::byte* at) { operator delete(at, kAlignment); });
    return {.bytes = *owner, .offer = {.pointer = owner.get()}, .keeper = owner};
  }
  std::shared_ptr<std::byte> open_common(int, const Offer& offer) override {
    return *static_cast<const std::shared_ptr<std::byte>*>(offer.pointer);
  }
  Offer offer_arena(const std::shared_ptr<Arena>& arena, const Device&) override { return {.pointer = &arena}; }
  void open_arena(int world_rank, const Offer& offer, ArenaGroup& group) override {
    group.join(world_rank, *static_cast<const std::shared_ptr<Arena>*>(offer.pointer));
  }
  int life_of(int) const override { return -1; }
  bool processes() const override { return false; }
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_communicators(int ranks, const LocalOptions& options) {
  SHARDPLAN_CHECK(ranks >= 1, "a group has at least one rank");
  std::vector<int> world_ranks(static_cast<std::size_t>(ranks));
  std::iota(world_ranks.begin(), world_ranks.end(), 0);
  const auto neighbours = std::make_shared<ThreadNeighbours>();
  const CommonMemory world = neighbours->make_common(WorldBlock::bytes(ranks));
  const CommonMemory group = neighbours->make_common(DirectGroup::common_bytes(ranks));
  const DirectOptions direct{.deadline = options.deadline,
                             .spin = static_cast<unsigned>(ranks) <= options.hardware_threads};
  std::vector<std::unique_ptr<Communicator>> communicators;
  communicators.reserve(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    auto own_world = std::make_shared<DirectWorld>(neighbours, world.bytes, rank, ranks, direct);
    communicators.push_back(std::make_unique<DirectCommunicator>(std::move(own_world), group.bytes, world_ranks, rank));
  }
  return communicators;
}

}  // namespace shardplan
