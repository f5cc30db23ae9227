#include "runtime/cpu_device.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/host_memory.h"

namespace shardplan {
namespace {

Bytes resident() {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    std::uint64_t kib = 0;
    if (word == "VmRSS:" && file >> kib) return Bytes{kib * 1024};
  }
  return {};
}

TEST(CpuDevice, GivesZeroedMemoryOfTheBytesAskedFor) {
  CpuDevice device;
  for (const Bytes bytes : {0_B, 1_B, 4096_B, 3_MiB + 17_B}) {
    const auto memory = device.allocate({.tier = MemoryTier::host, .bytes = bytes});
    EXPECT_EQ(memory->bytes(), bytes);
    EXPECT_EQ(memory->capacity(), bytes);
    EXPECT_EQ(memory->tier(), MemoryTier::host);
    memory->handed_out(0, bytes, "");
    EXPECT_TRUE(
        std::all_of(memory->data(), memory->data() + bytes.count(), [](std::byte b) { return b == std::byte{}; }));
    memory->given_back(0, bytes);
  }
}

TEST(CpuDevice, ShiftsOffsetZeroInsideTheBytes) {
  CpuDevice device;
  const auto memory = device.allocate({.bytes = 1_MiB, .shift = 8_KiB, .shift_room = 28_KiB});
  EXPECT_EQ(memory->capacity(), 1_MiB - 28_KiB);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->data()) % 4096, 0U);
  memory->handed_out(0, memory->capacity(), "");
  std::memset(memory->data(), 1, memory->capacity().count());
  EXPECT_THROW(device.allocate({.bytes = 1_MiB, .shift = 8_KiB, .shift_room = 4_KiB}), CheckFailure);
  EXPECT_THROW(device.allocate({.bytes = 1_KiB, .shift = 0_B, .shift_room = 4_KiB}), CheckFailure);
}

// Sanitizers keep books of their own in the same process, but none worth 2 % of this.
TEST(HostMapping, IsResidentFromConstructionOn) {
  const Bytes before = resident();
  const HostMapping mapping(256_MiB, "host");
  const auto grown = signed_difference(resident(), before);
  EXPECT_NEAR(static_cast<double>(grown), static_cast<double>((256_MiB).count()), 0.02 * 256 * 1024 * 1024);
}

TEST(HostMapping, RefusesMoreThanThereIsWithNumbers) {
  const Bytes asked = available_host_memory() + 1_TiB;
  try {
    const HostMapping mapping(asked, "pinned host");
    FAIL() << "there is no such memory";
  } catch (const OutOfMemory& error) {
    EXPECT_EQ(error.tier(), "pinned host");
    EXPECT_EQ(error.requested(), asked);
    EXPECT_GT(error.available(), 0_B);
    EXPECT_LT(error.available(), asked);
  }
}

TEST(HostMapping, LeavesNothingBehind) {
  const Bytes before = resident();
  for (int i = 0; i < 8; ++i) const HostMapping mapping(64_MiB, "host");
  EXPECT_LT(signed_difference(resident(), before), static_cast<std::int64_t>((16_MiB).count()));
}

TEST(AvailableHostMemory, IsAtMostWhatTheSystemHas) {
  std::ifstream file("/proc/meminfo");
  std::string word;
  std::uint64_t kib = 0;
  while (file >> word && word != "MemTotal:") continue;
  ASSERT_TRUE(file >> kib);
  EXPECT_GT(available_host_memory(), 0_B);
  EXPECT_LE(available_host_memory(), Bytes{kib * 1024});
}

TEST(CpuStream, CopiesZeroesAndReachesEvents) {
  CpuDevice device;
  const auto stream = device.make_stream();
  const auto event = device.make_event();
  EXPECT_TRUE(event->reached());
  std::vector<std::byte> from(100, std::byte{7});
  std::vector<std::byte> to(100);
  stream->copy(to.data(), from.data(), 60_B);
  stream->zero(to.data() + 10, 20_B);
  stream->copy(nullptr, nullptr, 0_B);
  stream->record(*event);
  stream->wait(*event);
  event->wait();
  EXPECT_TRUE(event->reached());
  for (std::size_t i = 0; i < to.size(); ++i) {
    EXPECT_EQ(to[i], i < 60 && (i < 10 || i >= 30) ? std::byte{7} : std::byte{0}) << i;
  }
}

}  // namespace
}  // namespace shardplan
