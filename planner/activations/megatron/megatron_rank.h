// What Megatron's client holds on one rank of a pipeline: the activities of its chunks with the micro-batches in flight, and
// what it keeps beside.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "planner/activations/client_memory.h"
#include "planner/activations/megatron/megatron_model.h"

namespace shardplan {

struct MegatronHolds {
  std::optional<ClientHolds> holds;  // no micro-batch waits: those in flight are in its peak
  std::string unknown_because;       // where there is none
};

// `held`: all that the ranks of this stage have (planner/parallel.h). Without a machine, libraries' workspaces are left out.
MegatronHolds megatron_holds(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                             std::uint64_t stage, const std::optional<MegatronMachine>& machine);

}  // namespace shardplan
