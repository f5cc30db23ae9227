// Two set-ups of one command side by side: what --against asks.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

// A number of both, each of the worst kind of rank; nothing where it is not known.
struct ComparedBytes {
  std::string part;  // "at_peak", "resident", "device", "communication"
  std::string name;  // as the plan's JSON calls it
  std::optional<Bytes> here;
  std::optional<Bytes> there;
};

struct Comparison {
  std::string flags;                     // that make the other set-up
  PlanOptions options;                   // of the other one
  Planned planned;                       // likewise
  std::vector<ComparedBytes> lines;      // those of at_peak add up to peak_allocated where activations are counted
  std::optional<double> seconds_here{};  // of a step, estimated (planner/cost/step_time.h)
  std::optional<double> seconds_there{};
  std::vector<std::string> notes{};
};

// `here`: what was planned of `options`. Throws what make_planned does for the other set-up.
Comparison compare(const PlanOptions& options, const Planned& here, std::string flags, PlanOptions there);

}  // namespace shardplan::memcalc
