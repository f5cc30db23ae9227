#include "planner/packing.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "planner/alignment.h"

namespace shardplan {
namespace {

// Comparisons of two intervals: a bound on the search, a few milliseconds.
constexpr std::size_t kWork = 1'000'000;

bool overlap(const Interval& a, const Interval& b) {
  return a.begin < b.end && b.begin < a.end;
}

// Gives each interval, in `order`, the lowest offset at which it meets no earlier one. Returns the highest end.
Bytes first_fit(std::vector<Interval>& intervals, const std::vector<std::size_t>& order) {
  std::vector<std::size_t> placed;  // by offset
  placed.reserve(order.size());
  Bytes top;
  for (const std::size_t index : order) {
    Interval& interval = intervals[index];
    Bytes offset;
    for (const std::size_t other : placed) {
      const Interval& lower = intervals[other];
      if (!overlap(interval, lower)) continue;
      if (offset + interval.bytes <= lower.offset) break;
      offset = std::max(offset, round_up(lower.offset + lower.bytes, alignment_of(interval.bytes)));
    }
    interval.offset = offset;
    const auto place = std::upper_bound(placed.begin(), placed.end(), offset, [&](Bytes value, std::size_t other) {
      return value < intervals[other].offset;
    });
    placed.insert(place, index);
    top = std::max(top, offset + interval.bytes);
  }
  return top;
}

// Fisher-Yates with a fixed generator (Steele et al., SplitMix64): the same orders on every machine.
void shuffle(std::vector<std::size_t>& order, std::uint64_t& state) {
  for (std::size_t i = order.size(); i > 1; --i) {
    state += 0x9e3779b97f4a7c15U;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    std::swap(order[i - 1], order[(z ^ (z >> 31)) % i]);
  }
}

}  // namespace

Peak live_peak(const std::vector<Interval>& intervals) {
  struct Event {
    std::uint64_t moment;
    bool starts;
    Bytes bytes;
  };
  std::vector<Event> events;
  events.reserve(2 * intervals.size());
  for (const Interval& interval : intervals) {
    events.push_back({interval.begin, true, interval.bytes});
    events.push_back({interval.end, false, interval.bytes});
  }
  // Ends come first: an interval does not live at its end.
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) {
    return a.moment != b.moment ? a.moment < b.moment : a.starts < b.starts;
  });
  Peak peak;
  Bytes live;
  for (const Event& event : events) {
    if (!event.starts) {
      live -= event.bytes;
      continue;
    }
    live += event.bytes;
    if (live > peak.bytes) peak = {live, event.moment};
  }
  return peak;
}

Bytes pack(std::vector<Interval>& intervals, Bytes base) {
  if (intervals.empty()) return Bytes{};
  const Bytes peak = live_peak(intervals).bytes;
  const Bytes good_enough = peak + Bytes{(base + peak).count() / 256};

  std::vector<std::size_t> order(intervals.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (intervals[a].bytes != intervals[b].bytes) return intervals[a].bytes > intervals[b].bytes;
    return intervals[a].begin != intervals[b].begin ? intervals[a].begin < intervals[b].begin : a < b;
  });

  Bytes best = first_fit(intervals, order);
  std::vector<Interval> best_intervals = intervals;
  std::uint64_t state = 0;
  for (std::size_t i = kWork / (order.size() * order.size()); i > 0 && best > good_enough; --i) {
    shuffle(order, state);
    const Bytes top = first_fit(intervals, order);
    if (top >= best) continue;
    best = top;
    best_intervals = intervals;
  }
  intervals = std::move(best_intervals);
  return best;
}

}  // namespace shardplan
