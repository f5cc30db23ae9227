// The options of a plan as a JSON object: see shardplan_plan_create in shardplan.h for the keys.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/setup.h"
#include "shard/options.h"

namespace shardplan::c_api {

struct Options {
  Setup setup;
  ZeroOptions optimizer;            // without its functions
  std::vector<std::string> freeze;  // globs
};

// Throws ConfigError for text that is no such object, for a key that is not known (it names the nearest that are), and
// for a setup that contradicts itself; its source is "options", or a flag of memcalc (planner/setup.h).
Options parse_options(std::string_view json);

}  // namespace shardplan::c_api
