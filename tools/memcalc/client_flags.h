// Flags that say whose code computes the model, on what, and how: they decide activations, never model states.
#pragma once

#include "tools/memcalc/flags.h"
#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

void add_client_flags(CLI::App* app, PlanOptions& options);

}  // namespace shardplan::memcalc
