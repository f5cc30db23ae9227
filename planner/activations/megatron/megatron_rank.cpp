#include "planner/activations/megatron/megatron_rank.h"

#include "planner/activations/pipeline.h"
#include "planner/activations/profiles.h"

namespace shardplan {

MegatronHolds megatron_holds(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                             std::uint64_t stage, const std::optional<MegatronMachine>& machine) {
  std::vector<Activity> chunks;
  for (const Catalog& chunk : chunks_of(model, held, setup.parallel, stage)) {
    ActivityResult result = activity_of(model, chunk, setup, client, {.keeps_gradients = false});
    if (!result.activity) return {{}, std::move(result.unknown_because)};
    chunks.push_back(std::move(*result.activity));
  }
  ClientHolds holds;
  holds.peak = peak_of(chunks, setup.parallel, stage, setup.accumulation).peak;
  for (const MegatronTerm& term : megatron_client_terms(model, held, setup, client, machine)) {
    (!term.at_peak ? holds.between_steps : term.after_step ? holds.workspaces : holds.in_step) += term.bytes;
  }
  return {std::move(holds), {}};
}

}  // namespace shardplan
