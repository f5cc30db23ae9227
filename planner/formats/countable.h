// Whether a catalog can be counted in 64 bits.
#pragma once

#include <string>

#include "planner/catalog.h"

namespace shardplan {

// Throws ConfigError, with the tensor or the run of units that is too large as its key.
void require_countable(const Catalog& catalog, const std::string& source);

}  // namespace shardplan
