#include "planner/activations/client_rank.h"

#include <utility>
#include <vector>

#include "planner/activations/pipeline.h"

namespace shardplan {
namespace {

// Libraries' workspaces, and what Megatron keeps of its own.
void add_resident(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                  const std::optional<MegatronMachine>& machine, ClientHolds& holds) {
  if (client.profile != Profile::megatron) {
    if (!machine) return;
    LibraryUse use;
    use.cublas_workspace_config = machine->cublas_workspace_config;
    holds.resident_at_peak = holds.resident_after_step = workspaces_of(machine->generation, use).allocated();
    return;
  }
  for (const MegatronTerm& term : megatron_client_terms(model, held, setup, client, machine)) {
    if (term.at_peak) holds.resident_at_peak += term.bytes;
    if (term.after_step) holds.resident_after_step += term.bytes;
  }
}

}  // namespace

ClientSide client_of_rank(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                          std::uint64_t stage, const std::optional<MegatronMachine>& machine) {
  std::vector<Activity> chunks;
  for (const Catalog& chunk : chunks_of(model, held, setup.parallel, stage)) {
    ActivityResult result = activity_of(model, chunk, setup, client, {.keeps_gradients = false});
    if (!result.activity) return {{}, std::move(result.unknown_because)};
    chunks.push_back(std::move(*result.activity));
  }
  ClientHolds holds;
  holds.peak = peak_of(chunks, setup.parallel, stage, setup.accumulation).peak;
  add_resident(model, held, setup, client, machine, holds);
  return {std::move(holds), {}};
}

}  // namespace shardplan
