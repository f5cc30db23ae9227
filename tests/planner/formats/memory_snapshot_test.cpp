// A snapshot whose numbers are known (tests/data/memory_snapshot/make_snapshot.py).
#include "planner/formats/memory_snapshot.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "planner/formats/file.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

Bytes part(const BlocksHeld& held, BlockOrigin origin) {
  return held.by_origin[static_cast<std::size_t>(origin)];
}

std::string step() {
  return read_beginning(MEMORY_SNAPSHOTS "/step.pickle", 1 << 20);
}

TEST(MemorySnapshot, TheFullestGpuAtTheEndAndAtItsPeak) {
  const std::string bytes = step();
  const MemorySnapshot snapshot = read_memory_snapshot(bytes, "step.pickle");
  EXPECT_EQ(snapshot.reserved, Bytes{80 * kMiB});
  EXPECT_EQ(snapshot.held.sum(), Bytes{48 * kMiB});
  EXPECT_EQ(snapshot.requested, Bytes{48 * kMiB - 100});
  EXPECT_EQ(part(snapshot.held, BlockOrigin::parameters), Bytes{8 * kMiB});
  EXPECT_EQ(part(snapshot.held, BlockOrigin::optimizer_states), Bytes{32 * kMiB});
  EXPECT_EQ(part(snapshot.held, BlockOrigin::unnamed), Bytes{8 * kMiB});  // waits to be freed
  EXPECT_TRUE(snapshot.has_trace);
  EXPECT_EQ(snapshot.at_peak.sum(), Bytes{68 * kMiB});
  EXPECT_EQ(part(snapshot.at_peak, BlockOrigin::parameters), Bytes{8 * kMiB});
  EXPECT_EQ(part(snapshot.at_peak, BlockOrigin::forward), Bytes{12 * kMiB});
  EXPECT_EQ(part(snapshot.at_peak, BlockOrigin::backward), Bytes{16 * kMiB});
  EXPECT_EQ(snapshot.peak_reserved, Bytes{80 * kMiB});
}

// Every file that is cut off somewhere is an error, and none is taken for whole.
TEST(MemorySnapshot, WhatIsCutOffIsRefused) {
  const std::string bytes = step();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(read_memory_snapshot(std::string_view(bytes).substr(0, size), "step.pickle"), ConfigError) << size;
  }
}

TEST(MemorySnapshot, OtherPicklesAreNamed) {
  using namespace std::string_literals;
  const std::string none = "\x80\2}."s;
  try {
    read_memory_snapshot(none, "x.pickle");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()), "x.pickle: segments: expected a list, found nothing");
  }
}

}  // namespace
}  // namespace shardplan
