#include "runtime/virtual/step_parts.h"

#include <algorithm>

namespace shardplan {

void CollectiveTimes::add(double called, double begin, double end, double still_needed) {
  std::erase_if(times_, [&](const Times& times) { return times.end <= still_needed; });
  if (end > still_needed) times_.push_back({called, begin, end});
}

StandStill CollectiveTimes::parts(double from, double to) {
  StandStill parts;
  for (double at = from; at < to;) {
    // Up to the next moment at which anything changes.
    double next = to;
    bool on_wire = false;
    bool called = false;
    for (const Times& times : times_) {
      for (const double change : {times.called, times.begin, times.end}) {
        if (change > at) next = std::min(next, change);
      }
      on_wire = on_wire || (times.begin <= at && at < times.end);
      called = called || (times.called <= at && at < times.begin);
    }
    (on_wire ? parts.exposed : called ? parts.waiting : parts.idle) += next - at;
    at = next;
  }
  std::erase_if(times_, [&](const Times& times) { return times.end <= to; });
  return parts;
}

}  // namespace shardplan
