// Models of published measurements that are no presets, from the numbers in their sources.
#pragma once

#include <cstdint>
#include <string_view>

#include "planner/families/model.h"

namespace shardplan::test {

bool is_published_model(std::string_view name);
// `layers`: 0 for all that it has.
Model published_model(std::string_view name, std::uint64_t layers = 0);

}  // namespace shardplan::test
