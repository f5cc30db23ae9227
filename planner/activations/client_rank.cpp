#include "planner/activations/client_rank.h"

#include <deque>
#include <utility>
#include <vector>

#include "planner/activations/pipeline.h"
#include "planner/activations/torch_programs/torchtitan_model.h"

namespace shardplan {
namespace {

LibraryUse libraries_of(const MegatronMachine& machine) {
  LibraryUse use;
  use.cublas_workspace_config = machine.cublas_workspace_config;
  return use;
}

void add_resident(const std::vector<ClientTerm>& terms, ClientHolds& holds) {
  for (const ClientTerm& term : terms) {
    const auto purpose = static_cast<std::size_t>(term.purpose);
    const auto bytes = static_cast<std::int64_t>(term.bytes.count());
    if (term.at_peak) holds.resident_at_peak[purpose] += bytes;
    if (term.after_step) holds.resident_after_step[purpose] += bytes;
  }
}

}  // namespace

std::vector<ClientTerm> client_terms(const Model& model, const Catalog& held, const Setup& setup,
                                     const ClientSetup& client, const std::optional<MegatronMachine>& machine) {
  if (client.profile == Profile::megatron) return megatron_client_terms(model, held, setup, client, machine);
  std::vector<ClientTerm> terms;
  if (client.profile == Profile::torchtitan) terms = torchtitan_client_terms(model, held, setup, client);
  if (!machine) return terms;
  for (const Workspace& workspace : workspaces_of(machine->generation, libraries_of(*machine)).list) {
    if (!workspace.in_allocator) continue;
    for (std::uint64_t i = 0; i < workspace.count; ++i) {
      terms.push_back({workspace.name, workspace.bytes, true, true, workspace.source});
    }
  }
  return terms;
}

ClientSide client_of_rank(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                          std::uint64_t stage, const std::optional<MegatronMachine>& machine,
                          const ChunkActivity& activity) {
  std::vector<Activity> chunks;
  for (const Catalog& chunk : chunks_of(model, held, setup.parallel, stage)) {
    const ActivityResult& result = activity(chunk);
    if (!result.activity) return {{}, result.unknown_because};
    chunks.push_back(*result.activity);
  }
  ClientHolds holds;
  holds.peak = peak_of(chunks, setup.parallel, stage, setup.accumulation).peak;
  add_resident(client_terms(model, held, setup, client, machine), holds);
  return {std::move(holds), {}};
}

ClientSide client_of_rank(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                          std::uint64_t stage, const std::optional<MegatronMachine>& machine) {
  ActivityResult result;
  const auto compute = [&](const Catalog& chunk) -> const ActivityResult& {
    return result = activity_of(model, chunk, setup, client, {.keeps_gradients = client.fresh_gradients});
  };
  return client_of_rank(model, held, setup, client, stage, machine, compute);
}

std::optional<Bytes> peak_reserved(const EngineBlocks& engine, const Model& model, const Catalog& held,
                                   const Setup& setup, const ClientSetup& client, std::uint64_t stage,
                                   const std::optional<MegatronMachine>& machine, const AllocatorOptions& allocator) {
  const PipelineSchedule schedule = resolved_schedule(setup.parallel);
  const bool ordered = schedule == PipelineSchedule::one_f_one_b || schedule == PipelineSchedule::interleaved;
  if (!ordered && setup.parallel.pipeline > 1) return std::nullopt;
  if (unit_count(held) > kMostReplayedUnits) return std::nullopt;
  ReplayedRank rank{.resident = engine.resident, .in_step = engine.computing, .chunks = {}};
  for (const ClientTerm& term : client_terms(model, held, setup, client, machine)) {
    if (term.at_peak) (term.after_step ? rank.resident : rank.in_step).push_back(term.bytes);
  }
  std::deque<autograd::Tape> tapes;
  for (const Catalog& chunk : chunks_of(model, held, setup.parallel, stage)) {
    autograd::Tape& tape =
        tapes.emplace_back(autograd::TapeOptions{.folds = false, .keeps_gradients = client.fresh_gradients});
    run_profile(tape, model, chunk, setup, client);
    rank.chunks.push_back(&tape);
  }
  return replay_steps(rank, setup.parallel, stage, setup.accumulation, allocator).peak_reserved;
}

}  // namespace shardplan
