// Where each tensor of a unit lies: which flat buffer, which elements, which parameter group.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/step_plan.h"
#include "shard/options.h"

namespace shardplan {

// A tensor of a unit, or the owner of one that is tied.
struct TensorPlace {
  std::uint64_t unit = 0;    // that owns the elements
  std::uint32_t buffer = 0;  // of that unit
  Range range;               // of the flat buffer
  std::uint32_t group = 0;
  std::uint64_t ordinal = 0;  // of the owner, in the catalog's order
  bool tied = false;
};

class ParameterIndex {
 public:
  // Throws ConfigError for a tensor that belongs to no group, naming it.
  ParameterIndex(const Catalog& catalog, const StepPlan& plan, const ZeroOptions& options);

  // In the order of the unit's tensors in the catalog.
  std::span<const TensorPlace> tensors(std::uint64_t unit) const;
  // The most tensors that a unit has.
  std::size_t most_tensors() const;
  bool owns_for_others(std::uint64_t unit) const { return is_owner_[unit]; }

 private:
  std::vector<TensorPlace> places_;
  std::vector<std::size_t> first_;  // of each unit, and the end
  std::vector<bool> is_owner_;
};

}  // namespace shardplan
