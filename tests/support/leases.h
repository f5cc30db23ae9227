// The leases of a walked program against the arena: who holds which bytes, when, and what the peak is.
#pragma once

#include <cstdint>
#include <string>

#include "tests/support/plan_walk.h"

namespace shardplan::test_support {

// Leases are inside their slots' times and inside the arena, two that live at once never overlap, and bytes change hands
// in an order that dependencies enforce: computes run in order, gathers and reductions run in order, and nothing
// but waits_for orders one with the other.
std::string lease_problem(const StepPlan& plan, const Walk& walk);

struct LivePeak {
  Bytes bytes;
  std::uint64_t moment = 0;
};

// The largest sum of bytes that the leases of one program hold at one moment, and the first such moment.
LivePeak lease_peak(const StepPlan& plan, const Walk& walk);

// Where the furthest array ends, and the furthest lease of one program, relative to the arena's shifted base.
Bytes furthest_array(const StepPlan& plan);
Bytes furthest_lease(const StepPlan& plan, const Walk& walk);

}  // namespace shardplan::test_support
