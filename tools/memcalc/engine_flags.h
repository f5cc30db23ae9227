// --offload, --hpz and --mics: one language for all engines, put into each one's own options.
#pragma once

#include <set>
#include <string>

#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

// Reads options.offload and checks all three against the engine, and that no flag was given that the engine would not heed;
// settles the engine's dtypes. options.offload then says what is offloaded, whether a flag or a file said it. `given`: the
// flags on the command line, as "--wire-dtype". Throws ConfigError, with the flag as its source, for what the engine does not
// have.
void apply_engine_flags(PlanOptions& options, const std::set<std::string>& given);

}  // namespace shardplan::memcalc
