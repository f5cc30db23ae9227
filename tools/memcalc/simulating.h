// From the options of simulate to what virtual ranks saw.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tools/memcalc/options.h"
#include "tools/memcalc/planning.h"
#include "tools/simulate/simulation.h"

namespace shardplan::memcalc {

struct SimulatedStage {
  Planned planned;
  std::vector<Fault> faults;
  Simulation simulation;
};

struct Simulated {
  PlanOptions options;                 // as given, with the sequence and the GPU that were taken where none was said
  std::optional<ClientMemory> client;  // what was booked beside the optimizer; nothing where activations are not known
  Cluster cluster;
  Work work;  // without its rows, which are these:
  RowsOfModules rows;
  std::uint64_t gpus_per_node = 8;
  // One; or stages 0 to 3, with --compare-stages.
  std::vector<SimulatedStage> stages;
  std::vector<std::string> notes;
};

// The cluster of that name or file, else the first that has --gpu, else the default, with a note that says so. A GPU's
// name decides prices and memory; its size, memory alone. Throws ConfigError.
Cluster choose_cluster(const PlanOptions& options, const std::optional<std::string>& wanted,
                       std::vector<std::string>& notes);

// Reads MODEL and the cluster, simulates, and writes the files that were asked for. `progress` is told what is simulated
// before each part. Throws Error.
Simulated make_simulated(const PlanOptions& options, const SimulateOptions& simulate,
                         const std::function<void(const std::string&)>& progress);

// Ranks that others waited for, for more than 5 % of the step, while they waited for few. None where a rank failed.
std::vector<std::size_t> stragglers_of(const Simulation& simulation);

// The rank that took longest; among equals, the one that waited least for others.
const SimulatedRank& slowest(const Simulation& simulation);

}  // namespace shardplan::memcalc
