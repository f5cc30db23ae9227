#include "planner/cost/step_time.h"

#include <algorithm>
#include <vector>

#include "base/checked.h"
#include "planner/cost/collective.h"

namespace shardplan {
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

// What a rank has of the model goes over the ranks of its data axis, which lie `tensor_ranks` apart. Experts that are shared out are the same on every
// `expert_ranks`-th rank only, and go over those (Megatron Core, expert data parallel groups).
Traffic traffic_of(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  Traffic traffic;
  const auto add = [&](std::uint64_t count, std::uint64_t size, std::uint64_t ranks, std::uint64_t stride) {
    const Group group = group_of(ranks, stride * setup.tensor_ranks, cluster.gpus_per_node);
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
    const std::uint64_t held = run.numbered ? divide_up(run.count, setup.stages) : run.count;
    add(held, (elements_of(run, false) - experts) / setup.tensor_ranks, setup.ranks, 1);
    // Experts' data axis is what is left of the data and the tensor axis (planner/setup.h, expert_world_size).
    if (experts > 0) {
      const std::uint64_t ranks = std::max<std::uint64_t>(setup.ranks * setup.tensor_ranks / setup.expert_ranks, 1);
      add(held, experts / setup.expert_ranks, ranks,
          std::max<std::uint64_t>(setup.expert_ranks / setup.tensor_ranks, 1));
    }
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

// One rank's part of a block's activations, summed over the tensor ranks: behind attention and behind the MLP, forward
// and backward (Shoeybi et al., arXiv 1909.08053, sec. 3). With sequence parallelism each sum is a reduce-scatter and a
// gather, and the backward gathers the inputs again (Korthikanti et al., arXiv 2205.05198, sec. 4.2.2).
double tensor_seconds(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  if (setup.tensor_ranks == 1) return 0;
  const Group group = group_of(setup.tensor_ranks, 1, cluster.gpus_per_node);
  const Bytes shard = bytes_for(DType::bf16, setup.work.tokens * model.architecture.hidden / setup.tensor_ranks);
  const auto seconds = [&](CollectiveKind kind) { return cost_of(kind, shard, group, cluster).seconds; };
  const double sum = setup.sequence_parallel
                         ? seconds(CollectiveKind::reduce_scatter) + seconds(CollectiveKind::all_gather)
                         : seconds(CollectiveKind::all_reduce);
  const double again = setup.sequence_parallel ? seconds(CollectiveKind::all_gather) : 0;
  double blocks = 0;
  for (const UnitRun& run : model.catalog.runs) blocks += run.numbered ? static_cast<double>(run.count) : 0;
  return blocks * (2 * sum * (2 + setup.recomputed) + 2 * again);
}

// One micro-batch's hidden features to the next stage, and their gradient back.
double passing_seconds(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  if (setup.stages == 1) return 0;
  const std::uint64_t parts = setup.sequence_parallel ? setup.tensor_ranks : 1;
  const Bytes sent = bytes_for(DType::bf16, setup.work.tokens * model.architecture.hidden / parts);
  const Group group = group_of(2, setup.ranks * setup.tensor_ranks, cluster.gpus_per_node);
  return 2 * static_cast<double>(setup.virtual_stages) *
         cost_of(CollectiveKind::all_gather, sent, group, cluster).seconds;
}

// Of one micro-batch on the slowest stage: its share of the blocks, and what comes before or behind them.
PassSeconds slowest_stage(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  const std::vector<UnitRunSeconds> runs = unit_seconds(model, setup.work, cluster);
  PassSeconds blocks;
  PassSeconds before;
  PassSeconds behind;
  std::uint64_t unit = 0;
  bool any_blocks = false;
  for (const UnitRun& run : model.catalog.runs) {
    const PassSeconds& each = seconds_of_unit(runs, unit);
    unit += run.count;
    PassSeconds& part = run.numbered ? blocks : any_blocks ? behind : before;
    any_blocks = any_blocks || run.numbered;
    for (double* of : {&part.forward, &part.backward}) {
      *of += static_cast<double>(run.count) * (of == &part.forward ? each.forward : each.backward);
    }
  }
  const auto stages = static_cast<double>(setup.stages);
  PassSeconds slowest{blocks.forward / stages, blocks.backward / stages};
  if (setup.stages == 1) {
    slowest += before;
    slowest += behind;
  } else {
    slowest += before.forward + before.backward > behind.forward + behind.backward ? before : behind;
  }
  const auto ranks = static_cast<double>(setup.tensor_ranks);
  return {slowest.forward / ranks, slowest.backward / ranks};
}

// Seconds in which a stage has nothing to do, while the pipeline fills and drains. W, the weight gradients, is half of a
// backward.
double bubble_seconds(const StepSetup& setup, double forward, double backward) {
  const double others = static_cast<double>(setup.stages) - 1;
  const double weights = backward / 2;
  switch (setup.schedule) {
    case PipelineSchedule::one_f_one_b:  // Narayanan et al., arXiv 2104.04473, sec. 2.2.1
      return others * (forward + backward);
    case PipelineSchedule::interleaved:  // the same, sec. 2.2.2
      return others * (forward + backward) / static_cast<double>(setup.virtual_stages);
    case PipelineSchedule::zero_bubble:  // Qi et al., arXiv 2401.10241, table 2, ZB-H1
      return others * (forward + backward - 2 * weights);
    case PipelineSchedule::dualpipe:  // DeepSeek-V3, arXiv 2412.19437, table 2
      return std::max((others + 1) / 2 - 1, 0.0) * (forward + backward + backward - 3 * weights);
  }
  return 0;
}

}  // namespace

StepTime step_time(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  const PassSeconds passes = slowest_stage(model, setup, cluster);
  const Traffic traffic = traffic_of(model, setup, cluster);
  const auto micro_batches = static_cast<double>(setup.micro_batches);
  const auto stages = static_cast<double>(setup.stages);
  const double forward = (1 + setup.recomputed) * passes.forward;
  // What computation waits for in each micro-batch.
  const double waits = (exchange_seconds(model, setup, cluster) + tensor_seconds(model, setup, cluster)) / stages +
                       passing_seconds(model, setup, cluster);
  StepTime time;
  time.computing = micro_batches * (forward + passes.backward);
  time.bubble = bubble_seconds(setup, forward + waits / 2, passes.backward + waits / 2);
  const double gathers = setup.stage == 3 ? 2 * micro_batches : setup.stage == 0 ? 0 : 1;
  const double reduces = setup.stage >= 2 ? micro_batches : 1;
  const double data = gathers * traffic.gather + reduces * traffic.reduce;
  const double busy = time.computing + micro_batches * waits;
  time.communicating = micro_batches * waits;
  time.communicating += setup.overlapped ? std::max(data - busy, 0.0) + 2 * traffic.largest : data;

  std::uint64_t updated = 0;
  for (const UnitRun& run : model.catalog.runs) updated += run.count * elements_of(run, true);
  updated /= setup.tensor_ranks * setup.stages;
  if (setup.stage > 0) updated /= setup.ranks;
  time.updating = norm_seconds(updated, setup.policy.gradient, cluster) +
                  update_seconds(updated, setup.policy, setup.optimizer, cluster);
  return time;
}

}  // namespace shardplan
