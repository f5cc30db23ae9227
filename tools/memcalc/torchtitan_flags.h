// Flags of profile torchtitan, and what it does whatever it is told. Included by client_flags.cpp and plan_flags.cpp.
#pragma once

#include <set>
#include <string>

#include "tools/memcalc/flags.h"
#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

void add_torchtitan_flags(CLI::App* app, ClientSetup& client);

// `given`: the flags of the command line. Throws ConfigError for flags of this profile where it is not the one.
void settle_torchtitan(PlanOptions& options, const std::set<std::string>& given);

}  // namespace shardplan::memcalc
