// One training step on virtual ranks: ZeroOptimizer itself, driven by a client that computes nothing: it books time, and the
// tensors it would hold.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "planner/cost/cluster.h"
#include "planner/cost/collective.h"
#include "planner/cost/compute.h"
#include "planner/families/model.h"
#include "planner/step_plan.h"
#include "runtime/virtual/virtual_world.h"
#include "tools/simulate/client_memory.h"

namespace shardplan {

struct SimulationOptions {
  Cluster cluster;
  Work work;  // of one micro-batch
  std::uint64_t gpus_per_node = 8;
  std::uint64_t steps = 1;
  std::vector<Fault> faults{};
  std::chrono::milliseconds deadline{60'000};
  bool threads = virtual_ranks_are_threads();  // instead of fibers
  VirtualTrace* trace = nullptr;
  // What the client holds, booked on each rank's device. Null: it computes nothing but time.
  const ClientMemory* client = nullptr;
  // Of one rank: the order in which its client calls the units, to try what happens when it differs. Empty: the plan's.
  std::function<std::uint64_t(int rank, std::uint64_t unit)> unit_called{};
};

// Adapters do not span nodes: GPUs at one, of a cluster whose nodes have so many GPUs.
std::uint64_t gpus_per_adapter(const Cluster& cluster, std::uint64_t gpus_per_node);

// Seconds are those of the last step.
struct SimulatedRank {
  Bytes arena;       // furthest end ever handed out, and the room for shifts
  Bytes live_peak;   // the most of the arena that was handed out at once
  Bytes host_arena;  // the same two of pinned host memory
  Bytes host_live_peak;
  Bytes file;            // furthest end ever written
  Bytes file_live;       // bytes that have been written, each counted once
  Bytes peak_allocated;  // the most that was allocated on the device at one time: arenas and the client's tensors
  Bytes sent;            // to peers, in the last step
  std::uint64_t operations =
      0;  // kernels, copies and collectives, and the client's passes over units, in the last step
  // The step is the sum of these four, exactly: its compute stream worked; or stood still, while a collective of the
  // rank was on the wire; or while it waited for slower ranks in one; or for something else (the host, a stall, copies
  // on the communication stream).
  double step_seconds = 0;
  double compute_seconds = 0;
  double exposed_seconds = 0;
  double waiting_seconds = 0;
  double other_seconds = 0;
  double communication_seconds = 0;  // its collectives were on the wire
  double hidden_seconds() const { return communication_seconds - exposed_seconds; }
  VirtualOutcome outcome{};
  std::string error{};  // empty: none
};

struct Simulation {
  std::vector<SimulatedRank> ranks;
  std::uint64_t operations = 0;  // kernels, copies and collectives, over all ranks
  double step_seconds = 0;       // of the slowest rank
  LinkBytes sent{};              // by all ranks in all steps, by class of link
  std::vector<bool> happened{};  // for each of the options' faults
  double wall_seconds = 0;
};

// The prices of a cluster.
class ClusterCosts final : public Costs {
 public:
  ClusterCosts(const Cluster& cluster, std::uint64_t gpus_per_node)
      : cluster_(cluster), gpus_per_adapter_(gpus_per_adapter(cluster, gpus_per_node)) {}
  double memory_seconds(Bytes touched) const override;
  double host_link_seconds(Bytes in, Bytes out) const override;
  CollectivePrice collective(VirtualCollective kind, Bytes bytes, const GroupShape& group) const override;

 private:
  const Cluster& cluster_;
  std::uint64_t gpus_per_adapter_;
};

// Throws ConfigError where the cluster cannot price the model.
Simulation simulate(const Model& model, const StepPlan& plan, const SimulationOptions& options);

}  // namespace shardplan
