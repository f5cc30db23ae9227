// What the client holds on one rank: the activities of its chunks of the model with the micro-batches in flight, and what it
// keeps beside.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "planner/activations/client_memory.h"
#include "planner/activations/megatron/megatron_model.h"
#include "planner/activations/profiles.h"

namespace shardplan {

struct ClientSide {
  std::optional<ClientHolds> holds;
  std::string unknown_because;  // where there is none
};

// `held`: all that the ranks of this stage have (planner/parallel.h). Without a machine, libraries' workspaces are left out.
ClientSide client_of_rank(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                          std::uint64_t stage, const std::optional<MegatronMachine>& machine);

}  // namespace shardplan
