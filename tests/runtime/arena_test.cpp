#include "runtime/arena.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "runtime/cpu_device.h"
#include "tests/support/sanitizers.h"

namespace shardplan {
namespace {

constexpr Bytes kUsable = 64_KiB;

class ArenaTest : public testing::Test {
 protected:
  CpuDevice device_;
  Arena arena_{device_, {.bytes = kUsable + kArenaShiftRoom, .rank = 3}};
};

TEST_F(ArenaTest, HandsOutWhatIsAskedFor) {
  EXPECT_EQ(arena_.capacity(), kUsable);
  Lease lease = arena_.take(1024, 4096_B);
  EXPECT_FALSE(lease.empty());
  EXPECT_EQ(lease.offset(), 1024U);
  EXPECT_EQ(lease.bytes(), 4096_B);
  EXPECT_EQ(lease.data(), arena_.data() + 1024);
  EXPECT_EQ(lease.as<float>().size(), 1024U);
  std::fill(lease.as<float>().begin(), lease.as<float>().end(), 1.0F);
  lease.give_back();
  EXPECT_TRUE(lease.empty());
  EXPECT_EQ(lease.data(), nullptr);
}

TEST_F(ArenaTest, GivesBackOnDestructionAndAssignment) {
  {
    const Lease lease = arena_.take(0, kUsable);
  }
  Lease first = arena_.take(0, 64_B);
  Lease moved = std::move(first);
  EXPECT_TRUE(first.empty());  // NOLINT(bugprone-use-after-move): that is the promise
  EXPECT_TRUE(arena_.holds(0, 64_B));
  moved = arena_.take(64, 64_B);
  EXPECT_FALSE(arena_.holds(0, 64_B));
  EXPECT_TRUE(arena_.holds(64, 64_B));
}

TEST_F(ArenaTest, RefusesRangesInUseNamingBoth) {
  const Lease lease = arena_.take(128, 128_B);
  for (const auto& [offset, bytes] : {std::pair{128U, 128_B}, {0U, 136_B}, {248U, 8_B}, {0U, kUsable}, {136U, 8_B}}) {
    try {
      const Lease other = arena_.take(offset, bytes);
      ADD_FAILURE() << offset;
    } catch (const CheckFailure& failure) {
      EXPECT_NE(std::string(failure.what()).find("[128, 256)"), std::string::npos) << failure.what();
    }
  }
  EXPECT_FALSE(arena_.take(0, 128_B).empty());
  EXPECT_FALSE(arena_.take(256, 8_B).empty());
}

TEST_F(ArenaTest, RefusesRangesOutsideAndUnaligned) {
  EXPECT_THROW(arena_.take(0, kUsable + 1_B), CheckFailure);
  EXPECT_THROW(arena_.take(kUsable.count(), 8_B), CheckFailure);
  EXPECT_THROW(arena_.take(UINT64_MAX - 7, 16_B), ArithmeticOverflow);
  EXPECT_THROW(arena_.take(4, 4_B), CheckFailure);
  EXPECT_NO_THROW(arena_.take(kUsable.count() - 8, 8_B));
}

TEST_F(ArenaTest, LeasesOfNothingAreFreeAnywhere) {
  const Lease all = arena_.take(0, kUsable);
  const Lease nothing = arena_.take(64, 0_B);
  EXPECT_FALSE(nothing.empty());
  EXPECT_TRUE(nothing.as<float>().empty());
  EXPECT_TRUE(arena_.holds(64, 0_B));
}

TEST_F(ArenaTest, ViewsOnlyWholeElements) {
  const Lease lease = arena_.take(0, 10_B);
  EXPECT_EQ(lease.as<std::uint16_t>().size(), 5U);
  EXPECT_THROW(lease.as<float>(), CheckFailure);
}

TEST(Arena, NeedsRoomForItsShift) {
  CpuDevice device;
  EXPECT_THROW(Arena(device, {.bytes = kArenaShiftRoom - 1_B}), CheckFailure);
  EXPECT_THROW(Arena(device, {.bytes = kArenaShiftRoom, .rank = -1}), CheckFailure);
  EXPECT_EQ(Arena(device, {.bytes = kArenaShiftRoom}).capacity(), 0_B);
}

TEST(Arena, BasesOfEightRanksDifferModulo32Kib) {
  CpuDevice device;
  for (int rank = 0; rank < 10; ++rank) {
    const Arena arena(device, {.bytes = 4_MiB, .rank = rank});
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(arena.data()) % (32 * 1024), static_cast<unsigned>(rank % 8) * 4096U);
  }
}

// Random leases against a map of what is out.
RC_GTEST_PROP(Arena, AgreesWithAModel, ()) {
  CpuDevice device;
  Arena arena(device, {.bytes = 4096_B + kArenaShiftRoom, .leases = 2});
  std::map<std::uint64_t, Lease> out;
  for (const auto& [place, length] : *rc::gen::container<std::vector<std::pair<std::uint16_t, std::uint16_t>>>(
           rc::gen::pair(rc::gen::inRange<std::uint16_t>(0, 520), rc::gen::inRange<std::uint16_t>(0, 700)))) {
    const std::uint64_t offset = place * 8U;
    const std::uint64_t end = offset + length;
    if (out.contains(offset)) {
      out.erase(offset);
      continue;
    }
    const bool is_free =
        end <= 4096 && std::none_of(out.begin(), out.end(), [&](const auto& known) {
          return length != 0 && known.first < end && offset < known.first + known.second.bytes().count();
        });
    if (!is_free) {
      RC_ASSERT_THROWS_AS(arena.take(offset, Bytes{length}), CheckFailure);
      continue;
    }
    Lease lease = arena.take(offset, Bytes{length});
    if (length == 0) continue;
    std::memset(lease.data(), 1, length);
    out.emplace(offset, std::move(lease));
  }
  for (const auto& [offset, lease] : out) {
    RC_ASSERT(arena.holds(offset, lease.bytes()));
    RC_ASSERT(!arena.holds(offset, lease.bytes() + 1_B));
  }
}

#if defined(SHARDPLAN_ADDRESS_SANITIZER)
TEST_F(ArenaTest, BytesOutsideOfLeasesArePoisoned) {
  const auto poisoned = [&](std::uint64_t offset) { return __asan_address_is_poisoned(arena_.data() + offset) != 0; };
  EXPECT_TRUE(poisoned(0));
  Lease lease = arena_.take(64, 13_B);
  EXPECT_TRUE(poisoned(63));
  EXPECT_FALSE(poisoned(64));
  EXPECT_FALSE(poisoned(76));
  EXPECT_TRUE(poisoned(77));
  const Lease next = arena_.take(80, 8_B);
  lease.give_back();
  EXPECT_TRUE(poisoned(64));
  EXPECT_TRUE(poisoned(76));
  EXPECT_FALSE(poisoned(80));
  volatile std::byte* outside = arena_.data() + 64;
  EXPECT_DEATH(*outside = std::byte{1}, "use-after-poison");
}
#endif

}  // namespace
}  // namespace shardplan
