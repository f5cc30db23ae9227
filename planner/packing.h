// Offsets for buffers with known lifetimes (dynamic storage allocation): buffers that live at the same time must not
// overlap, and the highest end should be low.
//
// First fit, largest first; where that leaves gaps, first fit in other orders, drawn by a fixed generator, until the
// result is within 1/256 of the live peak or the search has done its share. Some order always gives an optimal
// packing, and a step plan has about a dozen intervals (runs are folded), so a few hundred orders find one.
// Deterministic.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace shardplan {

struct Interval {
  std::uint64_t begin = 0;  // moments, half open
  std::uint64_t end = 0;
  Bytes bytes;
  Bytes offset;  // the result
};

struct Peak {
  Bytes bytes;
  std::uint64_t moment = 0;  // the first at which it is reached
};

// The largest sum of bytes that live at one moment.
Peak live_peak(const std::vector<Interval>& intervals);

// Sets every offset; returns the highest end. `base` is what lies beneath (resident bytes): it only decides how soon
// the result is good enough.
Bytes pack(std::vector<Interval>& intervals, Bytes base);

}  // namespace shardplan
