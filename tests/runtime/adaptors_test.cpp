#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/arena.h"
#include "runtime/cpu_device.h"
#include "runtime/delaying.h"
#include "runtime/failing.h"
#include "runtime/limited_device.h"
#include "runtime/recording_device.h"
#include "tests/support/run_ranks.h"

namespace shardplan {
namespace {

TEST(RecordingDevice, ObservesFurthestEndAndLiveSum) {
  CpuDevice cpu;
  RecordingDevice device(cpu);
  for (const int rank : {0, 7}) {
    RecordingDevice recording(cpu);
    Arena arena(recording, {.tier = MemoryTier::host, .bytes = 1_MiB, .rank = rank});
    const auto report = [&] { return recording.report(MemoryTier::host); };
    EXPECT_EQ(report(), (RecordingDevice::Report{1_MiB, 1_MiB, kArenaShiftRoom, 0_B, 0_B}));
    Lease low = arena.take(0, 1000_B);
    Lease high = arena.take(8192, 100_B);
    EXPECT_EQ(report(), (RecordingDevice::Report{1_MiB, 1_MiB, 8292_B + kArenaShiftRoom, 1100_B, 1100_B}));
    high.give_back();
    low = arena.take(4096, 50_B);  // the new one is taken while the old one is still out
    EXPECT_EQ(report(), (RecordingDevice::Report{1_MiB, 1_MiB, 8292_B + kArenaShiftRoom, 50_B, 1100_B}));
    EXPECT_EQ(recording.report(MemoryTier::device), RecordingDevice::Report{});
  }
}

TEST(RecordingDevice, SumsAllocationsOfATier) {
  CpuDevice cpu;
  RecordingDevice device(cpu);
  {
    Arena first(device, {.bytes = 1_MiB});
    Arena second(device, {.bytes = 2_MiB});
    const Lease a = first.take(0, 64_B);
    const Lease b = second.take(128, 64_B);
    EXPECT_EQ(device.report(MemoryTier::device),
              (RecordingDevice::Report{3_MiB, 3_MiB, 256_B + 2 * kArenaShiftRoom, 128_B, 128_B}));
  }
  EXPECT_EQ(device.report(MemoryTier::device),
            (RecordingDevice::Report{0_B, 3_MiB, 256_B + 2 * kArenaShiftRoom, 0_B, 128_B}));
}

TEST(LimitedDevice, RefusesBeyondItsCapacityWithNumbers) {
  CpuDevice cpu;
  LimitedDevice device(cpu, MemoryTier::device, 3_MiB);
  auto first = device.allocate({.bytes = 2_MiB});
  try {
    device.allocate({.bytes = 2_MiB});
    FAIL();
  } catch (const OutOfMemory& error) {
    EXPECT_EQ(error.tier(), "device");
    EXPECT_EQ(error.requested(), 2_MiB);
    EXPECT_EQ(error.available(), 1_MiB);
  }
  EXPECT_NO_THROW(device.allocate({.tier = MemoryTier::host, .bytes = 8_MiB}));
  first.reset();
  EXPECT_NO_THROW(device.allocate({.bytes = 3_MiB}));
}

TEST(LimitedDevice, GivesBackWhatTheInnerDeviceRefused) {
  CpuDevice cpu;
  Countdown allocations(1);
  Countdown work;
  FailingDevice failing(cpu, allocations, work);
  LimitedDevice device(failing, MemoryTier::device, 1_MiB);
  EXPECT_THROW(device.allocate({.bytes = 1_MiB}), OutOfMemory);
  EXPECT_NO_THROW(device.allocate({.bytes = 1_MiB}));
}

TEST(Adaptors, StackAndMayDieBeforeTheirMemory) {
  CpuDevice cpu;
  std::unique_ptr<Memory> memory;
  {
    LimitedDevice limited(cpu, MemoryTier::device, 1_MiB);
    RecordingDevice recording(limited);
    memory = recording.allocate({.bytes = 1_MiB, .shift = 4_KiB, .shift_room = 28_KiB});
    EXPECT_EQ(recording.report(MemoryTier::device).held, 1_MiB);
    EXPECT_EQ(recording.name(), "cpu");
  }
  memory->handed_out(0, 64_B, "");
  memory->data()[63] = std::byte{1};
  EXPECT_EQ(memory->capacity(), 1_MiB - 28_KiB);
}

TEST(FailingDevice, FailsTheNthAllocationAndTheNthOperation) {
  CpuDevice cpu;
  const auto run = [&](Device& device) {
    const auto a = device.allocate({.bytes = 4_KiB});
    const auto b = device.allocate({.bytes = 4_KiB});
    a->handed_out(0, 64_B, "");
    b->handed_out(0, 64_B, "");
    const auto stream = device.make_stream();
    const auto event = device.make_event();
    stream->zero(a->data(), 64_B);
    stream->copy(b->data(), a->data(), 64_B);
    stream->record(*event);
    stream->wait(*event);
    stream->launching("adamw", Bytes{});
  };
  Countdown allocations;
  Countdown work;
  FailingDevice counting(cpu, allocations, work);
  run(counting);
  EXPECT_EQ(allocations.count(), 2U);
  EXPECT_EQ(work.count(), 4U);
  for (std::uint64_t n = 1; n <= allocations.count(); ++n) {
    Countdown fails(n);
    Countdown never;
    FailingDevice device(cpu, fails, never);
    EXPECT_THROW(run(device), OutOfMemory);
    EXPECT_NO_THROW(run(device));  // once only
  }
  const std::vector<std::string> names{"zero", "copy", "wait", "adamw"};
  for (std::uint64_t n = 1; n <= work.count(); ++n) {
    Countdown never;
    Countdown fails(n);
    FailingDevice device(cpu, never, fails);
    try {
      run(device);
      ADD_FAILURE() << n;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find(names[n - 1]), 0U) << error.what();
    }
  }
}

TEST(FailingCommunicator, CountsTheCallsOfWhatIsSplitFromIt) {
  const auto outcomes = test::outcomes_of_ranks(2, [](std::unique_ptr<Communicator> inner) {
    Countdown calls(inner->rank() == 0 ? 3 : Countdown::kNever);
    FailingCommunicator communicator(std::move(inner), calls);
    const auto part = communicator.split(0, 0);
    EXPECT_EQ(calls.count(), 1U);
    communicator.barrier();
    EXPECT_EQ(communicator.split(-1, 0), nullptr) << "the third call on rank 1, which rank 0 does not make";
  });
  for (const auto& outcome : outcomes) EXPECT_NE(test::message_of(outcome).find("rank 0, split"), std::string::npos);
}

TEST(DelayingCommunicator, ChangesNothingButTime) {
  const auto outcomes = test::outcomes_of_ranks(3, [](std::unique_ptr<Communicator> inner) {
    RandomDelay delay(static_cast<std::uint64_t>(inner->rank()), std::chrono::microseconds{200});
    DelayingCommunicator communicator(std::move(inner), delay);
    const auto part = communicator.split(0, -communicator.rank());
    EXPECT_EQ(part->rank(), 2 - communicator.rank());
    std::vector<std::byte> all(3);
    for (int round = 0; round < 20; ++round) {
      const std::byte mine{static_cast<unsigned char>(10 * round + part->rank())};
      part->all_gather_bytes({&mine, 1}, all);
      for (int rank = 0; rank < 3; ++rank) {
        EXPECT_EQ(all[static_cast<std::size_t>(rank)], std::byte{static_cast<unsigned char>(10 * round + rank)});
      }
    }
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(test::message_of(outcome), "");
}

TEST(RunRanks, RethrowsTheFirstExceptionAndEndsTheOthers) {
  try {
    test::run_ranks(4, [](Communicator& communicator) {
      if (communicator.rank() == 1) throw ConfigError("file", "key", "the cause");
      communicator.barrier();
    });
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.problem(), "the cause");
  }
}

}  // namespace
}  // namespace shardplan
