#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/delaying.h"
#include "tests/support/allocation_count.h"
#include "tests/support/reference_reduction.h"
#include "tests/support/run_ranks.h"

namespace shardplan {
namespace {

std::uint64_t width(DType dtype) {
  return bits(dtype) / 8;
}

// An uneven tiling, empty for some ranks: rank r starts at (r^2 + r/2) / N^2 of the buffer.
Piece piece_of(std::uint64_t elements, int rank, int ranks) {
  const auto start = [&](std::uint64_t r) {
    const auto n = static_cast<std::uint64_t>(ranks);
    return r == n ? elements : elements * r * r / (n * n);
  };
  const std::uint64_t first = start(static_cast<std::uint64_t>(rank));
  return {.first = first, .count = start(static_cast<std::uint64_t>(rank) + 1) - first};
}

// One rank's arena: a full buffer at `full`, room for a piece at `part`.
struct Room {
  std::uint64_t full = 4096;
  std::uint64_t part = 0;
  std::unique_ptr<SymmetricArena> arena;
  Lease full_lease;
  Lease part_lease;

  Room(Communicator& communicator, Device& device, std::uint64_t bytes) {
    part = round_up(full + bytes, 64) + 4096;
    const Bytes all = Bytes{part} + Bytes{bytes} + kArenaShiftRoom;
    arena = communicator.make_arena(device, {.tier = MemoryTier::device, .bytes = all});
    full_lease = arena->take(full, Bytes{bytes});
    part_lease = arena->take(part, Bytes{bytes});
  }
};

void fill(std::byte* at, DType dtype, int rank, std::uint64_t elements) {
  for (std::uint64_t i = 0; i < elements; ++i) test::store(dtype, test::contribution(rank, i), at + i * width(dtype));
}

// What reduce_scatter must leave for elements [first, first + count).
std::vector<std::byte> reduced(const ReduceScatter& call, int ranks) {
  std::vector<std::byte> bytes(call.mine.count * width(call.output.dtype));
  for (std::uint64_t i = 0; i < call.mine.count; ++i) {
    std::vector<float> values;
    for (int rank = 0; rank < ranks; ++rank) {
      std::byte wire[4];
      test::store(call.wire, test::contribution(rank, call.mine.first + i), wire);
      values.push_back(test::load(call.wire, wire));
    }
    float value = test::reduce_in_tree_order(values, call.group_size, call.scale);
    std::byte* at = bytes.data() + i * width(call.output.dtype);
    if (call.output.mode == ReductionOutput::Mode::add) {
      std::byte before[4];
      test::store(call.output.dtype, test::contribution(50, i), before);
      value = test::load(call.output.dtype, before) + value;
    }
    test::store(call.output.dtype, value, at);
  }
  return bytes;
}

class Collectives : public testing::TestWithParam<std::tuple<int, std::uint64_t>> {
 protected:
  int ranks() const { return std::get<0>(GetParam()); }
  std::uint64_t elements() const { return std::get<1>(GetParam()); }
  CpuDevice device_;
};

INSTANTIATE_TEST_SUITE_P(Worlds, Collectives,
                         testing::Combine(testing::Values(1, 2, 3, 4, 7),
                                          testing::Values(0U, 1U, 5U, 1023U, 1024U, 100'003U)));

TEST_P(Collectives, ReduceScatterEqualsTheReference) {
  for (const DType wire : {DType::f32, DType::bf16, DType::f16}) {
    for (const int group_size : {kWholeGroup, 1, 2, 3}) {
      test::run_ranks(ranks(), [&](Communicator& communicator) {
        Room room(communicator, device_, elements() * 4);
        const auto stream = device_.make_stream();
        fill(room.full_lease.data(), wire, communicator.rank(), elements());
        fill(room.part_lease.data(), DType::f32, 50, elements());
        ReduceScatter call{
            .wire = wire,
            .input = {room.arena.get(), room.full},
            .elements = elements(),
            .mine = piece_of(elements(), communicator.rank(), ranks()),
            .group_size = group_size,
            .scale = 1.0F / 3.0F,
            .output = {.mode = group_size % 2 == 0 ? ReductionOutput::Mode::add : ReductionOutput::Mode::store,
                       .dtype = DType::f32,
                       .place = {room.arena.get(), room.part}}};
        communicator.reduce_scatter(call, *stream);
        const auto expected = reduced(call, ranks());
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), room.part_lease.data()))
            << name(wire) << " group " << group_size << " rank " << communicator.rank();

        // In place, rounded to the wire dtype, into this rank's own piece.
        call.output = {.dtype = wire, .place = {room.arena.get(), room.full + call.mine.first * width(wire)}};
        communicator.reduce_scatter(call, *stream);
        const auto rounded = reduced(call, ranks());
        EXPECT_TRUE(std::equal(rounded.begin(), rounded.end(), room.arena->data() + call.output.place.offset));
      });
    }
  }
}

TEST_P(Collectives, AllGatherFillsEveryRanksBuffer) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::u8, DType::f64}) {
    for (const bool in_place : {false, true}) {
      test::run_ranks(ranks(), [&](Communicator& communicator) {
        const std::uint64_t wide = width(dtype);
        Room room(communicator, device_, elements() * wide);
        const auto stream = device_.make_stream();
        const auto byte_at = [](std::uint64_t i) { return static_cast<std::byte>((i * 2654435761U) >> 24); };
        const Piece mine = piece_of(elements(), communicator.rank(), ranks());
        const std::uint64_t input = in_place ? room.full + mine.first * wide : room.part;
        std::memset(room.full_lease.data(), 0xee, elements() * wide);
        for (std::uint64_t i = 0; i < mine.count * wide; ++i)
          room.arena->data()[input + i] = byte_at(mine.first * wide + i);
        communicator.all_gather({.dtype = dtype,
                                 .input = {room.arena.get(), input},
                                 .output = {room.arena.get(), room.full},
                                 .elements = elements(),
                                 .mine = mine},
                                *stream);
        std::uint64_t wrong = 0;
        for (std::uint64_t i = 0; i < elements() * wide; ++i)
          wrong += room.full_lease.data()[i] == byte_at(i) ? 0U : 1U;
        EXPECT_EQ(wrong, 0U) << name(dtype) << (in_place ? " in place" : "") << " rank " << communicator.rank();
      });
    }
  }
}

TEST_P(Collectives, RecordsArriveInRankOrder) {
  test::run_ranks(ranks(), [&](Communicator& communicator) {
    const std::uint64_t bytes = elements() % 2048;
    std::vector<std::byte> mine(bytes);
    for (std::uint64_t i = 0; i < bytes; ++i)
      mine[i] = static_cast<std::byte>(i + static_cast<std::uint64_t>(communicator.rank()) * 31);
    std::vector<std::byte> all(bytes * static_cast<std::uint64_t>(ranks()));
    for (int round = 0; round < 3; ++round) communicator.all_gather_bytes(mine, all);
    for (std::uint64_t i = 0; i < all.size(); ++i) {
      ASSERT_EQ(all[i], static_cast<std::byte>(i % bytes + i / bytes * 31)) << i;
    }
  });
}

TEST(Records, MayLieAtTheirPlaceAndNowhereElse) {
  test::run_ranks(3, [&](Communicator& communicator) {
    std::vector<std::byte> all(3 * 8, std::byte{9});
    const auto rank = static_cast<std::size_t>(communicator.rank());
    const auto place = [&](std::size_t of) { return std::span(all).subspan(of * 8, 8); };
    std::fill(place(rank).begin(), place(rank).end(), static_cast<std::byte>(rank));
    communicator.all_gather_bytes(place(rank), all);
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], static_cast<std::byte>(i / 8));
    EXPECT_THROW(communicator.all_gather_bytes(place((rank + 1) % 3), all), CheckFailure);
    EXPECT_THROW(communicator.all_gather_bytes(std::span(all).subspan(3 + rank * 4, 8), all), CheckFailure);
  });
}

// Nobody passes a barrier before all have come to it.
TEST(Barrier, HoldsEveryRankBack) {
  for (const unsigned hardware_threads : {0U, 64U}) {  // sleeping, spinning
    std::atomic<int> arrived{0};
    test::run_ranks(4,
                    [&](Communicator& communicator) {
                      for (int round = 1; round <= 50; ++round) {
                        arrived.fetch_add(1);
                        communicator.barrier();
                        EXPECT_GE(arrived.load(), 4 * round);
                        communicator.barrier();
                      }
                    },
                    {.hardware_threads = hardware_threads});
  }
}

// Random collectives one after another over the same bytes, with random delays: what is read is never what is next.
TEST(CollectivesInOrder, HoldUnderRandomDelays) {
  constexpr int kRanks = 4;
  constexpr std::uint64_t kElements = 1500;
  const auto outcomes = test::outcomes_of_ranks(kRanks, [&](std::unique_ptr<Communicator> inner) {
    CpuDevice cpu;
    RandomDelay delay(static_cast<std::uint64_t>(inner->rank()) + 1, std::chrono::microseconds{300});
    DelayingDevice device(cpu, delay);
    DelayingCommunicator communicator(std::move(inner), delay);
    Room room(communicator, device, kElements * 4);
    const auto stream = device.make_stream();
    const Piece mine = piece_of(kElements, communicator.rank(), kRanks);
    const ArenaPlace own{room.arena.get(), room.full + mine.first * 4};
    std::mt19937 random(7);  // the same on every rank
    std::vector<float> expected(kElements, 1.0F);
    auto* full = reinterpret_cast<float*>(room.full_lease.data());
    std::copy(expected.begin(), expected.end(), full);
    for (int round = 0; round < 100; ++round) {
      for (std::uint64_t i = 0; i < kElements; ++i) full[i] += static_cast<float>(communicator.rank() + round);
      const float scale = random() % 2 == 0 ? 0.25F : 0.125F;
      communicator.reduce_scatter({.input = {room.arena.get(), room.full},
                                   .elements = kElements,
                                   .mine = mine,
                                   .scale = scale,
                                   .output = {.place = own}},
                                  *stream);
      communicator.all_gather(
          {.input = own, .output = {room.arena.get(), room.full}, .elements = kElements, .mine = mine}, *stream);
      for (std::uint64_t i = 0; i < kElements; ++i) {
        float sum = expected[i] + static_cast<float>(round);
        for (int rank = 1; rank < kRanks; ++rank) sum += expected[i] + static_cast<float>(rank + round);
        expected[i] = sum * scale;
      }
      ASSERT_EQ(std::memcmp(full, expected.data(), kElements * 4), 0) << "round " << round;
    }
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(test::message_of(outcome), "");
}

TEST(CollectiveCalls, AllocateNothing) {
  constexpr std::uint64_t kElements = 10'000;
  CpuDevice device;
  for (const unsigned hardware_threads : {0U, 64U}) {
    test::run_ranks(
        3,
        [&](Communicator& communicator) {
          Room room(communicator, device, kElements * 4);
          const auto stream = device.make_stream();
          const Piece mine = piece_of(kElements, communicator.rank(), 3);
          const ArenaPlace own{room.arena.get(), room.full + mine.first * 4};
          std::vector<std::byte> records(3 * 16);
          const std::uint64_t before = test::allocations_of_this_thread();
          for (int round = 0; round < 5; ++round) {
            communicator.reduce_scatter({.input = {room.arena.get(), room.full},
                                         .elements = kElements,
                                         .mine = mine,
                                         .group_size = 2,
                                         .output = {.place = own}},
                                        *stream);
            communicator.all_gather(
                {.input = own, .output = {room.arena.get(), room.full}, .elements = kElements, .mine = mine}, *stream);
            communicator.all_gather_bytes(
                std::span(records).subspan(static_cast<std::size_t>(communicator.rank()) * 16, 16), records);
            communicator.barrier();
            room.part_lease.give_back();
            room.part_lease = room.arena->take(room.part, Bytes{64});
          }
          EXPECT_EQ(test::allocations_of_this_thread(), before);
          EXPECT_NE(std::vector<int>(1).data(), nullptr);
          EXPECT_GT(test::allocations_of_this_thread(), before);  // it does count
        },
        {.hardware_threads = hardware_threads});
  }
}

TEST(CollectiveCalls, RefuseWhatTheContractForbids) {
  CpuDevice device;
  test::run_ranks(1, [&](Communicator& communicator) {
    Room room(communicator, device, 4096);
    const auto stream = device.make_stream();
    const ReduceScatter good{.input = {room.arena.get(), room.full},
                             .elements = 1024,
                             .mine = {.first = 0, .count = 1024},
                             .output = {.place = {room.arena.get(), room.part}}};
    communicator.reduce_scatter(good, *stream);
    const auto refuses = [&](auto&& change) {
      ReduceScatter bad = good;
      change(bad);
      EXPECT_THROW(communicator.reduce_scatter(bad, *stream), CheckFailure);
    };
    refuses([](ReduceScatter& call) { call.input.arena = nullptr; });
    refuses([](ReduceScatter& call) { call.wire = DType::f64; });
    refuses([](ReduceScatter& call) { call.input.offset += 2; });
    refuses([](ReduceScatter& call) { call.input.offset += 4; });           // leaves the lease
    refuses([](ReduceScatter& call) { call.output.place.offset = 5000; });  // shifted inside the input
    refuses([](ReduceScatter& call) { call.group_size = -1; });
    std::vector<std::byte> all(3);
    EXPECT_THROW(communicator.all_gather_bytes(std::span(all).first(2), all), CheckFailure);  // of another size
    EXPECT_THROW(communicator.all_gather({.dtype = DType::f4,
                                          .input = {room.arena.get(), room.part},
                                          .output = {room.arena.get(), room.full},
                                          .elements = 8,
                                          .mine = {.first = 0, .count = 8}},
                                         *stream),
                 CheckFailure);
    room.part_lease.give_back();
    EXPECT_THROW(communicator.reduce_scatter(good, *stream), CheckFailure);  // the output is nobody's now
  });
}

// The last rank to leave frees the memory; until then what it reads is there, and is a peer's.
TEST(SymmetricArena, OutlivesTheRanksThatLeft) {
  CpuDevice device;
  std::atomic<int> left{0};
  test::run_ranks(3, [&](Communicator& communicator) {
    auto arena = communicator.make_arena(device, {.tier = MemoryTier::device, .bytes = 1_MiB});
    Lease lease = arena->take(0, 64_B);
    lease.as<int>()[5] = communicator.rank() + 100;
    communicator.barrier();
    EXPECT_EQ(reinterpret_cast<const int*>(arena->peer(2))[5], 102);
    communicator.barrier();
    if (communicator.rank() == 0) {
      while (left.load() < 2) std::this_thread::yield();
      lease.as<int>()[5] = 7;
      EXPECT_EQ(arena->peer(0), arena->data());
      EXPECT_NE(arena->peer(1), nullptr);
      EXPECT_THROW(arena->peer(3), CheckFailure);
    }
    lease.give_back();
    arena.reset();
    left.fetch_add(1);
  });
}

}  // namespace
}  // namespace shardplan
