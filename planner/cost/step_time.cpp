#include "planner/cost/step_time.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
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

std::uint64_t expert_elements(const ModuleRun& run) {
  std::uint64_t sum = 0;
  for (const Module& module : run.modules) {
    if (!module.routing) continue;
    for (const Tensor& tensor : module.tensors) sum += elements(tensor.shape);
  }
  return sum;
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

StepTimes::StepTimes(const Model& model, const Cluster& cluster) : model_(model), cluster_(cluster) {
  for (std::size_t i = 0; i < model.catalog.runs.size(); ++i) {
    const UnitRun& run = model.catalog.runs[i];
    const std::uint64_t experts = i < model.modules.size() ? expert_elements(model.modules[i]) : 0;
    const std::uint64_t all = elements_of(run, false);
    runs_.push_back({run.count, run.numbered, all - experts, experts, elements_of(run, true)});
    if (run.numbered) blocks_ += static_cast<double>(run.count);
    elements_ += run.count * all;
    trainable_ += run.count * runs_.back().trainable;
  }
}

// What a rank has of the model goes over the ranks of its data axis, which lie `tensor_ranks` apart. Experts that are shared
// out are the same on every `expert_ranks`-th rank only, and go over those (Megatron Core, expert data parallel groups). With
// replicas a shard is gathered and reduced inside its group, and its sum is all-reduced over those that hold the same.
const StepTimes::Traffic& StepTimes::traffic_of(const StepSetup& setup) {
  const std::uint64_t replicas = setup.stage == 0 ? 1 : setup.replicas;
  const Key key{setup.ranks, replicas, setup.tensor_ranks, setup.stages, setup.expert_ranks, setup.stage == 0};
  const auto found = traffic_.find(key);
  if (found != traffic_.end()) return found->second;
  Traffic traffic;
  const auto add = [&](std::uint64_t count, std::uint64_t size, std::uint64_t ranks, std::uint64_t stride) {
    const std::uint64_t shards = std::max<std::uint64_t>(ranks / replicas, 1);
    const Group group = group_of(shards, stride * setup.tensor_ranks, cluster_.gpus_per_node);
    const auto shard = [&](DType dtype) { return bytes_for(dtype, divide_up(size, shards)); };
    const double gather = cost_of(CollectiveKind::all_gather, shard(setup.policy.parameter), group, cluster_).seconds;
    const CollectiveKind kind = setup.stage == 0 ? CollectiveKind::all_reduce : CollectiveKind::reduce_scatter;
    double reduce = cost_of(kind, shard(setup.reduced), group, cluster_).seconds;
    if (ranks / shards > 1) {
      const Group same = group_of(ranks / shards, shards * stride * setup.tensor_ranks, cluster_.gpus_per_node);
      const Bytes part = bytes_for(setup.reduced, divide_up(size, ranks));
      reduce += cost_of(CollectiveKind::all_reduce, part, same, cluster_).seconds;
    }
    traffic.gather += static_cast<double>(count) * gather;
    traffic.reduce += static_cast<double>(count) * reduce;
    traffic.largest = std::max({traffic.largest, gather, reduce});
  };
  for (const Run& run : runs_) {
    const std::uint64_t experts = setup.expert_ranks > 1 ? run.expert_elements : 0;
    const std::uint64_t held = run.numbered ? divide_up(run.count, setup.stages) : run.count;
    add(held, (run.elements + run.expert_elements - experts) / setup.tensor_ranks, setup.ranks, 1);
    // Experts' data axis is what is left of the data and the tensor axis (planner/setup.h, expert_world_size).
    if (experts > 0) {
      const std::uint64_t ranks = std::max<std::uint64_t>(setup.ranks * setup.tensor_ranks / setup.expert_ranks, 1);
      add(held, experts / setup.expert_ranks, ranks,
          std::max<std::uint64_t>(setup.expert_ranks / setup.tensor_ranks, 1));
    }
  }
  return traffic_.emplace(key, traffic).first->second;
}

// Exposed in every micro-batch: the computation waits for these.
double StepTimes::exchange_seconds(const StepSetup& setup) {
  if (setup.context_ranks == 1 && setup.expert_ranks == 1) return 0;
  const Key key{setup.work.tokens, setup.context_ranks, setup.expert_ranks};
  const auto found = exchanges_.find(key);
  if (found != exchanges_.end()) return found->second;
  const auto exchange = [&](std::uint64_t ranks, std::uint64_t features) {
    const Group group = group_of(ranks, 1, cluster_.gpus_per_node);
    const Bytes sent = bytes_for(DType::bf16, setup.work.tokens * features / ranks);
    return cost_of(CollectiveKind::all_to_all, sent, group, cluster_).seconds;
  };
  double seconds = 0;
  for (const ModuleRun& run : model_.modules) {
    const auto count = static_cast<double>(run.count);
    const Module* routed = nullptr;
    for (const Module& module : run.modules) {
      if (routed == nullptr && module.routing) routed = &module;
      if (setup.context_ranks > 1 && module.attention) {
        seconds += count * walks() *
                   (exchange(setup.context_ranks, module.input) + exchange(setup.context_ranks, module.output));
      }
    }
    if (setup.expert_ranks > 1 && routed != nullptr) {
      const Routing& routing = *routed->routing;
      const double load = load_of_rank(setup.expert_ranks, routing.experts, routing.chosen, setup.work.expert_load);
      const std::uint64_t features = model_.architecture.hidden * routing.chosen;
      // The most loaded rank receives that much more, and sends it back.
      seconds += count * walks() * 2 * load * exchange(setup.expert_ranks, features);
    }
  }
  return exchanges_.emplace(key, seconds).first->second;
}

// One rank's part of a block's activations, summed over the tensor ranks: behind attention and behind the MLP, forward
// and backward (Shoeybi et al., arXiv 1909.08053, sec. 3). With sequence parallelism each sum is a reduce-scatter and a
// gather, and the backward gathers the inputs again (Korthikanti et al., arXiv 2205.05198, sec. 4.2.2).
double StepTimes::tensor_seconds(const StepSetup& setup) const {
  if (setup.tensor_ranks == 1) return 0;
  const Group group = group_of(setup.tensor_ranks, 1, cluster_.gpus_per_node);
  const Bytes shard = bytes_for(DType::bf16, setup.work.tokens * model_.architecture.hidden / setup.tensor_ranks);
  const auto seconds = [&](CollectiveKind kind) { return cost_of(kind, shard, group, cluster_).seconds; };
  const double sum = setup.sequence_parallel
                         ? seconds(CollectiveKind::reduce_scatter) + seconds(CollectiveKind::all_gather)
                         : seconds(CollectiveKind::all_reduce);
  if (!trains()) return blocks_ * 2 * sum;
  const double again = setup.sequence_parallel ? seconds(CollectiveKind::all_gather) : 0;
  return blocks_ * (2 * sum * (2 + setup.recomputed) + 2 * again);
}

// One micro-batch's logits, each tensor rank's words to all others. Their gradient is a part of what each rank has.
double StepTimes::logits_seconds(const StepSetup& setup) const {
  if (setup.tensor_ranks == 1 || !setup.gathers_logits) return 0;
  const Bytes shard = bytes_for(DType::bf16, setup.work.tokens * model_.architecture.vocabulary / setup.tensor_ranks);
  const Group group = group_of(setup.tensor_ranks, 1, cluster_.gpus_per_node);
  return cost_of(CollectiveKind::all_gather, shard, group, cluster_).seconds;
}

// One micro-batch's hidden features to the next stage, and their gradient back.
double StepTimes::passing_seconds(const StepSetup& setup) const {
  if (setup.stages == 1) return 0;
  const std::uint64_t parts = setup.sequence_parallel ? setup.tensor_ranks : 1;
  const Bytes sent = bytes_for(DType::bf16, setup.work.tokens * model_.architecture.hidden / parts);
  const Group group = group_of(2, setup.ranks * setup.tensor_ranks, cluster_.gpus_per_node);
  return walks() * static_cast<double>(setup.virtual_stages) *
         cost_of(CollectiveKind::all_gather, sent, group, cluster_).seconds;
}

const StepTimes::Parts& StepTimes::parts_of(const Work& work) {
  const Key key{work.tokens,       work.sequence,    std::bit_cast<std::uint64_t>(work.samples),
                work.expert_ranks, work.accumulates, work.causal};
  SHARDPLAN_CHECK(rows_.try_emplace(work.sequence, work.rows).first->second == work.rows,
                  "of one sequence there are the same rows");
  const auto found = parts_.find(key);
  if (found != parts_.end()) return found->second;
  const std::vector<UnitRunSeconds> seconds = unit_seconds(model_, work, cluster_);
  Parts parts;
  std::uint64_t unit = 0;
  bool any_blocks = false;
  for (const Run& run : runs_) {
    const PassSeconds& each = seconds_of_unit(seconds, unit);
    unit += run.count;
    PassSeconds& part = run.numbered ? parts.blocks : any_blocks ? parts.behind : parts.before;
    any_blocks = any_blocks || run.numbered;
    part += {static_cast<double>(run.count) * each.forward, static_cast<double>(run.count) * each.backward};
  }
  return parts_.emplace(key, parts).first->second;
}

// Of one micro-batch on the slowest stage: its share of the blocks, and what comes before or behind them.
PassSeconds StepTimes::slowest_stage(const StepSetup& setup) {
  const Parts& parts = parts_of(setup.work);
  const auto stages = static_cast<double>(setup.stages);
  const PassSeconds& before = parts.before;
  const PassSeconds& behind = parts.behind;
  PassSeconds slowest{parts.blocks.forward / stages, parts.blocks.backward / stages};
  if (setup.stages == 1) {
    slowest += before;
    slowest += behind;
  } else {
    slowest += before.forward + before.backward > behind.forward + behind.backward ? before : behind;
  }
  const auto ranks = static_cast<double>(setup.tensor_ranks);
  return {slowest.forward / ranks, slowest.backward / ranks};
}

double StepTimes::shard_elements(const StepSetup& setup, bool held, int sharded_from) const {
  const std::uint64_t shards =
      setup.stage >= sharded_from ? std::max<std::uint64_t>(setup.ranks / setup.replicas, 1) : 1;
  const auto whole = static_cast<double>(held ? elements_ : trainable_);
  return whole / static_cast<double>(setup.tensor_ranks * setup.stages * shards);
}

double StepTimes::update_seconds_of(const StepSetup& setup) const {
  if (!trains()) return 0;
  const double updated = shard_elements(setup, false, 1);
  const auto elements = static_cast<std::uint64_t>(updated);
  const double norm = norm_seconds(elements, setup.policy.gradient, cluster_);
  const double update = update_seconds(elements, setup.policy, setup.optimizer, cluster_);
  const Offload& offload = setup.offload;
  if (!offload.any()) return norm + update;
  // Bytes of an element that come over the link and that go back.
  const Policy& policy = setup.policy;
  const OptimizerStates& states = states_of(setup.optimizer);
  const auto part = [](const OffloadedClass& placed) { return placed.elsewhere() ? placed.fraction : 0; };
  const double gradient = part(offload.gradients) * static_cast<double>(bits(policy.gradient)) / 8;
  const double parameter = part(offload.parameters) * static_cast<double>(bits(policy.parameter)) / 8;
  double state = policy.master ? static_cast<double>(bits(*policy.master)) / 8 : 0;
  if (states.first_moment) state += static_cast<double>(bits(policy.first_moment)) / 8;
  if (states.second_moment) state += static_cast<double>(bits(policy.second_moment)) / 8;
  state *= part(offload.optimizer);
  const double in = gradient + state + (policy.master ? 0 : parameter);
  const double out = state + parameter;
  const double link = cluster_.host.rate();
  double moved = updated * std::max(in, out) / link;
  if (offload.optimizer.tier == Tier::file) {
    moved = std::max({moved, updated * state / cluster_.disk.read_bytes_per_second,
                      updated * state / cluster_.disk.write_bytes_per_second});
  }
  // Units go one after the other, those in device memory and those that are not.
  const double elsewhere = std::max({part(offload.gradients), part(offload.parameters), part(offload.optimizer)});
  return std::max(norm, updated * gradient / link) + (1 - elsewhere) * update + std::max(elsewhere * update, moved);
}

// Seconds of parameters and gradients on their way between the ranks, and to and from where they are kept.
struct StepTimes::Passing {
  double gathers = 0;  // how many passes over all units gather them
  double reduces = 0;
  double gather = 0;  // one pass over all units
  double reduce = 0;
  double fetch = 0;     // what each walk over the units waits for: a gather, or a copy of what lies elsewhere
  double summing = 0;   // in a step: the computation adds up the gradients of micro-batches
  double rounding = 0;  // sums that are kept elsewhere, once at the end
  bool copied = false;
  bool behind_update = false;  // gathers come when parameters have been updated, and the step waits for them
};

StepTimes::Passing StepTimes::passing_of(const StepSetup& setup) {
  const Traffic& traffic = traffic_of(setup);
  const auto micro_batches = static_cast<double>(setup.micro_batches);
  const Policy& policy = setup.policy;
  const OffloadedClass& parameters = setup.offload.parameters;
  const OffloadedClass& gradients = setup.offload.gradients;
  const auto over_link = [&](const OffloadedClass& placed, DType dtype, bool held, int sharded_from) {
    return placed.fraction * shard_elements(setup, held, sharded_from) * static_cast<double>(bits(dtype)) / 8 /
           cluster_.host.rate();
  };
  Passing passing;
  passing.copied = setup.stage < 3 && parameters.elsewhere();
  passing.behind_update = setup.stage < 3 && (passing.copied || setup.by_shardplan);
  passing.gathers = setup.stage == 3 ? walks() * micro_batches : setup.stage == 0 || !trains() ? 0 : 1;
  passing.reduces = !trains() ? 0 : setup.stage >= 2 || setup.reduces_each ? micro_batches : 1;
  passing.gather = traffic.gather;
  passing.reduce = traffic.reduce;
  // A collective reads or writes its own rank's part where it lies.
  if (parameters.elsewhere())
    passing.gather = std::max(passing.gather, over_link(parameters, policy.parameter, true, 3));
  // Sums of micro-batches are read and written by each of them: this rank's part behind its reduction, or all of them by the
  // computation itself, before one reduction at the end.
  const bool sums = setup.micro_batches > 1;
  const bool reduced_first = sums && (setup.stage >= 2 || setup.reduces_each);
  if (sums && setup.by_shardplan && !gradients.elsewhere()) {
    const auto summed = static_cast<std::uint64_t>(shard_elements(setup, false, reduced_first ? 1 : 4));
    const double each = accumulate_seconds(summed, policy.gradient, policy.gradient_accumulator, cluster_);
    if (reduced_first) passing.reduce += each;
    if (!reduced_first) passing.summing = micro_batches * each;
  }
  if (gradients.elsewhere()) {
    const double part = over_link(gradients, policy.gradient_accumulator, false, 1);
    if (reduced_first) passing.rounding = part;
    if (sums && !reduced_first) {
      passing.summing = micro_batches * over_link(gradients, policy.gradient_accumulator, false, 4);
    }
    passing.reduce = std::max(passing.reduce, reduced_first ? part : over_link(gradients, policy.gradient, false, 1));
  }
  if (setup.stage == 3) passing.fetch = passing.gather;
  if (passing.copied) passing.fetch = over_link(parameters, policy.parameter, true, 4);
  return passing;
}

StepTime StepTimes::of(const StepSetup& setup) {
  const PassSeconds passes = slowest_stage(setup);
  const Passing p = passing_of(setup);
  const auto micro_batches = static_cast<double>(setup.micro_batches);
  const double forward = (1 + (trains() ? setup.recomputed : 0)) * passes.forward;
  // What computation waits for in each micro-batch.
  const double both_ways =
      (exchange_seconds(setup) + tensor_seconds(setup)) / static_cast<double>(setup.stages) + passing_seconds(setup);
  const double in_backward = trains() ? both_ways / 2 : 0;
  const double waits = both_ways + logits_seconds(setup);
  StepTime time;
  time.computing = micro_batches * (forward + passes.backward);
  time.bubble = bubble_seconds(setup, forward + waits - in_backward, passes.backward + in_backward);
  const double fetched = p.copied ? walks() * micro_batches * p.fetch : p.behind_update ? 0 : p.gathers * p.gather;
  const double data = fetched + p.reduces * p.reduce + p.rounding;
  double exposed = std::max(data - time.computing - micro_batches * waits, 0.0);
  if (setup.offload.parameters.elsewhere() || setup.offload.gradients.elsewhere()) {
    // Long enough to be seen which pass hides them.
    const double backward = passes.backward + setup.recomputed * passes.forward + p.summing / micro_batches;
    const double in_forward = std::max(p.fetch - passes.forward, 0.0);
    const double with_reduction = std::max(p.fetch + p.reduce - backward, 0.0);
    const double without = std::max(p.fetch - backward, 0.0);
    exposed = std::max(exposed, p.rounding + micro_batches * in_forward + p.reduces * with_reduction +
                                    (walks() - 1) * (micro_batches - p.reduces) * without);
  }
  time.computing += p.summing;
  const double ends = trains() ? 2 : setup.stage == 3 ? 1 : 0;  // a first gather and a last reduction
  time.communicating = micro_batches * waits + (setup.overlapped ? exposed + ends * traffic_of(setup).largest : data);
  time.updating = update_seconds_of(setup);
  // A unit is gathered while the next ones are updated.
  if (p.behind_update && setup.ranks > 1) {
    time.communicating += std::max(p.gathers * p.gather - time.updating, 0.0);
  }
  return time;
}

StepTime& StepTime::operator+=(const StepTime& other) {
  computing += other.computing;
  communicating += other.communicating;
  bubble += other.bubble;
  updating += other.updating;
  return *this;
}

StepTime step_time(const Model& model, const StepSetup& setup, const Cluster& cluster) {
  return StepTimes(model, cluster).of(setup);
}

}  // namespace shardplan
