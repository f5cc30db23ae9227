// Why each number of a report is what it is: formula, inputs and source.
#pragma once

#include <string>
#include <vector>

#include "planner/report.h"

namespace shardplan {

struct Explanation {
  std::string name;  // "optimizer states: master"
  Bytes bytes;
  std::string formula;  // "shard elements x bytes(fp32), summed over units"
  std::string inputs;   // "842,310,656 elements of 6,738,415,616 (8 shards, 69,632 of padding) x 4 B"
  std::string source;   // paper and section, or where in docs/
};

// Of one rank, in the order of the report; the entries that are not indented add up to the one called "arena" (engine
// shardplan) or "model states" (paper).
std::vector<Explanation> explain_shardplan(const Catalog& catalog, const StepPlan& plan);
std::vector<Explanation> explain_paper(const Catalog& catalog, const Setup& setup);

// What one rank sends in one step.
std::vector<Explanation> explain_traffic(const Catalog& catalog, const Setup& setup, const Report& report);

}  // namespace shardplan
