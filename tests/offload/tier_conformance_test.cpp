// What every tier does: random reads and writes against an array of bytes, aligned for direct I/O and not.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "offload/failing_tier.h"
#include "offload/file_tier.h"
#include "offload/host_tier.h"
#include "offload/recording_tier.h"
#include "runtime/cpu_device.h"
#include "runtime/forwarding_device.h"
#include "tests/support/io_uring.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

using test_support::TemporaryFolder;

using Made = std::unique_ptr<ByteTier>;

struct Kind {
  std::string name;
  std::function<Made(const TemporaryFolder&, Device&, Bytes)> make;
};

Made file(const TemporaryFolder& folder, Bytes bytes, bool direct, FileIo io = FileIo::pread) {
  return std::make_unique<FileTier>(
      FileTierOptions{.path = folder.path("tier"), .bytes = bytes, .direct = direct, .io = io});
}

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> kKinds = [] {
    std::vector<Kind> kinds{
        {"host",
         [](const TemporaryFolder&, Device& device, Bytes bytes) { return std::make_unique<HostTier>(device, bytes); }},
        {"pinned", [](const TemporaryFolder&, Device& device,
                      Bytes bytes) { return std::make_unique<HostTier>(device, bytes, MemoryTier::pinned_host); }},
        {"file", [](const TemporaryFolder& folder, Device&, Bytes bytes) { return file(folder, bytes, true); }},
        {"buffered_file",
         [](const TemporaryFolder& folder, Device&, Bytes bytes) { return file(folder, bytes, false); }},
        {"recorded", [](const TemporaryFolder& folder, Device&,
                        Bytes bytes) { return std::make_unique<RecordingTier>(file(folder, bytes, true)); }},
        {"failing_never", [](const TemporaryFolder&, Device& device, Bytes bytes) {
           return std::make_unique<FailingTier>(std::make_unique<HostTier>(device, bytes));
         }}};
    // Where there is none, io_uring_test says why.
    if (no_io_uring().empty()) {
      for (const bool direct : {true, false}) {
        kinds.push_back({direct ? "io_uring_file" : "io_uring_buffered_file",
                         [direct](const TemporaryFolder& folder, Device&, Bytes bytes) {
                           return file(folder, bytes, direct, FileIo::io_uring);
                         }});
      }
    }
    return kinds;
  }();
  return kKinds;
}

class TierConformance : public ::testing::TestWithParam<std::size_t> {
 protected:
  Made make(Bytes bytes) { return kinds()[GetParam()].make(folder_, device_, bytes); }

 private:
  TemporaryFolder folder_;
  CpuDevice device_;
};

TEST_P(TierConformance, StartsZeroed) {
  const auto tier = make(Bytes{10'000});
  EXPECT_EQ(tier->bytes(), Bytes{10'000});
  std::vector<std::byte> bytes(10'000, std::byte{1});
  tier->read(0, bytes);
  EXPECT_EQ(bytes, std::vector<std::byte>(10'000));
}

TEST_P(TierConformance, IsAnArrayOfBytes) {
  constexpr std::size_t kBytes = 300'000;
  const auto tier = make(Bytes{kBytes});
  std::vector<std::byte> model(kBytes);
  std::vector<std::byte> room(2 * kBytes);
  // Where memory is aligned as direct I/O wants it.
  void* start = room.data();
  std::size_t left = room.size();
  ASSERT_NE(std::align(kFileAlignment, kBytes, start, left), nullptr);
  auto* const aligned = static_cast<std::byte*>(start);
  std::mt19937_64 random(1);
  const auto draw = [&](std::size_t below) { return static_cast<std::size_t>(random() % below); };
  for (int round = 0; round < 2000; ++round) {
    std::size_t offset = draw(kBytes);
    if (round % 2 == 0) offset = offset / kFileAlignment * kFileAlignment;
    std::size_t length = draw(std::min<std::size_t>(kBytes - offset, 40'000) + 1);
    if (round % 3 == 0) length = length / kFileAlignment * kFileAlignment;
    std::byte* const memory = aligned + (round % 5 == 0 ? 8 : 0);
    const std::span<std::byte> part(memory, length);
    if (draw(2) == 0) {
      for (std::byte& byte : part) byte = static_cast<std::byte>(random());
      tier->write(offset, part);
      std::copy(part.begin(), part.end(), model.begin() + static_cast<std::ptrdiff_t>(offset));
    } else {
      tier->read(offset, part);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), model.begin() + static_cast<std::ptrdiff_t>(offset)))
          << "round " << round << ": " << length << " bytes at " << offset;
    }
  }
  tier->flush();
  tier->check();
}

TEST_P(TierConformance, RefusesWhatLiesBeyondIt) {
  const auto tier = make(Bytes{100});
  std::vector<std::byte> bytes(101);
  EXPECT_THROW(tier->read(0, bytes), CheckFailure);
  EXPECT_THROW(tier->write(100, std::span(bytes).first(1)), CheckFailure);
  EXPECT_THROW(tier->write(UINT64_MAX, std::span(bytes).first(1)), CheckFailure);
  EXPECT_NO_THROW(tier->write(100, {}));
}

INSTANTIATE_TEST_SUITE_P(Tiers, TierConformance, ::testing::Range(std::size_t{0}, kinds().size()),
                         [](const auto& tested) { return kinds()[tested.param].name; });

TEST(HostTier, TakesTheBytesItIsAskedForAndNoMore) {
  class Counting final : public ForwardingDevice {
   public:
    using ForwardingDevice::ForwardingDevice;
    std::unique_ptr<Memory> allocate(const MemoryRequest& request) override {
      asked += request.bytes;
      return ForwardingDevice::allocate(request);
    }
    Bytes asked;
  };
  CpuDevice cpu;
  Counting counting(cpu);
  const HostTier tier(counting, Bytes{(1 << 20) + 4096}, MemoryTier::pinned_host);
  EXPECT_EQ(counting.asked, Bytes{(1 << 20) + 4096});
}

TEST(RecordingTier, CountsEachByteOnce) {
  CpuDevice cpu;
  RecordingTier tier(std::make_unique<HostTier>(cpu, Bytes{1000}));
  const std::vector<std::byte> bytes(300);
  const auto write = [&](std::uint64_t offset, std::size_t count) {
    tier.write(offset, std::span(bytes).first(count));
    return tier.report();
  };
  using Report = RecordingTier::Report;
  EXPECT_EQ(tier.report(), Report{});
  EXPECT_EQ(write(100, 100), (Report{Bytes{200}, Bytes{100}}));
  EXPECT_EQ(write(100, 100), (Report{Bytes{200}, Bytes{100}}));
  EXPECT_EQ(write(400, 50), (Report{Bytes{450}, Bytes{150}}));
  EXPECT_EQ(write(150, 100), (Report{Bytes{450}, Bytes{200}}));
  EXPECT_EQ(write(250, 150), (Report{Bytes{450}, Bytes{350}}));  // joins both
  EXPECT_EQ(write(0, 100), (Report{Bytes{450}, Bytes{450}}));
  EXPECT_EQ(write(50, 300), (Report{Bytes{450}, Bytes{450}}));
  EXPECT_EQ(write(999, 0), (Report{Bytes{450}, Bytes{450}}));
}

}  // namespace
}  // namespace shardplan::test
