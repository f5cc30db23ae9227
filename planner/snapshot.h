// The buffer of a checkpoint that is written while training goes on.
//
// A rank copies its part of the state into it, and another thread writes from there. The part is what
// a rank saves: its shard of each flat buffer, of which replicas take a share each (planner/layout.h), of every kind of
// state in full precision. All ranks plan the same, the largest part; padding is counted, so that the buffer
// does not depend on the rank.
#pragma once

#include "planner/report.h"
#include "planner/step_plan.h"

namespace shardplan {

Bytes snapshot_bytes(const StepPlan& plan);
// To a report's host memory, and to its arenas.
void add_snapshot(RankReport& rank, Bytes snapshot);

}  // namespace shardplan
