#include "tests/runtime/device_conformance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "runtime/arena.h"
#include "runtime/limited_device.h"
#include "runtime/recording_device.h"

namespace shardplan::test {
namespace {

constexpr MemoryTier kTiers[] = {MemoryTier::device, MemoryTier::pinned_host, MemoryTier::host};

class DeviceConformance : public testing::TestWithParam<DeviceUnderTest> {
 protected:
  static void run(const std::function<void(Device&)>& body) {
    bool ran = false;
    GetParam().run([&](Device& device) {
      body(device);
      ran = true;
    });
    EXPECT_TRUE(ran);
  }
};

// What is about bytes, of devices that have some.
class DeviceValues : public DeviceConformance {};

auto devices_with_values() {
  auto devices = devices_under_test();
  std::erase_if(devices, [](const auto& device) { return !device.holds_values; });
  return devices;
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceValues, testing::ValuesIn(devices_with_values()),
                         [](const auto& device) { return device.param.name; });
INSTANTIATE_TEST_SUITE_P(Devices, DeviceConformance, testing::ValuesIn(devices_under_test()),
                         [](const auto& device) { return device.param.name; });

// `bytes` bytes of `from`, brought to where the host can look at them.
std::vector<std::byte> bytes_of(Device& device, Stream& stream, const std::byte* from, Bytes bytes) {
  const auto host = device.allocate({.tier = MemoryTier::host, .bytes = bytes});
  host->handed_out(0, bytes, "");
  stream.copy(host->data(), from, bytes);
  stream.synchronize();
  std::vector<std::byte> seen(host->data(), host->data() + bytes.count());
  host->given_back(0, bytes);
  return seen;
}

TEST_P(DeviceConformance, GivesZeroedMemoryOfTheBytesAskedFor) {
  run([](Device& device) {
    EXPECT_NE(device.name(), "");
    const auto stream = device.make_stream();
    for (const MemoryTier tier : kTiers) {
      for (const Bytes bytes : {0_B, 1_B, 4096_B, 3_MiB + 17_B}) {
        const auto memory = device.allocate({.tier = tier, .bytes = bytes});
        EXPECT_EQ(memory->bytes(), bytes);
        EXPECT_EQ(memory->capacity(), bytes);
        EXPECT_EQ(memory->tier(), tier);
        memory->handed_out(0, bytes, "all");
        if (GetParam().holds_values && bytes != 0_B) {
          const auto seen = bytes_of(device, *stream, memory->data(), bytes);
          EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](std::byte b) { return b == std::byte{}; }))
              << name(tier);
        }
        memory->given_back(0, bytes);
      }
    }
  });
}

TEST_P(DeviceConformance, ShiftsOffsetZeroInsideTheBytes) {
  run([](Device& device) {
    const auto plain = device.allocate({.bytes = 1_MiB, .shift = 0_B, .shift_room = 28_KiB});
    const auto memory = device.allocate({.bytes = 1_MiB, .shift = 8_KiB, .shift_room = 28_KiB});
    EXPECT_EQ(memory->capacity(), 1_MiB - 28_KiB);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->data()) % 4096, 0U);
    EXPECT_NE(memory->data(), plain->data());
    EXPECT_THROW(device.allocate({.bytes = 1_MiB, .shift = 8_KiB, .shift_room = 4_KiB}), CheckFailure);
    EXPECT_THROW(device.allocate({.bytes = 1_KiB, .shift = 0_B, .shift_room = 4_KiB}), CheckFailure);
  });
}

TEST_P(DeviceConformance, RefusesMoreThanThereIsWithNumbers) {
  run([](Device& device) {
    const Bytes asked = 4096 * 1_TiB;
    try {
      device.allocate({.tier = MemoryTier::device, .bytes = asked});
      ADD_FAILURE() << "there is no such memory";
    } catch (const OutOfMemory& error) {
      EXPECT_EQ(error.tier(), "device");
      EXPECT_EQ(error.requested(), asked);
      EXPECT_LT(error.available(), asked);
    }
  });
}

TEST_P(DeviceConformance, MemoryComesBack) {
  run([](Device& inner) {
    LimitedDevice device(inner, MemoryTier::device, 3_MiB);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(device.allocate({.bytes = 2_MiB})->bytes(), 2_MiB);
    const auto held = device.allocate({.bytes = 2_MiB});
    EXPECT_THROW(device.allocate({.bytes = 2_MiB}), OutOfMemory);
  });
}

TEST_P(DeviceConformance, MemoryMayOutliveAdaptors) {
  run([](Device& inner) {
    std::unique_ptr<Memory> memory;
    {
      RecordingDevice device(inner);
      memory = device.allocate({.bytes = 1_MiB, .shift = 4_KiB, .shift_room = 28_KiB});
      EXPECT_EQ(device.report(MemoryTier::device).held, 1_MiB);
      EXPECT_EQ(device.name(), inner.name());
    }
    memory->handed_out(0, 64_B, "");
    memory->given_back(0, 64_B);
  });
}

// Zeroes and copies between tiers and within one, in the order of the stream.
TEST_P(DeviceValues, StreamsCopyAndZeroInOrder) {
  run([](Device& device) {
    const Bytes all = 1_MiB;
    Arena host(device, {.tier = MemoryTier::host, .bytes = all + kArenaShiftRoom});
    Arena on_device(device, {.tier = MemoryTier::device, .bytes = 2 * all + kArenaShiftRoom});
    const Lease from = host.take(0, all);
    const Lease to = on_device.take(0, 2 * all);
    for (std::size_t i = 0; i < from.bytes().count(); ++i)
      from.data()[i] = static_cast<std::byte>(i * 2654435761U >> 24);
    const auto stream = device.make_stream();
    stream->copy(to.data(), from.data(), all);
    stream->zero(to.data() + 100, 300_B);
    stream->copy(to.data() + all.count(), to.data(), all);
    stream->copy(to.data(), to.data(), 0_B);
    stream->zero(to.data() + 17, 0_B);
    const auto seen = bytes_of(device, *stream, to.data() + all.count(), all);
    std::uint64_t wrong = 0;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      wrong += seen[i] == (i >= 100 && i < 400 ? std::byte{0} : from.data()[i]) ? 0U : 1U;
    }
    EXPECT_EQ(wrong, 0U);
  });
}

TEST_P(DeviceConformance, EventsOrderStreams) {
  run([](Device& device) {
    const Bytes all = 4_MiB;
    Arena arena(device, {.tier = MemoryTier::device, .bytes = 2 * all + kArenaShiftRoom});
    const Lease lease = arena.take(0, 2 * all);
    std::byte* const second_half = lease.data() + all.count();
    const auto first = device.make_stream();
    const auto second = device.make_stream();
    const auto event = device.make_event();
    EXPECT_TRUE(event->reached());  // not yet recorded counts as reached
    event->wait();
    for (int round = 0; round < 20; ++round) {
      first->launching("fill", all);
      first->zero(lease.data(), all);
      first->record(*event);
      second->wait(*event);
      second->copy(second_half, lease.data(), all);
      second->synchronize();
      EXPECT_TRUE(event->reached());
      event->wait();
    }
  });
}

TEST_P(DeviceConformance, SaysHowItsMemoryCanBeShared) {
  run([](Device& inner) {
    RecordingDevice device(inner);  // passed on by what stands before it
    const auto memory = device.allocate({.bytes = 1_MiB, .shift = 8_KiB, .shift_room = 28_KiB});
    const std::optional<SharedHandle> handle = memory->shared_handle();
    EXPECT_EQ(handle.has_value(), GetParam().shareable);
    if (!handle) return;
    EXPECT_GE(handle->descriptor, 0);
    EXPECT_EQ(handle->offset, (8_KiB).count());
    EXPECT_GE(handle->bytes, (1_MiB).count());
  });
}

}  // namespace
}  // namespace shardplan::test
