#include "tools/memcalc/explaining.h"

#include <utility>

#include "planner/activations/pipeline.h"
#include "planner/activations/profiles.h"

namespace shardplan::memcalc {
namespace {

std::string source_of(Profile profile) {
  if (profile == Profile::megatron) {
    return "megatron/core and transformer_engine/pytorch, each layer's save_for_backward; docs/memory_model.md, "
           "'Activations'";
  }
  if (profile == Profile::torchtitan) {
    return "torchtitan/models/llama/model.py and torchtitan/parallelisms; PyTorch, tools/autograd/derivatives.yaml and "
           "torch/distributed/tensor; docs/memory_model.md, 'Activations'";
  }
  return "transformers, modeling_*.py of the family; PyTorch, tools/autograd/derivatives.yaml, what each operation "
         "keeps; "
         "docs/memory_model.md, 'Activations'";
}

ExplainedClient explain_client(const PlanOptions& options, const Model& model, const Planned& planned) {
  const Setup& setup = options.setup;
  const ClientSetup client = options.whole_client();
  const std::uint64_t stage = planned.report.worst;
  const Catalog& held = planned.kinds[stage].catalog;
  ExplainedClient explained;
  explained.peak_at = planned.worst().device.peak_at;
  std::vector<Activity> activities;
  for (const Catalog& chunk : chunks_of(model, held, setup.parallel, stage)) {
    activities.push_back(activity_of(model, chunk, setup, client, {.keeps_gradients = false}).activity.value());
  }
  const PipelinePeak peak = peak_of(activities, setup.parallel, stage, setup.accumulation);
  for (std::size_t c = 0; c < activities.size(); ++c) {
    explained.chunks.push_back({std::move(activities[c].saved), peak.held[c]});
  }
  explained.live = live_at_peak(model, held, setup, client, stage);
  for (ClientTerm& term : client_terms(model, held, setup, client, machine_of(options))) {
    if (term.at_peak) explained.resident.push_back(std::move(term));
  }
  explained.source = source_of(client.profile);
  return explained;
}

}  // namespace

Explained make_explained(const PlanOptions& options) {
  const Model model = read_planned_model(options);
  Explained explained{.planned = make_planned(options, model), .client = {}};
  if (explained.planned.worst().device.peak_allocated) {
    explained.client = explain_client(options, model, explained.planned);
  }
  return explained;
}

}  // namespace shardplan::memcalc
