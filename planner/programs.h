// The four programs of a step plan.
#pragma once

#include "planner/schedule.h"
#include "planner/step_plan.h"

namespace shardplan {

// Fills plan.programs from everything else in the plan.
void plan_programs(StepPlan& plan, const Schedule& schedule);

}  // namespace shardplan
