#include "tests/runtime/communicator_conformance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "base/error.h"
#include "runtime/delaying.h"
#include "runtime/failing.h"
#include "tests/runtime/conformance_room.h"
#include "tests/support/allocation_count.h"
#include "tests/support/reference_reduction.h"

namespace shardplan::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kSizes[] = {0, 1, 5, 1023, 1024, 100'003};

class CommunicatorConformance : public testing::TestWithParam<Harness> {
 protected:
  const RankHarness& harness() const { return *GetParam(); }
  int largest_world() const { return test::largest_world(harness()); }

  // Nothing may fail.
  void run(int ranks, const RankHarness::Body& body) const {
    for (const auto& [rank, outcome] : harness().run(ranks, 60s, body)) {
      EXPECT_EQ(outcome.kind, Outcome::Kind::fine) << "rank " << rank << ": " << outcome.message;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorConformance, testing::ValuesIn(harnesses_under_test()), name_of);

// What is about bytes, of those that have some.
class CommunicatorValues : public CommunicatorConformance {};
bool holds_values(const RankHarness& harness) {
  return harness.holds_values();
}
INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorValues, testing::ValuesIn(harnesses_that(holds_values)), name_of);

// What a peer sees of a rank's records while both run: virtual ranks copy them before another has its turn.
class CommunicatorInRealTime : public CommunicatorConformance {};
INSTANTIATE_TEST_SUITE_P(
    Kinds, CommunicatorInRealTime,
    testing::ValuesIn(harnesses_that([](const RankHarness& harness) { return harness.real_time(); })), name_of);

// Of those that train.
class TrainingCommunicator : public CommunicatorConformance {};
INSTANTIATE_TEST_SUITE_P(Kinds, TrainingCommunicator, testing::ValuesIn(harnesses_that([](const RankHarness& harness) {
                           return harness.allocates_nothing();
                         })),
                         name_of);

class CommunicatorOfFour : public CommunicatorConformance {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorOfFour);  // under a launcher with fewer processes
INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorOfFour, testing::ValuesIn(harnesses_that([](const RankHarness& harness) {
                           return largest_world(harness) >= 4;
                         })),
                         name_of);

class CommunicatorOfFourValues : public CommunicatorConformance {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorOfFourValues);
INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorOfFourValues,
                         testing::ValuesIn(harnesses_that([](const RankHarness& harness) {
                           return holds_values(harness) && largest_world(harness) >= 4;
                         })),
                         name_of);

enum class Pieces : std::uint8_t { uneven, equal };

Piece own_piece(Pieces pieces, std::uint64_t elements, const Communicator& communicator) {
  if (pieces == Pieces::uneven) return piece_of(elements, communicator.rank(), communicator.size());
  const std::uint64_t count = elements / static_cast<std::uint64_t>(communicator.size());
  return {count * static_cast<std::uint64_t>(communicator.rank()), count};
}

void check_reduce_scatter(Communicator& communicator, Device& device, std::uint64_t elements, DType wire,
                          int group_size, Pieces pieces = Pieces::uneven) {
  Room room(communicator, device, elements * 4);
  const auto stream = device.make_stream();
  fill(room.full_lease.data(), wire, communicator.rank(), elements);
  fill(room.part_lease.data(), DType::f32, 50, elements);
  ReduceScatter call = room.reduction(elements, wire, own_piece(pieces, elements, communicator));
  call.equal_pieces = pieces == Pieces::equal;
  call.group_size = group_size;
  call.scale = 1.0F / 3.0F;
  call.output.mode = group_size % 2 == 0 ? ReductionOutput::Mode::add : ReductionOutput::Mode::store;
  communicator.reduce_scatter(call, *stream);
  stream->synchronize();
  const auto expected = reduced(call, communicator.size());
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), room.part_lease.data()))
      << elements << " x " << name(wire) << " group " << group_size << " rank " << communicator.rank();

  // In place, rounded to the wire dtype, into this rank's own piece.
  call.output = {.mode = ReductionOutput::Mode::store,
                 .dtype = wire,
                 .place = {room.arena.get(), room.full + call.mine.first * width(wire)}};
  communicator.reduce_scatter(call, *stream);
  stream->synchronize();
  const auto rounded = reduced(call, communicator.size());
  EXPECT_TRUE(std::equal(rounded.begin(), rounded.end(), room.arena->data() + call.output.place.offset));
}

TEST_P(CommunicatorValues, ReduceScatterEqualsTheReference) {
  for (const int ranks : harness().worlds()) {
    run(ranks, [](Communicator& communicator, Device& device) {
      for (const std::uint64_t elements : kSizes) {
        for (const DType wire : {DType::f32, DType::bf16, DType::f16}) {
          for (const int group_size : {kWholeGroup, 1, 2, 3}) {
            check_reduce_scatter(communicator, device, elements, wire, group_size);
          }
        }
      }
    });
  }
}

// Where outputs go past the caches (runtime/streaming_copy.h).
constexpr std::uint64_t kLarge = 1'500'001;

TEST_P(CommunicatorValues, LargeReduceScatterEqualsTheReference) {
  run(2, [](Communicator& communicator, Device& device) {
    check_reduce_scatter(communicator, device, kLarge, DType::bf16, 1);
  });
}

void check_all_gather(Communicator& communicator, Device& device, std::uint64_t elements, DType dtype, bool in_place,
                      Pieces pieces = Pieces::uneven) {
  const std::uint64_t wide = width(dtype);
  Room room(communicator, device, elements * wide);
  const auto stream = device.make_stream();
  const auto byte_at = [](std::uint64_t i) { return static_cast<std::byte>((i * 2654435761U) >> 24); };
  const Piece mine = own_piece(pieces, elements, communicator);
  const std::uint64_t input = in_place ? room.full + mine.first * wide : room.part;
  std::memset(room.full_lease.data(), 0xee, elements * wide);
  for (std::uint64_t i = 0; i < mine.count * wide; ++i) room.arena->data()[input + i] = byte_at(mine.first * wide + i);
  communicator.all_gather({.dtype = dtype,
                           .input = {room.arena.get(), input},
                           .output = {room.arena.get(), room.full},
                           .elements = elements,
                           .mine = mine,
                           .equal_pieces = pieces == Pieces::equal},
                          *stream);
  stream->synchronize();
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 0; i < elements * wide; ++i) wrong += room.full_lease.data()[i] == byte_at(i) ? 0U : 1U;
  EXPECT_EQ(wrong, 0U) << elements << " x " << name(dtype) << (in_place ? " in place" : "") << " rank "
                       << communicator.rank();
}

TEST_P(CommunicatorValues, AllGatherFillsEveryRanksBuffer) {
  for (const int ranks : harness().worlds()) {
    run(ranks, [](Communicator& communicator, Device& device) {
      for (const std::uint64_t elements : kSizes) {
        for (const DType dtype : {DType::f32, DType::bf16, DType::u8, DType::f64}) {
          check_all_gather(communicator, device, elements, dtype, false);
          check_all_gather(communicator, device, elements, dtype, true);
        }
      }
    });
  }
}

TEST_P(CommunicatorValues, EqualPiecesMoveAsOthersDo) {
  for (const int ranks : harness().worlds()) {
    run(ranks, [](Communicator& communicator, Device& device) {
      for (const std::uint64_t piece : {0U, 1U, 1023U, 30'001U}) {
        const std::uint64_t elements = piece * static_cast<std::uint64_t>(communicator.size());
        check_reduce_scatter(communicator, device, elements, DType::bf16, 2, Pieces::equal);
        check_all_gather(communicator, device, elements, DType::f32, false, Pieces::equal);
        check_all_gather(communicator, device, elements, DType::f32, true, Pieces::equal);
      }
    });
  }
}

TEST_P(CommunicatorValues, LargeAllGatherFillsEveryRanksBuffer) {
  run(2, [](Communicator& communicator, Device& device) {
    for (const bool in_place : {false, true}) check_all_gather(communicator, device, kLarge, DType::f32, in_place);
  });
}

TEST_P(CommunicatorConformance, RecordsArriveInRankOrder) {
  for (const int ranks : harness().worlds()) {
    run(ranks, [&](Communicator& communicator, Device&) {
      for (const std::uint64_t bytes : {0U, 1U, 5U, 1023U, 16384U, 100'003U}) {
        std::vector<std::byte> mine(bytes);
        for (std::uint64_t i = 0; i < bytes; ++i)
          mine[i] = static_cast<std::byte>(i + static_cast<std::uint64_t>(communicator.rank()) * 31);
        std::vector<std::byte> all(bytes * static_cast<std::uint64_t>(ranks));
        for (int round = 0; round < 3; ++round) communicator.all_gather_bytes(mine, all);
        for (std::uint64_t i = 0; i < all.size(); ++i) {
          ASSERT_EQ(all[i], static_cast<std::byte>(i % bytes + i / bytes * 31)) << i;
        }
        int seen = 0;
        communicator.visit_records(mine, all, [&](int peer, std::span<const std::byte> record) {
          EXPECT_EQ(peer, seen++);
          ASSERT_EQ(record.size(), bytes);
          if (bytes != 0) {
            EXPECT_EQ(record[bytes - 1], static_cast<std::byte>(bytes - 1 + static_cast<std::uint64_t>(peer) * 31));
          }
        });
        EXPECT_EQ(seen, ranks);
      }
    });
  }
}

TEST_P(CommunicatorInRealTime, RecordsMayLieAtTheirPlaceAndNowhereElse) {
  run(largest_world(), [](Communicator& communicator, Device&) {
    const auto size = static_cast<std::size_t>(communicator.size());
    std::vector<std::byte> all(size * 8, std::byte{9});
    const auto rank = static_cast<std::size_t>(communicator.rank());
    const auto place = [&](std::size_t of) { return std::span(all).subspan(of * 8, 8); };
    std::fill(place(rank).begin(), place(rank).end(), static_cast<std::byte>(rank));
    communicator.all_gather_bytes(place(rank), all);
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], static_cast<std::byte>(i / 8));
    EXPECT_THROW(communicator.all_gather_bytes(std::span(all).first(7), all), CheckFailure);
    if (size == 1) return;
    EXPECT_THROW(communicator.all_gather_bytes(place((rank + 1) % size), all), CheckFailure);
    EXPECT_THROW(communicator.all_gather_bytes(std::span(all).subspan(rank == 0 ? 3 : rank * 8 - 3, 8), all),
                 CheckFailure);
  });
}

// Nobody passes a barrier before all have come to it, by a clock that all ranks of a machine share.
TEST_P(CommunicatorConformance, BarriersHoldEveryRankBack) {
  run(largest_world(), [](Communicator& communicator, Device&) {
    using Times = std::array<std::chrono::steady_clock::time_point, 2>;
    RandomDelay delay(static_cast<std::uint64_t>(communicator.rank()), 200us);
    std::vector<Times> all(static_cast<std::size_t>(communicator.size()));
    for (int round = 0; round < 30; ++round) {
      delay.wait();
      Times mine;
      mine[0] = std::chrono::steady_clock::now();
      communicator.barrier();
      mine[1] = std::chrono::steady_clock::now();
      communicator.all_gather_bytes(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
      for (const Times& came : all) {
        for (const Times& went : all) ASSERT_LE(came[0], went[1]);
      }
    }
  });
}

// Random collectives one after another over the same bytes, with random delays: what is read is never what is next.
TEST_P(CommunicatorValues, CollectivesInOrderHoldUnderRandomDelays) {
  constexpr std::uint64_t kElements = 1500;
  run(largest_world(), [](Communicator& communicator, Device& inner) {
    const int ranks = communicator.size();
    RandomDelay delay(static_cast<std::uint64_t>(communicator.rank()) + 1, 300us);
    DelayingDevice device(inner, delay);
    Room room(communicator, device, kElements * 4);
    const auto stream = device.make_stream();
    const Piece mine = piece_of(kElements, communicator.rank(), ranks);
    const ArenaPlace own{room.arena.get(), room.full + mine.first * 4};
    std::mt19937 random(7);  // the same on every rank
    std::vector<float> expected(kElements, 1.0F);
    auto* full = reinterpret_cast<float*>(room.full_lease.data());
    std::copy(expected.begin(), expected.end(), full);
    for (int round = 0; round < 60; ++round) {
      for (std::uint64_t i = 0; i < kElements; ++i) full[i] += static_cast<float>(communicator.rank() + round);
      ReduceScatter call = room.reduction(kElements, DType::f32, mine);
      call.scale = random() % 2 == 0 ? 0.25F : 0.125F;
      call.output.place = own;
      delay.wait();
      communicator.reduce_scatter(call, *stream);
      delay.wait();
      communicator.all_gather(
          {.input = own, .output = {room.arena.get(), room.full}, .elements = kElements, .mine = mine}, *stream);
      stream->synchronize();
      for (float& value : expected) {
        float sum = value + static_cast<float>(round);
        for (int rank = 1; rank < ranks; ++rank) sum += value + static_cast<float>(rank + round);
        value = sum * call.scale;
      }
      ASSERT_EQ(std::memcmp(full, expected.data(), kElements * 4), 0) << "round " << round;
    }
  });
}

TEST_P(TrainingCommunicator, CallsAllocateNothing) {
  constexpr std::uint64_t kElements = 10'000;
  run(largest_world(), [](Communicator& communicator, Device& device) {
    Room room(communicator, device, kElements * 4);
    const auto stream = device.make_stream();
    const Piece mine = piece_of(kElements, communicator.rank(), communicator.size());
    const ArenaPlace own{room.arena.get(), room.full + mine.first * 4};
    const auto rank = static_cast<std::size_t>(communicator.rank());
    std::vector<std::byte> records(static_cast<std::size_t>(communicator.size()) * 16);
    ReduceScatter reduction = room.reduction(kElements, DType::f32, mine);
    reduction.group_size = 2;
    reduction.output.place = own;
    std::uint64_t before = 0;
    for (int round = 0; round < 6; ++round) {
      if (round == 1) before = allocations_of_this_thread();
      communicator.reduce_scatter(reduction, *stream);
      communicator.all_gather(
          {.input = own, .output = {room.arena.get(), room.full}, .elements = kElements, .mine = mine}, *stream);
      communicator.all_gather_bytes(std::span(records).subspan(rank * 16, 16), records);
      communicator.barrier();
      room.part_lease.give_back();
      room.part_lease = room.arena->take(room.part, Bytes{64});
    }
    EXPECT_EQ(allocations_of_this_thread(), before);
    ::operator delete(::operator new(1));             // called by name, which no compiler leaves out
    EXPECT_GT(allocations_of_this_thread(), before);  // it does count
  });
}

TEST_P(CommunicatorConformance, CallsRefuseWhatTheContractForbids) {
  run(harness().worlds().front(), [](Communicator& communicator, Device& device) {
    Room room(communicator, device, 4096);
    const auto stream = device.make_stream();
    const Piece mine = piece_of(1024, communicator.rank(), communicator.size());
    const ReduceScatter good = room.reduction(1024, DType::f32, mine);
    communicator.reduce_scatter(good, *stream);
    const auto refuses = [&](auto&& change) {
      ReduceScatter bad = good;
      change(bad);
      EXPECT_THROW(communicator.reduce_scatter(bad, *stream), CheckFailure);
    };
    refuses([](ReduceScatter& call) { call.input.arena = nullptr; });
    refuses([](ReduceScatter& call) { call.wire = DType::f64; });
    refuses([](ReduceScatter& call) { call.input.offset += 2; });
    refuses([](ReduceScatter& call) { call.input.offset += 4; });  // leaves the lease
    refuses([](ReduceScatter& call) { call.group_size = -1; });
    if (mine.count > 1)
      refuses([](ReduceScatter& call) { call.output.place.offset = 5000; });  // shifted inside the input
    EXPECT_THROW(communicator.all_gather({.dtype = DType::f4,
                                          .input = {room.arena.get(), room.part},
                                          .output = {room.arena.get(), room.full},
                                          .elements = 8,
                                          .mine = mine},
                                         *stream),
                 CheckFailure);
    room.part_lease.give_back();
    EXPECT_THROW(communicator.reduce_scatter(good, *stream), CheckFailure);  // the output is nobody's now
  });
}

TEST_P(CommunicatorConformance, ArenasAreSymmetric) {
  run(largest_world(), [](Communicator& communicator, Device& device) {
    Room room(communicator, device, 4096);
    EXPECT_EQ(room.arena->peer(communicator.world_rank()), room.arena->data());
    EXPECT_THROW(room.arena->peer(communicator.size()), CheckFailure);
    const auto second = communicator.make_arena(device, {.tier = MemoryTier::host, .bytes = 1_MiB});
    EXPECT_NE(second->group().id(), room.arena->group().id());
    EXPECT_EQ(second->capacity(), 1_MiB - kArenaShiftRoom);
  });
}

TEST_P(CommunicatorConformance, SplitOrdersByKeyThenRank) {
  run(largest_world(), [](Communicator& world, Device&) {
    const int color = world.rank() % 2;
    const int members = (world.size() + 1 - color) / 2;
    const auto part = world.split(color, -world.rank());
    ASSERT_NE(part, nullptr);
    EXPECT_EQ(part->size(), members);
    EXPECT_EQ(part->rank(), members - 1 - world.rank() / 2);
    EXPECT_EQ(part->world_rank(), world.rank());
    EXPECT_EQ(part->deadline(), world.deadline());
    const auto same = world.split(color, 0);
    EXPECT_EQ(same->rank(), world.rank() / 2);
    const auto pairs = part->split(part->rank() / 2, 0);
    EXPECT_EQ(pairs->rank(), part->rank() % 2);
    pairs->barrier();
  });
}

TEST_P(CommunicatorConformance, SplitLeavesOutThoseWithoutColor) {
  run(largest_world(), [](Communicator& world, Device&) {
    const auto part = world.split(world.rank() == 1 ? -1 : 0, 0);
    EXPECT_EQ(part == nullptr, world.rank() == 1);
    if (part) part->barrier();
    world.barrier();
  });
}

TEST_P(CommunicatorOfFour, ArenasOfAPartKnowOnlyItsRanks) {
  run(4, [&](Communicator& world, Device& device) {
    const auto part = world.split(world.rank() % 2, 0);
    const auto arena = part->make_arena(device, {.tier = MemoryTier::host, .bytes = 1_MiB});
    world.barrier();
    EXPECT_EQ(arena->peer(world.rank()), arena->data());
    if (world.reads_peers()) {
      EXPECT_NE(arena->peer((world.rank() + 2) % 4), arena->data());
    }
    EXPECT_THROW(arena->peer((world.rank() + 1) % 4), CheckFailure);
    world.barrier();
  });
}

TEST_P(CommunicatorConformance, LeavingIsNoFailureUnlessSomeoneWaits) {
  for (int round = 0; round < 20; ++round) {
    run(largest_world(), [](Communicator& communicator, Device&) {
      communicator.barrier();
      communicator.barrier();
    });
  }
}

// Hybrid sharding: sums within shard groups, then over the replicas, each of which reduces a part of the shard and
// gathers the rest. Equal to one flat reduction that names the same tree.
void check_hybrid(Communicator& world, Device& device, int shards) {
  constexpr std::uint64_t kShardElements = 5003;
  constexpr float kScale = 1.0F / 7.0F;
  const std::uint64_t elements = kShardElements * static_cast<std::uint64_t>(shards);
  const auto group = world.split(world.rank() / shards, 0);
  const auto peers = world.split(world.rank() % shards, 0);
  const auto stream = device.make_stream();
  Room room(world, device, (elements + kShardElements) * 4);
  const std::uint64_t partial = room.part;
  const std::uint64_t result = partial + round_up(kShardElements * 4, 64);
  fill(room.full_lease.data(), DType::bf16, world.rank(), elements);

  room.part_lease.give_back();
  room.part_lease = room.arena->take(partial, Bytes{round_up(kShardElements * 4, 64) + kShardElements * 2});
  ReduceScatter within = room.reduction(elements, DType::bf16,
                                        {static_cast<std::uint64_t>(group->rank()) * kShardElements, kShardElements});
  within.output = {.place = {room.arena.get(), partial}};
  group->reduce_scatter(within, *stream);
  const auto replica = static_cast<std::uint64_t>(peers->rank());
  const auto count = static_cast<std::uint64_t>(peers->size());
  const std::uint64_t first = kShardElements * replica / count;
  const Piece mine{first, kShardElements * (replica + 1) / count - first};
  const ArenaPlace own{room.arena.get(), result + first * 2};
  ReduceScatter across = room.reduction(kShardElements, DType::f32, mine);
  across.input = {room.arena.get(), partial};
  across.scale = kScale;
  across.output = {.dtype = DType::bf16, .place = own};
  peers->reduce_scatter(across, *stream);
  peers->all_gather({.dtype = DType::bf16,
                     .input = own,
                     .output = {room.arena.get(), result},
                     .elements = kShardElements,
                     .mine = mine},
                    *stream);
  stream->synchronize();

  const ReduceScatter flat{.wire = DType::bf16,
                           .mine = {static_cast<std::uint64_t>(group->rank()) * kShardElements, kShardElements},
                           .group_size = shards,
                           .scale = kScale,
                           .output = {.dtype = DType::bf16}};
  const auto expected = reduced(flat, world.size());
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), room.arena->data() + result)) << "rank " << world.rank();
}

TEST_P(CommunicatorOfFourValues, HybridEqualsOneTreeBitForBit) {
  for (const int shards : {1, 2, 4}) {
    run(4, [&](Communicator& world, Device& device) { check_hybrid(world, device, shards); });
  }
  if (largest_world() < 6) return;
  for (const int shards : {2, 3}) {
    run(6, [&](Communicator& world, Device& device) { check_hybrid(world, device, shards); });
  }
}

}  // namespace
}  // namespace shardplan::test
