// --offload, --hpz and --mics: one language for all engines, put into each one's own options.
#pragma once

#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

// Reads options.offload and checks all three against the engine. Throws ConfigError, with the flag as its source, for
// what the engine does not have.
void apply_engine_flags(PlanOptions& options);

}  // namespace shardplan::memcalc
