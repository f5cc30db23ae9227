// What the client holds on one rank: the activities of its chunks of the model with the micro-batches in flight, and what it
// keeps beside.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "planner/activations/allocator.h"
#include "planner/activations/client_memory.h"
#include "planner/activations/megatron/megatron_model.h"
#include "planner/activations/profiles.h"

namespace shardplan {

// What runs every unit by itself (a replay, a list of tensors) is not done for ranks of more.
constexpr std::uint64_t kMostReplayedUnits = 4'096;

struct ClientSide {
  std::optional<ClientHolds> holds;
  std::string unknown_because;  // where there is none
};

// `held`: all that the ranks of this stage have (planner/parallel.h). Without a machine, libraries' workspaces are left out.
ClientSide client_of_rank(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                          std::uint64_t stage, const std::optional<MegatronMachine>& machine);

// The same with activities from `activity`, for many ranks whose chunks are alike: what activity_of (profiles.h) gives for one
// of this rank's chunks.
using ChunkActivity = std::function<const ActivityResult&(const Catalog& chunk)>;
ClientSide client_of_rank(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                          std::uint64_t stage, const std::optional<MegatronMachine>& machine,
                          const ChunkActivity& activity);

// What a rank keeps beside model states and activations, of whichever profile: workspaces of libraries, and of Megatron more.
// `held` and `machine` as above.
std::vector<ClientTerm> client_terms(const Model& model, const Catalog& held, const Setup& setup,
                                     const ClientSetup& client, const std::optional<MegatronMachine>& machine);

// What the engine holds on the device, as it allocates it.
struct EngineBlocks {
  std::vector<Bytes> resident;   // all the time
  std::vector<Bytes> computing;  // besides, while the model computes
};

// The most that torch's caching allocator reserves for engine and client in a step, on a GPU that is large enough (planner/
// activations/allocator.h). Nothing for schedules whose order of passes is not written out, and for ranks of more than 4,096 units. Only
// where client_of_rank knows what the client holds.
std::optional<Bytes> peak_reserved(const EngineBlocks& engine, const Model& model, const Catalog& held,
                                   const Setup& setup, const ClientSetup& client, std::uint64_t stage,
                                   const std::optional<MegatronMachine>& machine, const AllocatorOptions& allocator);

}  // namespace shardplan
