#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/delaying.h"
#include "runtime/failing.h"
#include "tests/support/run_ranks.h"

namespace shardplan {
namespace {

using namespace std::chrono_literals;

constexpr int kRanks = 4;
constexpr int kCulprit = 2;
constexpr std::uint64_t kElements = 4096;

// What a rank needs to call any collective.
struct Rank {
  explicit Rank(Communicator& its_communicator)
      : communicator(its_communicator),
        arena(communicator.make_arena(device,
                                      {.tier = MemoryTier::device, .bytes = Bytes{kElements * 8} + kArenaShiftRoom})),
        lease(arena->take(0, Bytes{kElements * 8})),
        stream(device.make_stream()),
        mine{kElements / kRanks * static_cast<std::uint64_t>(communicator.rank()), kElements / kRanks} {}

  ReduceScatter reduction() {
    return {.input = {arena.get(), 0},
            .elements = kElements,
            .mine = mine,
            .output = {.place = {arena.get(), kElements * 4}}};
  }
  AllGather gather() {
    return {.input = {arena.get(), kElements * 4}, .output = {arena.get(), 0}, .elements = kElements, .mine = mine};
  }

  Communicator& communicator;
  CpuDevice device;
  std::unique_ptr<SymmetricArena> arena;
  Lease lease;
  std::unique_ptr<Stream> stream;
  Piece mine;
};

const std::map<std::string, std::function<void(Rank&)>> kOperations{
    {"barrier", [](Rank& rank) { rank.communicator.barrier(); }},
    {"all_gather_bytes",
     [](Rank& rank) {
       const std::vector<std::byte> record(8);
       std::vector<std::byte> all(record.size() * kRanks);
       rank.communicator.all_gather_bytes(record, all);
     }},
    {"make_arena",
     [](Rank& rank) { rank.communicator.make_arena(rank.device, {.tier = MemoryTier::host, .bytes = 1_MiB}); }},
    {"reduce_scatter", [](Rank& rank) { rank.communicator.reduce_scatter(rank.reduction(), *rank.stream); }},
    {"all_gather", [](Rank& rank) { rank.communicator.all_gather(rank.gather(), *rank.stream); }},
    {"split", [](Rank& rank) { rank.communicator.split(0, 0); }},
};

class Failures : public testing::TestWithParam<std::string> {
 protected:
  void operation(Rank& rank) const { kOperations.at(GetParam())(rank); }
  void expect_named(const std::exception_ptr& outcome, int culprit) const {
    ASSERT_NE(outcome, nullptr);
    try {
      std::rethrow_exception(outcome);
    } catch (const CommunicationError& error) {
      EXPECT_EQ(error.rank(), culprit) << error.what();
      EXPECT_EQ(error.operation(), GetParam()) << error.what();
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Operations, Failures,
                         testing::Values("barrier", "all_gather_bytes", "make_arena", "reduce_scatter", "all_gather",
                                         "split"),
                         [](const auto& operation) { return operation.param; });

// Later calls throw the same at once, on the communicator and on all of its family.
void expect_poisoned(Communicator& communicator, int culprit) {
  for (int again = 0; again < 2; ++again) {
    try {
      communicator.barrier();
      ADD_FAILURE() << "not poisoned";
    } catch (const CommunicationError& error) {
      EXPECT_EQ(error.rank(), culprit) << error.what();
    }
  }
}

TEST_P(Failures, ARankThatFailsIsNamedToAll) {
  const auto outcomes = test::outcomes_of_ranks(kRanks, [&](std::unique_ptr<Communicator> inner) {
    const bool culprit = inner->rank() == kCulprit;
    Countdown calls(culprit ? 3 : Countdown::kNever);  // make_arena, a barrier, then this
    FailingCommunicator communicator(std::move(inner), calls);
    Rank rank(communicator);
    communicator.barrier();
    try {
      operation(rank);
    } catch (const CommunicationError&) {
      expect_poisoned(communicator, kCulprit);
      throw;
    }
  });
  for (int rank = 0; rank < kRanks; ++rank) {
    const std::string message = test::message_of(outcomes[static_cast<std::size_t>(rank)]);
    EXPECT_NE(message.find("rank 2, " + GetParam()), std::string::npos) << message;
    EXPECT_NE(message.find("the 3-th call was to fail"), std::string::npos) << message;
  }
}

TEST_P(Failures, ARankThatDiesIsNamedToTheOthers) {
  const auto outcomes = test::outcomes_of_ranks(kRanks, [&](std::unique_ptr<Communicator> communicator) {
    Rank rank(*communicator);
    if (communicator->rank() == kCulprit) throw Error("a bug of the client's");
    operation(rank);
  });
  for (int rank = 0; rank < kRanks; ++rank) {
    const auto& outcome = outcomes[static_cast<std::size_t>(rank)];
    if (rank == kCulprit) {
      EXPECT_EQ(test::message_of(outcome), "a bug of the client's");
    } else {
      expect_named(outcome, kCulprit);
      EXPECT_NE(test::message_of(outcome).find("has left the group"), std::string::npos);
    }
  }
}

// The late rank comes only after all others have given up: a hang would be one for good.
TEST_P(Failures, ARankThatStallsIsNamedToAll) {
  std::atomic<int> gave_up{0};
  const auto outcomes =
      test::outcomes_of_ranks(kRanks,
                              [&](std::unique_ptr<Communicator> communicator) {
                                Rank rank(*communicator);
                                while (communicator->rank() == kCulprit && gave_up.load() < kRanks - 1)
                                  std::this_thread::sleep_for(1ms);
                                try {
                                  operation(rank);
                                } catch (const CommunicationError&) {
                                  gave_up.fetch_add(1);
                                  throw;
                                }
                              },
                              {.deadline = 500ms});
  for (const auto& outcome : outcomes) {
    expect_named(outcome, kCulprit);
    EXPECT_NE(test::message_of(outcome).find("deadline 500 ms"), std::string::npos);
  }
}

TEST_P(Failures, AnotherOperationIsNamedOnBothSides) {
  const auto outcomes = test::outcomes_of_ranks(kRanks, [&](std::unique_ptr<Communicator> communicator) {
    Rank rank(*communicator);
    const std::string other = GetParam() == "barrier" ? "all_gather" : "barrier";
    kOperations.at(communicator->rank() == kCulprit ? other : GetParam())(rank);
  });
  for (const auto& outcome : outcomes) {
    const std::string message = test::message_of(outcome);
    EXPECT_NE(message.find("rank 2 calls " + std::string(GetParam() == "barrier" ? "all_gather" : "barrier")),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("rank 0 calls " + GetParam()), std::string::npos) << message;
  }
}

std::vector<std::string> messages_when(const std::function<void(Rank&, bool culprit)>& body) {
  const auto outcomes = test::outcomes_of_ranks(kRanks, [&](std::unique_ptr<Communicator> communicator) {
    Rank rank(*communicator);
    body(rank, communicator->rank() == kCulprit);
  });
  std::vector<std::string> messages;
  for (const auto& outcome : outcomes) messages.push_back(test::message_of(outcome));
  return messages;
}

TEST(Mismatches, AreFoundInEveryArgumentThatMustBeEqual) {
  const std::vector<std::pair<std::string, std::function<void(ReduceScatter&)>>> changes{
      {"wire dtype bf16, rank 0 with wire dtype fp32", [](ReduceScatter& call) { call.wire = DType::bf16; }},
      {"input offset 64, rank 0 with input offset 0",
       [](ReduceScatter& call) { call.input.offset = 64, call.elements -= 0; }},
      {"elements 4000, rank 0 with elements 4096", [](ReduceScatter& call) { call.elements = 4000; }},
      {"group size 2, rank 0 with group size 0", [](ReduceScatter& call) { call.group_size = 2; }},
      {"scale", [](ReduceScatter& call) { call.scale = 0.5F; }}};
  for (const auto& [expected, change] : changes) {
    const auto messages = messages_when([&change = change](Rank& rank, bool culprit) {
      ReduceScatter call = rank.reduction();
      call.output.place.offset = kElements * 4 + 64 * 16;
      if (culprit) change(call);
      rank.communicator.reduce_scatter(call, *rank.stream);
    });
    for (const std::string& message : messages) {
      EXPECT_NE(message.find("rank 2, reduce_scatter: rank 2 calls it with " + expected), std::string::npos) << message;
    }
  }
  for (const std::string& message : messages_when([](Rank& rank, bool culprit) {
         AllGather call = rank.gather();
         if (culprit) call.elements = 4000;
         rank.communicator.all_gather(call, *rank.stream);
       })) {
    EXPECT_NE(message.find("elements 4000, rank 0 with elements 4096"), std::string::npos) << message;
  }
  for (const std::string& message : messages_when([](Rank& rank, bool culprit) {
         rank.communicator.make_arena(rank.device, {.tier = MemoryTier::host, .bytes = culprit ? 2_MiB : 1_MiB});
       })) {
    EXPECT_NE(message.find("bytes 2097152, rank 0 with bytes 1048576"), std::string::npos) << message;
  }
  for (const std::string& message : messages_when([](Rank& rank, bool culprit) {
         const std::vector<std::byte> record(culprit ? 16 : 8);
         std::vector<std::byte> all(record.size() * kRanks);
         rank.communicator.all_gather_bytes(record, all);
       })) {
    EXPECT_NE(message.find("bytes 16, rank 0 with bytes 8"), std::string::npos) << message;
  }
}

TEST(Mismatches, PiecesMustTileTheBuffer) {
  for (const int change : {-8, 8}) {
    for (const std::string& message : messages_when([&](Rank& rank, bool culprit) {
           ReduceScatter call = rank.reduction();
           if (culprit) call.mine.first += static_cast<std::uint64_t>(std::int64_t{change});
           rank.communicator.reduce_scatter(call, *rank.stream);
         })) {
      EXPECT_NE(message.find("rank 2's piece starts at element"), std::string::npos) << message;
    }
  }
  for (const std::string& message : messages_when([&](Rank& rank, bool) {
         AllGather call = rank.gather();
         if (rank.communicator.rank() == kRanks - 1) call.mine.count -= 1;
         rank.communicator.all_gather(call, *rank.stream);
       })) {
    EXPECT_NE(message.find("the ranks' pieces end at element 4095 of 4096"), std::string::npos) << message;
  }
}

TEST(Families, ArePoisonedTogether) {
  const auto outcomes = test::outcomes_of_ranks(kRanks, [&](std::unique_ptr<Communicator> world) {
    const auto part = world->split(world->rank() / 2, 0);
    const auto idle = world->split(0, 0);
    if (world->rank() == 3) throw Error("gone");
    try {
      // Rank 2 waits for rank 3 in their part; ranks 0 and 1 wait for rank 2 in the world.
      (world->rank() == 2 ? *part : *world).barrier();
      ADD_FAILURE();
    } catch (const CommunicationError& error) {
      EXPECT_EQ(error.rank(), 3) << error.what();
    }
    expect_poisoned(*world, 3);
    expect_poisoned(*part, 3);
    expect_poisoned(*idle, 3);
  });
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(test::message_of(outcomes[static_cast<std::size_t>(rank)]), "");
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

TEST(Leaving, IsNoFailureUnlessSomeoneWaits) {
  for (int round = 0; round < 200; ++round) {
    test::run_ranks(3, [](Communicator& communicator) {
      communicator.barrier();
      communicator.barrier();
    });
  }
}

TEST(MakeArena, TellsTheOthersWhoHasNoMemory) {
  const auto outcomes = test::outcomes_of_ranks(kRanks, [&](std::unique_ptr<Communicator> communicator) {
    CpuDevice cpu;
    Countdown allocations(communicator->rank() == kCulprit ? 1 : Countdown::kNever);
    Countdown work;
    FailingDevice device(cpu, allocations, work);
    communicator->make_arena(device, {.tier = MemoryTier::device, .bytes = 1_MiB});
  });
  for (int rank = 0; rank < kRanks; ++rank) {
    const auto& outcome = outcomes[static_cast<std::size_t>(rank)];
    if (rank == kCulprit) {
      EXPECT_THROW(std::rethrow_exception(outcome), OutOfMemory);
    } else {
      EXPECT_THROW(std::rethrow_exception(outcome), CommunicationError);
      EXPECT_NE(test::message_of(outcome).find("rank 2, make_arena: out of device memory"), std::string::npos);
    }
  }
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
