// What a rank's first stream did while it stood still. Internal to runtime/virtual.
//
// A moment at which it stands still is exposed communication if one of the rank's collectives is on the wire; if not,
// it is waiting if one of them has been called and a peer has not come to it; if not, it is idle: the host, or work of
// another stream.
#pragma once

#include <vector>

namespace shardplan {

struct StandStill {
  double exposed = 0;
  double waiting = 0;
  double idle = 0;
};

class CollectiveTimes {
 public:
  // A collective that was called at `called`, met at `begin` and was over at `end`; nothing before `still_needed` will
  // be asked for.
  void add(double called, double begin, double end, double still_needed);
  // The parts of from .. to. Ranges are asked for in order.
  StandStill parts(double from, double to);

 private:
  struct Times {
    double called;
    double begin;
    double end;
  };
  std::vector<Times> times_;  // few: those that the first stream has not passed
};

}  // namespace shardplan
