// A model of which only the number of parameters is known (--params).
#pragma once

#include <cstdint>
#include <string>

#include "planner/families/model.h"

namespace shardplan {

// Reads "7e9", "7B", "1.5B", "350M", "7000000000": K, M, B (or G) and T, in either case, are thousands, millions,
// 1e9 and 1e12. Throws ConfigError, with --params as its source, for anything but a whole number of at least 1.
std::uint64_t parse_parameter_count(const std::string& text);

// One unit that holds one tensor: good for model states, not for anything that depends on units (count_only).
Catalog catalog_from_parameters(std::uint64_t elements);

}  // namespace shardplan
