// A catalog from tensors alone: units follow from their names (planner/units.h). Inside a unit tensors stay in the order
// given.
#pragma once

#include <string>
#include <vector>

#include "planner/catalog.h"

namespace shardplan {

// `tensors` have their whole names; the family of the catalog is "tensors". Throws ConfigError, with `source` as the
// file, for a name that comes twice or is empty, and for a catalog too large to be counted.
Catalog catalog_from_tensors(const std::string& source, std::vector<Tensor> tensors);

// Throws ConfigError for a name that comes twice or is empty.
void require_distinct_names(const std::string& source, const std::vector<Tensor>& tensors);

}  // namespace shardplan
