// What is particular to ranks that are threads; the rest is in communicator_conformance.cpp.
#include "runtime/local_communicator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/delaying.h"
#include "tests/support/run_ranks.h"

namespace shardplan {
namespace {

using namespace std::chrono_literals;

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

TEST(Abort, WakesSleepersFromAnyThread) {
  auto communicators = make_local_communicators(2, {.hardware_threads = 0});
  std::thread other([&] {
    std::this_thread::sleep_for(20ms);
    communicators[1]->abort("the user pressed a key");
  });
  try {
    communicators[0]->barrier();
    ADD_FAILURE();
  } catch (const CommunicationError& error) {
    EXPECT_EQ(error.rank(), 1);
    EXPECT_EQ(error.operation(), "abort");
    EXPECT_NE(std::string(error.what()).find("the user pressed a key"), std::string::npos);
  }
  other.join();
}

// Deadlines so short that waits run out anywhere, above all while slower peers still read: whatever a rank that gave up
// does to its memory, no peer is reading it (AddressSanitizer and ThreadSanitizer look), and everybody comes to an end.
TEST(Deadlines, ThatRunOutAnywhereLeaveNoReaders) {
  constexpr std::uint64_t kMany = 400'000;
  int failed = 0;
  for (std::uint64_t round = 0; round < 40; ++round) {
    const auto outcomes = test::outcomes_of_ranks(
        3,
        [&](std::unique_ptr<Communicator> inner) {
          CpuDevice cpu;
          RandomDelay delay(round * 3 + static_cast<std::uint64_t>(inner->rank()), 600us);
          DelayingDevice device(cpu, delay);
          DelayingCommunicator communicator(std::move(inner), delay);
          auto arena =
              communicator.make_arena(cpu, {.tier = MemoryTier::device, .bytes = Bytes{kMany * 4} + kArenaShiftRoom});
          const auto stream = device.make_stream();
          for (int i = 0; i < 8; ++i) {
            Lease lease = arena->take(0, Bytes{kMany * 4});
            std::fill(lease.as<float>().begin(), lease.as<float>().end(), 1.0F);
            // Rank 2 has nearly all of the work.
            const auto rank = static_cast<std::uint64_t>(communicator.rank());
            const Piece mine{rank * 100, rank == 2 ? kMany - 200 : 100};
            const ArenaPlace own{arena.get(), mine.first * 4};
            communicator.reduce_scatter(
                {.input = {arena.get(), 0}, .elements = kMany, .mine = mine, .output = {.place = own}}, *stream);
            communicator.all_gather({.input = own, .output = {arena.get(), 0}, .elements = kMany, .mine = mine},
                                    *stream);
            ASSERT_EQ(lease.as<float>()[kMany / 2], 3.0F);
          }
        },
        {.deadline = std::chrono::milliseconds{1 + round % 4}});
    for (const auto& outcome : outcomes) {
      if (!outcome) continue;
      ++failed;
      EXPECT_THROW(std::rethrow_exception(outcome), CommunicationError) << test::message_of(outcome);
    }
  }
  EXPECT_GT(failed, 0);
}

}  // namespace
}  // namespace shardplan
