// The report of a world from the reports of its kinds of ranks.
#pragma once

#include <vector>

#include "planner/parallel.h"
#include "planner/report.h"

namespace shardplan {

// One rank whose experts are an optimizer of their own, on their own data axis (Setup of expert_setup): everything is
// held at once, and each optimizer has its arenas. The peak is the sum of both, which is at most what is reached.
Report with_experts(Report others, const Report& experts);

// The setup that ranks of experts see: the same with their own data axis. Throws ConfigError for hybrid sharding, whose
// groups would be others.
Setup expert_setup(const Setup& setup);

// reports[i] is of kinds[i] and has one rank. Ranks keep that order; the traffic is the worst rank's; notes are said
// once.
Report world_report(const std::vector<RankKind>& kinds, std::vector<Report> reports);

}  // namespace shardplan
