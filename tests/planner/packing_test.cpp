#include "planner/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "planner/alignment.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

Interval interval(std::uint64_t begin, std::uint64_t end, Bytes bytes) {
  return {begin, end, bytes, Bytes{}};
}

// Sizes are whole multiples of their alignment, as slots are.
rc::Gen<std::vector<Interval>> any_intervals() {
  return rc::gen::exec([] {
    std::vector<Interval> intervals;
    const std::size_t count = *rc::gen::inRange<std::size_t>(0, 24);
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t begin = *rc::gen::inRange<std::uint64_t>(0, 40);
      const std::uint64_t length = *rc::gen::inRange<std::uint64_t>(1, 20);
      const Bytes bytes{*rc::gen::oneOf(rc::gen::inRange<std::uint64_t>(1, 4096),
                                        rc::gen::inRange<std::uint64_t>(1, 64 << 20),
                                        rc::gen::element<std::uint64_t>(64, 1 << 20, (1 << 20) + 1, 5ULL << 32))};
      intervals.push_back(interval(begin, begin + length, aligned(bytes)));
    }
    return intervals;
  });
}

Bytes live_at(const std::vector<Interval>& intervals, std::uint64_t moment) {
  Bytes live;
  for (const Interval& i : intervals) {
    if (i.begin <= moment && moment < i.end) live += i.bytes;
  }
  return live;
}

TEST(LivePeak, IsTheLargestSumAndItsFirstMoment) {
  test_support::check_property(500, [] {
    const std::vector<Interval> intervals = *any_intervals();
    Peak expected;
    for (std::uint64_t moment = 0; moment < 64; ++moment) {
      if (live_at(intervals, moment) > expected.bytes) expected = {live_at(intervals, moment), moment};
    }
    const Peak peak = live_peak(intervals);
    RC_ASSERT(peak.bytes.count() == expected.bytes.count());
    RC_ASSERT(peak.moment == expected.moment);
  });
}

TEST(LivePeak, AnIntervalDoesNotLiveAtItsEnd) {
  const Peak peak = live_peak({interval(0, 5, 64_B), interval(5, 9, 128_B)});
  EXPECT_EQ(peak.bytes, 128_B);
  EXPECT_EQ(peak.moment, 5U);
}

TEST(LivePeak, OfNothingIsNothing) {
  EXPECT_EQ(live_peak({}).bytes, Bytes{});
  std::vector<Interval> none;
  EXPECT_EQ(pack(none, 1_GiB), Bytes{});
}

TEST(Pack, NeverOverlapsWhatLivesAtOnce) {
  test_support::check_property(500, [] {
    std::vector<Interval> intervals = *any_intervals();
    const std::vector<Interval> before = intervals;
    const Bytes top = pack(intervals, Bytes{});
    RC_ASSERT(top >= live_peak(before).bytes);
    Bytes highest;
    for (std::size_t i = 0; i < intervals.size(); ++i) {
      const Interval& a = intervals[i];
      RC_ASSERT(a.begin == before[i].begin);
      RC_ASSERT(a.end == before[i].end);
      RC_ASSERT(a.bytes.count() == before[i].bytes.count());
      RC_ASSERT(a.offset.count() % alignment_of(a.bytes).count() == 0U);
      highest = std::max(highest, a.offset + a.bytes);
      for (std::size_t j = 0; j < i; ++j) {
        const Interval& b = intervals[j];
        const bool at_once = a.begin < b.end && b.begin < a.end;
        const bool apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
        RC_ASSERT(!at_once || apart);
      }
    }
    RC_ASSERT(top.count() == highest.count());
  });
}

TEST(Pack, GivesTheSameOffsetsForTheSameIntervals) {
  test_support::check_property(100, [] {
    std::vector<Interval> once = *any_intervals();
    std::vector<Interval> again = once;
    RC_ASSERT(pack(once, 1_MiB).count() == pack(again, 1_MiB).count());
    for (std::size_t i = 0; i < once.size(); ++i) RC_ASSERT(once[i].offset.count() == again[i].offset.count());
  });
}

// Largest first puts both 5s at 0 and the 4 on them, so that the 3, which meets the 4 and a 5, ends at 12. The 3 under the
// 5, and the 4 on the 3, end at 9.
TEST(Pack, FindsThePackingThatLargestFirstMisses) {
  std::vector<Interval> intervals{interval(4, 5, 5_MiB), interval(3, 5, 3_MiB), interval(2, 3, 5_MiB),
                                  interval(0, 4, 4_MiB)};
  EXPECT_EQ(live_peak(intervals).bytes, 9_MiB);
  EXPECT_EQ(pack(intervals, Bytes{}), 9_MiB);
}

TEST(Pack, RefusesWhatCannotBeCounted) {
  std::vector<Interval> intervals(3, interval(0, 1, Bytes{1ULL << 63}));
  EXPECT_THROW(pack(intervals, Bytes{}), ArithmeticOverflow);
}

}  // namespace
}  // namespace shardplan
