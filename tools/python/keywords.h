// The keyword arguments of plan, explain and simulate as memcalc's options. A keyword is a flag of memcalc with its
// dashes as underscores and means the same; errors name the flag.
#pragma once

#include <nanobind/nanobind.h>

#include "tools/memcalc/options.h"

namespace shardplan::python {

// `given` holds what is not None. Throws ConfigError.
memcalc::PlanOptions plan_options(const nanobind::dict& given);
memcalc::SimulateOptions simulate_options(const nanobind::dict& given);
// Of these, what a step plan is made from.
Setup setup_of(const nanobind::dict& given);

}  // namespace shardplan::python
