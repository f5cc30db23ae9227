#include "runtime/cpu_device.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <optional>
#include <string>
#include <utility>

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

// Sanitizers keep books of their own in the same process, but none worth 2 % of this.
TEST(HostMapping, IsResidentFromConstructionOn) {
  for (const HostPages pages : {HostPages::own, HostPages::shareable}) {
    const Bytes before = resident();
    const HostMapping mapping(256_MiB, "host", pages);
    const auto grown = signed_difference(resident(), before);
    EXPECT_NEAR(static_cast<double>(grown), static_cast<double>((256_MiB).count()), 0.02 * 256 * 1024 * 1024);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(mapping.data()) % (2_MiB).count(), 0U);
  }
}

TEST(HostMapping, RefusesMoreThanThereIsWithNumbers) {
  const Bytes asked = available_host_memory() + 1_TiB;
  for (const HostPages pages : {HostPages::own, HostPages::shareable}) {
    try {
      const HostMapping mapping(asked, "pinned host", pages);
      FAIL() << "there is no such memory";
    } catch (const OutOfMemory& error) {
      EXPECT_EQ(error.tier(), "pinned host");
      EXPECT_EQ(error.requested(), asked);
      EXPECT_GT(error.available(), 0_B);
      EXPECT_LT(error.available(), asked);
    }
  }
}

TEST(HostMapping, LeavesNothingBehind) {
  const Bytes before = resident();
  for (int i = 0; i < 8; ++i) const HostMapping mapping(64_MiB, "host");
  EXPECT_LT(signed_difference(resident(), before), static_cast<std::int64_t>((16_MiB).count()));
}

// Two mappings of one file are the same bytes, and stay when the first one is gone.
TEST(HostMapping, OfAFileSharesItsBytes) {
  std::optional<HostMapping> made(std::in_place, 3_MiB, "host", HostPages::shareable);
  const Descriptor file(dup(made->descriptor()));
  const HostMapping mapped = HostMapping::of_file(file, 3_MiB, "the file");
  EXPECT_NE(mapped.data(), made->data());
  made->data()[5] = std::byte{7};
  EXPECT_EQ(mapped.data()[5], std::byte{7});
  made.reset();
  EXPECT_EQ(mapped.data()[5], std::byte{7});
  EXPECT_THROW(HostMapping::of_file(file, 4_MiB, "the file"), IoError);
  EXPECT_THROW(HostMapping::of_file(Descriptor(), 4_MiB, "the file"), IoError);
  EXPECT_EQ(HostMapping(1_MiB, "host").descriptor(), -1);
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

}  // namespace
}  // namespace shardplan
