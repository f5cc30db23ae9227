#include "tests/planner/cost/step_model.h"

#include <algorithm>

#include "planner/cost/collective.h"

namespace shardplan::test {
namespace {

std::uint64_t elements_of(const UnitRun& run, bool trainable_only) {
  std::uint64_t sum = 0;
  for (const Tensor& tensor : run.tensors) {
    if (tensor.tied_to.empty() && (tensor.trainable || !trainable_only)) sum += elements(tensor.shape);
  }
  return sum;
}

bool is_expert(const Model& model, std::size_t run) {
  return std::any_of(model.modules[run].modules.begin(), model.modules[run].modules.end(),
                     [](const Module& module) { return module.routing.has_value(); });
}

std::uint64_t expert_elements(const ModuleRun& run) {
  std::uint64_t sum = 0;
  for (const Module& module : run.modules) {
    if (!module.routing) continue;
    for (const Tensor& tensor : module.tensors) sum += elements(tensor.shape);
  }
  return sum;
}

struct Traffic {
  double gather = 0;   // of one pass over all units
  double reduce = 0;   // of all units' gradients once
  double largest = 0;  // unit's collective: what nothing hides
};

// What all ranks of the data axis have goes over all of them. Experts that are shared out are the same on every
// `expert_ranks`-th rank only, and go over those (Megatron Core, expert data parallel groups).
Traffic traffic_of(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  Traffic traffic;
  const auto add = [&](std::uint64_t count, std::uint64_t size, std::uint64_t ranks, std::uint64_t stride) {
    const Group group = group_of(ranks, stride, cluster.gpus_per_node);
    const auto shard = [&](DType dtype) { return bytes_for(dtype, (size + ranks - 1) / ranks); };
    const double gather = cost_of(CollectiveKind::all_gather, shard(setup.policy.parameter), group, cluster).seconds;
    const CollectiveKind kind = setup.stage == 0 ? CollectiveKind::all_reduce : CollectiveKind::reduce_scatter;
    const double reduce = cost_of(kind, shard(setup.reduced), group, cluster).seconds;
    traffic.gather += static_cast<double>(count) * gather;
    traffic.reduce += static_cast<double>(count) * reduce;
    traffic.largest = std::max({traffic.largest, gather, reduce});
  };
  for (std::size_t i = 0; i < model.catalog.runs.size(); ++i) {
    const UnitRun& run = model.catalog.runs[i];
    const std::uint64_t experts = setup.expert_ranks > 1 ? expert_elements(model.modules[i]) : 0;
    add(run.count, elements_of(run, false) - experts, setup.ranks, 1);
    if (experts > 0) add(run.count, experts / setup.expert_ranks, setup.ranks / setup.expert_ranks, setup.expert_ranks);
  }
  return traffic;
}

// Exposed in every micro-batch: the computation waits for these.
double exchange_seconds(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  const auto exchange = [&](std::uint64_t ranks, std::uint64_t features) {
    const Group group = group_of(ranks, 1, cluster.gpus_per_node);
    const Bytes sent = bytes_for(DType::bf16, setup.work.tokens * features / ranks);
    return cost_of(CollectiveKind::all_to_all, sent, group, cluster).seconds;
  };
  double seconds = 0;
  for (std::size_t i = 0; i < model.modules.size(); ++i) {
    const auto count = static_cast<double>(model.modules[i].count);
    for (const Module& module : model.modules[i].modules) {
      if (setup.context_ranks > 1 && module.attention) {
        seconds +=
            count * 2 * (exchange(setup.context_ranks, module.input) + exchange(setup.context_ranks, module.output));
      }
    }
    if (setup.expert_ranks > 1 && is_expert(model, i)) {
      const auto routed = std::find_if(model.modules[i].modules.begin(), model.modules[i].modules.end(),
                                       [](const Module& module) { return module.routing.has_value(); });
      const std::uint64_t features = model.architecture.hidden * routed->routing->chosen;
      seconds += count * 4 * exchange(setup.expert_ranks, features);
    }
  }
  return seconds;
}

}  // namespace

double step_seconds(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  const PassSeconds passes = sum(unit_seconds(model, setup.work, cluster));
  const Traffic traffic = traffic_of(model, setup, cluster);
  const auto micro_batches = static_cast<double>(setup.micro_batches);
  const double compute = micro_batches * ((1 + setup.recomputed) * passes.forward + passes.backward +
                                          exchange_seconds(model, setup, cluster));
  const double gathers = setup.stage == 3 ? 2 * micro_batches : setup.stage == 0 ? 0 : 1;
  const double reduces = setup.stage >= 2 ? micro_batches : 1;
  const double communication = gathers * traffic.gather + reduces * traffic.reduce;
  std::uint64_t updated = 0;
  for (const UnitRun& run : model.catalog.runs) updated += run.count * elements_of(run, true);
  if (setup.stage > 0) updated = updated / setup.ranks;
  const double update = norm_seconds(updated, setup.policy.gradient, cluster) +
                        update_seconds(updated, setup.policy, OptimizerKind::adamw, cluster);
  if (!setup.overlapped) return compute + communication + update;
  return std::max(compute, communication) + 2 * traffic.largest + update;
}

}  // namespace shardplan::test
