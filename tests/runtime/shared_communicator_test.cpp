// What is particular to ranks that are processes: they can be killed and stopped one by one, and must leave nothing behind.
// The rest is in communicator_conformance.cpp.
#include "runtime/shared/shared_communicator.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/failing.h"
#include "runtime/recording_device.h"
#include "tests/support/run_processes.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr int kRanks = 3;
constexpr int kCulprit = 2;

std::size_t entries_of(const std::string& folder) {
  const std::filesystem::directory_iterator begin(folder);
  return static_cast<std::size_t>(std::distance(begin, std::filesystem::directory_iterator{}));
}

void expect_named(const Outcome& outcome, const std::string& operation, const std::string& problem) {
  EXPECT_EQ(outcome.kind, Outcome::Kind::communication_error) << outcome.message;
  EXPECT_EQ(outcome.rank, kCulprit) << outcome.message;
  EXPECT_EQ(outcome.operation, operation) << outcome.message;
  EXPECT_NE(outcome.message.find(problem), std::string::npos) << outcome.message;
}

// One process tells another one that it has come so far.
class Mark {
 public:
  void set() const { folder_.write("mark", ""); }
  void wait() const {
    while (!std::filesystem::exists(folder_.path("mark"))) std::this_thread::sleep_for(1ms);
  }

 private:
  test_support::TemporaryFolder folder_;
};

// The others wait in a barrier when the signal comes, or are about to.
TEST(SharedCommunicator, AKilledProcessIsFoundLongBeforeTheDeadline) {
  const auto start = Clock::now();
  const Mark up;
  const auto outcomes = run_shared_ranks(
      kRanks,
      [&](std::unique_ptr<Communicator> communicator) {
        communicator->barrier();
        if (communicator->rank() == kCulprit) {
          up.set();
          std::this_thread::sleep_for(1h);
        }
        communicator->barrier();
      },
      {.deadline = 600s},
      [&](const std::vector<pid_t>& processes) {
        up.wait();
        std::this_thread::sleep_for(50ms);
        kill(processes[kCulprit], SIGKILL);
      });
  EXPECT_LT(Clock::now() - start, 300s);
  EXPECT_EQ(outcomes[kCulprit].kind, Outcome::Kind::died);
  for (const int rank : {0, 1}) {
    const Outcome& outcome = outcomes[static_cast<std::size_t>(rank)];
    EXPECT_EQ(outcome.kind, Outcome::Kind::communication_error) << outcome.message;
    EXPECT_EQ(outcome.rank, kCulprit) << outcome.message;
    EXPECT_NE(outcome.message.find("has died"), std::string::npos) << outcome.message;
  }
}

// A stream whose launches kill the process: it dies inside of the collective, between two instructions of its own.
class DeadlyDevice final : public ForwardingDevice {
 public:
  explicit DeadlyDevice(Device& inner) : ForwardingDevice(inner) {}
  std::unique_ptr<Stream> make_stream() override {
    class DeadlyStream final : public InterposedStream {
     public:
      using InterposedStream::InterposedStream;

     protected:
      void before(std::string_view) override { kill(getpid(), SIGKILL); }
    };
    return std::make_unique<DeadlyStream>(ForwardingDevice::make_stream());
  }
};

TEST(SharedCommunicator, ACollectiveNamesTheProcessThatDiedInIt) {
  const auto outcomes = run_shared_ranks(kRanks, [](std::unique_ptr<Communicator> communicator) {
    CpuDevice cpu(HostPages::shareable);
    DeadlyDevice deadly(cpu);
    const auto arena = communicator->make_arena(cpu, {.tier = MemoryTier::device, .bytes = 1_MiB});
    const Lease lease = arena->take(0, 8192_B);
    const auto stream = communicator->rank() == kCulprit ? deadly.make_stream() : cpu.make_stream();
    const std::uint64_t first = static_cast<std::uint64_t>(communicator->rank()) * 256;
    communicator->reduce_scatter({.input = {arena.get(), 0},
                                  .elements = 768,
                                  .mine = {first, 256},
                                  .output = {.place = {arena.get(), first * 4}}},
                                 *stream);
  });
  EXPECT_EQ(outcomes[kCulprit].message, "signal 9");
  for (const std::size_t rank : {0U, 1U}) expect_named(outcomes[rank], "reduce_scatter", "has died");
}

// Killed at any instant of a loop of collectives: whatever the process was just writing, its peers come to an end.
TEST(SharedCommunicator, AProcessMayBeKilledAtAnyInstant) {
  for (int round = 0; round < 12; ++round) {
    const Mark up;
    const auto outcomes = run_shared_ranks(
        kRanks,
        [&](std::unique_ptr<Communicator> communicator) {
          if (communicator->rank() == kCulprit) up.set();
          CpuDevice cpu(HostPages::shareable);
          for (;;) {
            const auto arena = communicator->make_arena(cpu, {.tier = MemoryTier::device, .bytes = 64_KiB});
            communicator->split(communicator->rank() % 2, 0);
            const std::vector<std::byte> mine(40'000);
            std::vector<std::byte> all(kRanks * mine.size());
            communicator->all_gather_bytes(mine, all);
          }
        },
        {.deadline = 600s},
        [&](const std::vector<pid_t>& processes) {
          up.wait();
          std::this_thread::sleep_for(round * 1300us);
          kill(processes[kCulprit], SIGKILL);
        });
    EXPECT_EQ(outcomes[kCulprit].message, "signal 9");
    for (const std::size_t rank : {0U, 1U}) {
      EXPECT_EQ(outcomes[rank].kind, Outcome::Kind::communication_error) << outcomes[rank].message;
    }
  }
}

TEST(SharedCommunicator, AStoppedProcessIsNamedAtTheDeadline) {
  const auto outcomes = run_shared_ranks(
      kRanks,
      [](std::unique_ptr<Communicator> communicator) {
        communicator->barrier();
        if (communicator->rank() == kCulprit) raise(SIGSTOP);
        communicator->barrier();
      },
      {.deadline = 500ms},
      [](const std::vector<pid_t>& processes) {
        for (const int rank : {0, 1}) {
          siginfo_t ended{};
          waitid(P_PID, static_cast<id_t>(processes[static_cast<std::size_t>(rank)]), &ended, WEXITED | WNOWAIT);
        }
        kill(processes[kCulprit], SIGCONT);
      });
  for (const Outcome& outcome : outcomes) expect_named(outcome, "barrier", "did not arrive before the deadline");
}

TEST(SharedCommunicator, AProcessThatExitsEarlyIsNamed) {
  const auto outcomes = run_shared_ranks(kRanks, [](std::unique_ptr<Communicator> communicator) {
    communicator->barrier();
    if (communicator->rank() == kCulprit) _exit(5);
    const std::byte mine{1};
    std::vector<std::byte> all(kRanks);
    communicator->all_gather_bytes({&mine, 1}, all);
  });
  EXPECT_EQ(outcomes[kCulprit].message, "exit status 5");
  for (const std::size_t rank : {0U, 1U}) expect_named(outcomes[rank], "all_gather_bytes", "has died");
}

TEST(SharedCommunicator, WhatIsMappedStaysWhenItsMakerIsGone) {
  const auto outcomes = run_shared_ranks(2, [](std::unique_ptr<Communicator> communicator) {
    CpuDevice cpu(HostPages::shareable);
    RecordingDevice device(cpu);  // what stands before the device passes its handle on
    const auto arena = communicator->make_arena(device, {.tier = MemoryTier::device, .bytes = 1_MiB});
    Lease lease = arena->take(0, 64_B);
    lease.as<int>()[5] = communicator->rank() + 100;
    communicator->barrier();
    if (communicator->rank() == 1) _exit(0);
    EXPECT_EQ(reinterpret_cast<const int*>(arena->peer(1))[5], 101);
    EXPECT_THROW(communicator->barrier(), CommunicationError);  // rank 1 is gone
    EXPECT_EQ(reinterpret_cast<const int*>(arena->peer(1))[5], 101);
  });
  EXPECT_EQ(outcomes[0].message, "");
}

TEST(SharedCommunicator, RefusesMemoryThatOthersCannotMap) {
  const auto outcomes = run_shared_ranks(2, [](std::unique_ptr<Communicator> communicator) {
    CpuDevice own;
    communicator->make_arena(own, {.tier = MemoryTier::device, .bytes = 1_MiB});
  });
  for (const Outcome& outcome : outcomes) {
    EXPECT_NE(outcome.message.find("expected CpuDevice(HostPages::shareable)"), std::string::npos) << outcome.message;
  }
}

TEST(SharedCommunicator, LeavesNoDescriptorsBehind) {
  const std::size_t before = entries_of("/proc/self/fd");
  const auto outcomes = run_shared_ranks(2, [&](std::unique_ptr<Communicator> communicator) {
    CpuDevice cpu(HostPages::shareable);
    const std::size_t with_world = entries_of("/proc/self/fd");
    EXPECT_EQ(with_world, before + 2);  // the two processes are watched
    for (int i = 0; i < 5; ++i) {
      const auto arena = communicator->make_arena(cpu, {.tier = MemoryTier::device, .bytes = 1_MiB});
      const auto part = communicator->split(0, 0);
      part->barrier();
      EXPECT_EQ(entries_of("/proc/self/fd"), with_world + 1);  // this rank's arena
    }
    communicator.reset();
    EXPECT_EQ(entries_of("/proc/self/fd"), before);
  });
  for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.message, "");
  EXPECT_EQ(entries_of("/proc/self/fd"), before);
}

TEST(SharedCommunicator, RanksThatDoNotFitTogetherAreRefusedOnEveryRank) {
  const test_support::TemporaryFolder folder;
  const auto outcomes = run_processes(2, [&](int rank) {
    // Both believe that they are rank 0 of 2.
    make_shared_communicator(0, 2, exchange_through_folder(folder.path(), rank, 2));
  });
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.kind, Outcome::Kind::communication_error) << outcome.message;
    EXPECT_NE(outcome.message.find("the exchange gave rank 0 of 2 where rank 1 of 2 was expected"), std::string::npos)
        << outcome.message;
  }
}

TEST(SharedCommunicator, TellsWhoseMemoryCannotBeReached) {
  const test_support::TemporaryFolder folder;
  const auto outcomes = run_processes(2, [&](int rank) {
    const ExchangeBlobs honest = exchange_through_folder(folder.path(), rank, 2);
    int round = 0;
    // On the way to rank 1 the process of rank 0 gets a number that no process has.
    make_shared_communicator(rank, 2, [&](std::span<const std::byte> mine, std::span<std::byte> all) {
      honest(mine, all);
      const pid_t nobody = 1 << 30;
      if (round++ == 0 && rank == 1) std::memcpy(all.data() + 2 * sizeof(int), &nobody, sizeof(nobody));
    });
  });
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.rank, 1) << outcome.message;
    EXPECT_NE(outcome.message.find("the process of rank 0 cannot be watched"), std::string::npos) << outcome.message;
  }
}

TEST(FolderExchange, GathersInRankOrderAndCleansUp) {
  const test_support::TemporaryFolder folder;
  const auto outcomes = run_processes(4, [&](int rank) {
    const ExchangeBlobs exchange = exchange_through_folder(folder.path(), rank, 4);
    for (int round = 0; round < 5; ++round) {
      const auto mine = static_cast<std::byte>(10 * round + rank);
      std::vector<std::byte> all(4);
      exchange({&mine, 1}, all);
      for (std::size_t peer = 0; peer < 4; ++peer) {
        EXPECT_EQ(all[peer], static_cast<std::byte>(10 * round + static_cast<int>(peer)));
      }
    }
  });
  for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.message, "");
  EXPECT_EQ(entries_of(folder.path()), 4U);  // the last round's
}

TEST(FolderExchange, NamesWhoeverDoesNotCome) {
  const test_support::TemporaryFolder folder;
  const ExchangeBlobs exchange = exchange_through_folder(folder.path(), 0, 2, 50ms);
  const std::byte mine{1};
  std::vector<std::byte> all(2);
  try {
    exchange({&mine, 1}, all);
    ADD_FAILURE() << "there is no rank 1";
  } catch (const CommunicationError& error) {
    EXPECT_EQ(error.rank(), 1);
    EXPECT_NE(std::string(error.what()).find(folder.path()), std::string::npos) << error.what();
  }
}

TEST(FolderExchange, RefusesAFolderThatWasUsedBefore) {
  const test_support::TemporaryFolder folder;
  const std::byte mine{1};
  std::vector<std::byte> all(1);
  exchange_through_folder(folder.path(), 0, 1)({&mine, 1}, all);
  EXPECT_THROW(exchange_through_folder(folder.path(), 0, 1)({&mine, 1}, all), IoError);
  EXPECT_THROW(exchange_through_folder(folder.path("nothing"), 0, 1)({&mine, 1}, all), IoError);
}

}  // namespace
}  // namespace shardplan::test
