// --offload, --hpz and --mics: one language for all engines, put into each one's own options.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

// Reads options.offload and checks all three against the engine, and that no flag was given that the engine would not heed; settles the engine's dtypes. options.offload then says
// what is offloaded, whether a flag or a file said it. `given`: the flags on the command line, as "--wire-dtype". Throws
// ConfigError, with the flag as its source, for what the engine does not have.
void apply_engine_flags(PlanOptions& options, const std::set<std::string>& given);

// Whether "optimizer", "parameters" or "gradients" are in options.offload.
bool offloads(const PlanOptions& options, std::string_view what);

// What a search tries for --offload: nothing first, then what the engine moves to the host at that stage. Files are left out,
// for how fast they are is not known.
std::vector<std::optional<std::string>> offload_choices(const PlanOptions& options);

}  // namespace shardplan::memcalc
