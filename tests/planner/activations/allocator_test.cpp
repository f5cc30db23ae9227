// The caching allocator's rules on sequences that can be followed by hand.
#include "planner/activations/allocator.h"

#include <gtest/gtest.h>

#include <random>

#include "planner/activations/torch_ops.h"

namespace shardplan {
namespace {

constexpr AllocatorOptions kExpandable{.expandable_segments = true};

TEST(CachingAllocator, SizesAreRoundedTo512) {
  CachingAllocator allocator;
  allocator.allocate(1_B);
  EXPECT_EQ(allocator.allocated(), 512_B);
  EXPECT_EQ(allocator.reserved(), 2_MiB);
  allocator.free(allocator.allocate(0_B));
  EXPECT_EQ(allocator.allocated(), 512_B);
}

TEST(CachingAllocator, SegmentsBySize) {
  CachingAllocator allocator;
  allocator.allocate(1_MiB);  // small pool
  EXPECT_EQ(allocator.reserved(), 2_MiB);
  allocator.allocate(1_MiB + 1_B);  // large pool, 20 MiB
  EXPECT_EQ(allocator.reserved(), 22_MiB);
  allocator.allocate(2_MiB);  // out of the same
  EXPECT_EQ(allocator.reserved(), 22_MiB);
  allocator.allocate(25_MiB);  // of its own, a multiple of 2 MiB
  EXPECT_EQ(allocator.reserved(), 48_MiB);
}

// 25 MiB in a segment of 26: 1 MiB remains, which is not more than 1 MiB, so it counts as allocated.
TEST(CachingAllocator, ARestOfAMebibyteIsNotSplitOff) {
  CachingAllocator allocator;
  const auto block = allocator.allocate(25_MiB);
  EXPECT_EQ(allocator.allocated(), 26_MiB);
  EXPECT_EQ(allocator.requested(), 25_MiB);
  allocator.free(block);
  EXPECT_EQ(allocator.allocated(), 0_B);
  allocator.allocate(24_MiB);  // 2 MiB remain, and are split off
  EXPECT_EQ(allocator.allocated(), 24_MiB);
  EXPECT_EQ(allocator.reserved(), 26_MiB);
}

TEST(CachingAllocator, ExpandableSegmentsHaveNoSlack) {
  CachingAllocator allocator(kExpandable);
  const auto block = allocator.allocate(25_MiB);
  EXPECT_EQ(allocator.allocated(), 25_MiB);
  EXPECT_EQ(allocator.reserved(), 40_MiB);
  allocator.allocate(14_MiB);
  EXPECT_EQ(allocator.reserved(), 40_MiB);
  allocator.allocate(2_MiB);  // 1 MiB is left at the end: the segment grows by a page and the block spans both
  EXPECT_EQ(allocator.reserved(), 60_MiB);
  allocator.allocate(18_MiB);
  EXPECT_EQ(allocator.reserved(), 60_MiB);
  allocator.free(block);
  allocator.allocate(25_MiB);
  EXPECT_EQ(allocator.reserved(), 60_MiB);
}

TEST(CachingAllocator, TheSmallestBlockThatFits) {
  CachingAllocator allocator;
  const auto large = allocator.allocate(40_MiB);
  const auto middle = allocator.allocate(30_MiB);
  const auto keeps_apart = allocator.allocate(12_MiB);
  allocator.free(large);
  allocator.free(middle);
  allocator.allocate(29_MiB);  // from the 30
  allocator.allocate(40_MiB);  // so the 40 are free still
  EXPECT_EQ(allocator.reserved(), 82_MiB);
  allocator.free(keeps_apart);
}

TEST(CachingAllocator, NeighboursMerge) {
  CachingAllocator allocator;
  const auto first = allocator.allocate(4_MiB);
  const auto second = allocator.allocate(4_MiB);
  const auto third = allocator.allocate(4_MiB);
  allocator.free(first);
  allocator.free(third);
  allocator.free(second);
  allocator.allocate(20_MiB);
  EXPECT_EQ(allocator.reserved(), 20_MiB);
}

// What a block in use lies in stays, the free rest of it too.
TEST(CachingAllocator, AnEmptiedCacheKeepsSegmentsInUse) {
  CachingAllocator allocator;
  const auto whole = allocator.allocate(40_MiB);
  const auto part = allocator.allocate(4_MiB);  // of 20 MiB
  const auto small = allocator.allocate(1_KiB);
  allocator.free(whole);
  allocator.free(small);
  EXPECT_EQ(allocator.reserved(), 62_MiB);
  allocator.empty_cache();
  EXPECT_EQ(allocator.reserved(), 20_MiB);
  EXPECT_EQ(allocator.allocated(), 4_MiB);
  EXPECT_EQ(allocator.peak_reserved(), 62_MiB);
  allocator.allocate(16_MiB);  // the rest
  EXPECT_EQ(allocator.reserved(), 20_MiB);
  allocator.allocate(1_KiB);
  EXPECT_EQ(allocator.reserved(), 22_MiB);
  allocator.free(part);
  allocator.empty_cache();
  EXPECT_EQ(allocator.reserved(), 22_MiB);
}

// 6 MiB open a segment of 20, whose rest the 14 take. Where the 16 of the step before lie free, the 6 are cut from those, and the
// 14 find nothing.
TEST(CachingAllocator, AStepBehindAnEmptiedCacheIsAsTheFirst) {
  autograd::Tape tape;
  tape.enter("unit");
  {
    const auto a = tape.allocate("a", {6 << 20}, DType::i8);
    const auto b = tape.allocate("b", {16 << 20}, DType::i8);
    const auto c = tape.allocate("c", {14 << 20}, DType::i8);
  }
  const ReplayedRank rank{.resident = {64_MiB}, .in_step = {}, .chunks = {&tape}};
  EXPECT_EQ(replay_steps(rank, {}, 0, 1, {.empties_cache = true}).peak_reserved, 100_MiB);
  EXPECT_EQ(replay_steps(rank, {}, 0, 1, {}).peak_reserved, 114_MiB);
}

// Whatever the order, nothing is lost: all freed, all of every segment can be had again.
TEST(CachingAllocator, NothingIsLost) {
  for (const bool expandable : {false, true}) {
    CachingAllocator allocator({.expandable_segments = expandable});
    std::mt19937 random(7);
    std::vector<CachingAllocator::Handle> held;
    for (int i = 0; i < 20000; ++i) {
      if (held.empty() || random() % 2 == 0) {
        held.push_back(allocator.allocate(Bytes{random() % 4 == 0 ? random() % (64U << 20) : random() % 4096}));
      } else {
        const std::size_t place = random() % held.size();
        allocator.free(held[place]);
        held[place] = held.back();
        held.pop_back();
      }
      ASSERT_LE(allocator.requested(), allocator.allocated());
      ASSERT_LE(allocator.allocated(), allocator.reserved());
    }
    for (const auto handle : held) allocator.free(handle);
    EXPECT_EQ(allocator.allocated(), 0_B);
    EXPECT_EQ(allocator.requested(), 0_B);
    if (!expandable) continue;
    EXPECT_EQ(allocator.peak_allocated(), allocator.peak_requested());
  }
}

TEST(CachingAllocator, ATapeReplayedAsksForWhatItsEventsSay) {
  autograd::Tape tape;
  tape.enter("unit");
  {
    using namespace autograd;
    const Value weight = tape.parameter("w", {1 << 20}, DType::f32, true);
    Value y = unary("silu", mul(tape.outside({1 << 20}, DType::f32), weight));
    tape.backward(y, tape.allocate("gradient", {1 << 20}, DType::f32));
  }
  CachingAllocator allocator(kExpandable);
  replay(tape, allocator);
  std::int64_t level = 0;
  std::int64_t peak = 0;
  for (const autograd::Event& event : tape.events()) {
    const auto bytes = static_cast<std::int64_t>(tape.storages()[event.storage].bytes);
    level += event.allocated ? bytes : -bytes;
    peak = std::max(peak, level);
  }
  EXPECT_EQ(allocator.peak_allocated(), Bytes{static_cast<std::uint64_t>(peak)});
  EXPECT_EQ(allocator.allocated(), 0_B);
}

}  // namespace
}  // namespace shardplan
