// From the options of plan and explain to numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/report.h"
#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

struct Capacity {
  std::string name;
  Bytes bytes;
};

// A GPU's name from the table, or a size such as 80GiB. Throws ConfigError.
Capacity find_capacity(const std::string& text, const std::vector<std::string>& gpu_files);

struct Planned {
  Catalog catalog;
  std::optional<StepPlan> plan;  // engine shardplan
  Report report;
  std::optional<Capacity> gpu;
  // false: what is known to be needed is more than the GPU has. Nothing: it may fit, the rest is not counted yet, or no
  // GPU was named.
  std::optional<bool> fits;

  const RankReport& worst() const { return report.ranks[report.worst]; }
};

// Reads MODEL and the GPU table, plans, and folds the plan into the report. Throws Error.
Planned make_planned(const PlanOptions& options);

}  // namespace shardplan::memcalc
