#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "tests/support/reference_reduction.h"
#include "tests/support/run_ranks.h"

namespace shardplan {
namespace {

TEST(Split, OrdersByKeyThenRank) {
  test::run_ranks(7, [](Communicator& world) {
    const int color = world.rank() % 2;
    const auto part = world.split(color, -world.rank());
    ASSERT_NE(part, nullptr);
    EXPECT_EQ(part->size(), color == 0 ? 4 : 3);
    EXPECT_EQ(part->rank(), part->size() - 1 - world.rank() / 2);
    EXPECT_EQ(part->world_rank(), world.rank());
    const auto same = world.split(color, 0);
    EXPECT_EQ(same->rank(), world.rank() / 2);
    const auto pairs = part->split(part->rank() / 2, 0);
    EXPECT_EQ(pairs->rank(), part->rank() % 2);
    pairs->barrier();
  });
}

TEST(Split, LeavesOutThoseWithoutColor) {
  test::run_ranks(3, [](Communicator& world) {
    const auto part = world.split(world.rank() == 1 ? -1 : 0, 0);
    EXPECT_EQ(part == nullptr, world.rank() == 1);
    if (part) part->barrier();
    world.barrier();
  });
}

// Hybrid sharding: sums within shard groups, then over the replicas, each of which reduces a part of the shard and
// gathers the rest. Equal to one flat reduction that names the same tree.
class Hybrid : public testing::TestWithParam<std::pair<int, int>> {};

INSTANTIATE_TEST_SUITE_P(ShardsAndReplicas, Hybrid,
                         testing::Values(std::pair{2, 2}, std::pair{3, 2}, std::pair{2, 3}, std::pair{1, 4},
                                         std::pair{4, 1}, std::pair{4, 2}));

TEST_P(Hybrid, EqualsOneTreeBitForBit) {
  const auto [shards, replicas] = GetParam();
  const int size = shards * replicas;
  constexpr std::uint64_t kShardElements = 5003;
  const std::uint64_t elements = kShardElements * static_cast<std::uint64_t>(shards);
  constexpr float kScale = 1.0F / 7.0F;
  CpuDevice device;
  test::run_ranks(size, [&, shards = shards, replicas = replicas](Communicator& world) {
    const auto group = world.split(world.rank() / shards, 0);
    const auto peers = world.split(world.rank() % shards, 0);
    const auto stream = device.make_stream();
    const std::uint64_t partial = round_up(elements * 2, 64);
    const std::uint64_t result = round_up(partial + kShardElements * 4, 64);
    const Bytes used = Bytes{result} + Bytes{kShardElements * 2};
    auto arena = world.make_arena(device, {.tier = MemoryTier::device, .bytes = used + kArenaShiftRoom});
    const Lease lease = arena->take(0, used);
    for (std::uint64_t i = 0; i < elements; ++i) {
      test::store(DType::bf16, test::contribution(world.rank(), i), lease.data() + i * 2);
    }

    group->reduce_scatter({.wire = DType::bf16,
                           .input = {arena.get(), 0},
                           .elements = elements,
                           .mine = {static_cast<std::uint64_t>(group->rank()) * kShardElements, kShardElements},
                           .output = {.place = {arena.get(), partial}}},
                          *stream);
    const auto replica = static_cast<std::uint64_t>(peers->rank());
    const auto count = static_cast<std::uint64_t>(replicas);
    const std::uint64_t first = kShardElements * replica / count;
    const Piece mine{first, kShardElements * (replica + 1) / count - first};
    const ArenaPlace own{arena.get(), result + first * 2};
    peers->reduce_scatter({.input = {arena.get(), partial},
                           .elements = kShardElements,
                           .mine = mine,
                           .scale = kScale,
                           .output = {.dtype = DType::bf16, .place = own}},
                          *stream);
    peers->all_gather(
        {.dtype = DType::bf16, .input = own, .output = {arena.get(), result}, .elements = kShardElements, .mine = mine},
        *stream);

    for (std::uint64_t i = 0; i < kShardElements; ++i) {
      std::vector<float> values;
      for (int rank = 0; rank < size; ++rank) {
        std::byte wire[2];
        test::store(DType::bf16,
                    test::contribution(rank, static_cast<std::uint64_t>(group->rank()) * kShardElements + i), wire);
        values.push_back(test::load(DType::bf16, wire));
      }
      std::byte expected[2];
      test::store(DType::bf16, test::reduce_in_tree_order(values, shards, kScale), expected);
      ASSERT_EQ(std::memcmp(lease.data() + result + i * 2, expected, 2), 0) << "rank " << world.rank() << ", " << i;
    }
  });
}

TEST(Split, ArenasOfAPartKnowOnlyItsRanks) {
  CpuDevice device;
  test::run_ranks(4, [&](Communicator& world) {
    const auto part = world.split(world.rank() % 2, 0);
    const auto arena = part->make_arena(device, {.tier = MemoryTier::host, .bytes = 1_MiB});
    const int other = (world.rank() + 2) % 4;
    EXPECT_EQ(arena->peer(world.rank()), arena->data());
    EXPECT_NE(arena->peer(other), arena->data());
    EXPECT_THROW(arena->peer((world.rank() + 1) % 4), CheckFailure);
    world.barrier();
  });
}

}  // namespace
}  // namespace shardplan
