#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "runtime/arena.h"
#include "runtime/recording_device.h"
#include "tests/cuda/gpu.h"

namespace shardplan::test {
namespace {

constexpr MemoryTier kTiers[] = {MemoryTier::device, MemoryTier::pinned_host, MemoryTier::host};

using CudaDeviceTest = GpuTest;

TEST_F(CudaDeviceTest, GivesZeroedMemoryOfTheBytesAskedFor) {
  for (const MemoryTier tier : kTiers) {
    for (const Bytes bytes : {0_B, 1_B, 4096_B, 3_MiB + 17_B}) {
      const auto memory = device_->allocate({.tier = tier, .bytes = bytes});
      EXPECT_EQ(memory->bytes(), bytes);
      EXPECT_EQ(memory->tier(), tier);
      std::vector<std::byte> seen(bytes.count(), std::byte{1});
      stream_->copy(seen.data(), memory->data(), bytes);
      stream_->synchronize();
      EXPECT_EQ(std::count(seen.begin(), seen.end(), std::byte{0}), static_cast<std::ptrdiff_t>(seen.size()));
    }
  }
}

TEST_F(CudaDeviceTest, ShiftsOffsetZeroToAPage) {
  for (const MemoryTier tier : kTiers) {
    const auto memory = device_->allocate({.tier = tier, .bytes = 1_MiB, .shift = 8_KiB, .shift_room = 28_KiB});
    EXPECT_EQ(memory->capacity(), 1_MiB - 28_KiB);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->data()) % 4096, 0U);
    stream_->zero(memory->data(), memory->capacity());
    stream_->synchronize();
    EXPECT_THROW(device_->allocate({.tier = tier, .bytes = 1_MiB, .shift = 8_KiB, .shift_room = 4_KiB}), CheckFailure);
  }
}

TEST_F(CudaDeviceTest, RefusesWhatItHasNotWithNumbers) {
  for (const MemoryTier tier : {MemoryTier::device, MemoryTier::pinned_host}) {
    const Bytes wanted{std::uint64_t{1} << 50};
    try {
      device_->allocate({.tier = tier, .bytes = wanted});
      FAIL() << name(tier);
    } catch (const OutOfMemory& error) {
      EXPECT_EQ(error.tier(), name(tier));
      EXPECT_EQ(error.requested(), wanted);
      EXPECT_GT(error.available(), 0_B);
      EXPECT_LT(error.available(), wanted);
    }
  }
  EXPECT_EQ(device_->allocate({.bytes = 1_MiB})->bytes(), 1_MiB) << "an allocation after a refused one";
}

TEST_F(CudaDeviceTest, MemoryOutlivesItsDevice) {
  const auto memory = device_->allocate({.bytes = 1_MiB});
  stream_.reset();
  device_.reset();
  const auto other = cuda_->make_device(0);
  const auto stream = other->make_stream();
  stream->zero(memory->data(), 1_MiB);
  stream->synchronize();
}

// The first stream is busy with copies of a gigabyte when the second one is told to wait for it.
TEST_F(CudaDeviceTest, StreamsKeepTheOrderOfEvents) {
  constexpr Bytes kBytes = 256_MiB;
  const auto memory = device_->allocate({.bytes = 2 * kBytes});
  const auto second = device_->make_stream();
  const auto event = device_->make_event();
  EXPECT_TRUE(event->reached()) << "not yet recorded";
  std::byte* from = memory->data();
  std::byte* to = from + kBytes.count();
  const auto mark = device_->allocate({.tier = MemoryTier::pinned_host, .bytes = 1_B});
  *mark->data() = std::byte{42};
  stream_->copy(from + kBytes.count() - 1, mark->data(), 1_B);
  for (int i = 0; i < 16; ++i) stream_->copy(to, from, kBytes);
  stream_->record(*event);
  second->wait(*event);
  std::byte seen{};
  second->copy(&seen, to + kBytes.count() - 1, 1_B);
  second->synchronize();
  EXPECT_EQ(seen, std::byte{42});
  EXPECT_TRUE(event->reached());
  event->wait();
}

TEST_F(CudaDeviceTest, ArenasAndAdaptorsWorkOnIt) {
  RecordingDevice recording(*device_);
  Arena arena(recording, {.bytes = 1_MiB, .rank = 3});
  const Lease lease = arena.take(64, 4096_B);
  const auto stream = recording.make_stream();
  stream->zero(lease.data(), lease.bytes());
  stream->synchronize();
  EXPECT_EQ(recording.report(MemoryTier::device).live, 4096_B);
  EXPECT_THROW(cuda_->make_device(static_cast<int>(gpus_.size())), ConfigError);
}

}  // namespace
}  // namespace shardplan::test
