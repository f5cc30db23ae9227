#include "tools/memcalc/evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan::memcalc {
namespace {

std::string axes_key(const Setup& setup) {
  const Parallelism& p = setup.parallel;
  return fmt::format("{} {} {} {} {} {} {} {}", setup.world_size, p.tensor, p.pipeline, p.context, p.expert,
                     resolved_expert_tensor(p), p.virtual_stages, p.sequence_parallel);
}

// The part of a forward that runs again. Selective: the scores and their product with the values, 4 s of 24 h + 4 s
// operations for each token and feature (Korthikanti et al., arXiv 2205.05198, sec. 5).
double recomputed_part(const ClientSetup& client, const Architecture& architecture) {
  switch (client.recompute) {
    case RecomputeKind::none:
      return 0;
    case RecomputeKind::selective: {
      const auto scores = 4 * static_cast<double>(client.sequence);
      return scores / (24 * static_cast<double>(architecture.hidden) + scores);
    }
    case RecomputeKind::every:
      return 1 / static_cast<double>(client.recompute_every);
    case RecomputeKind::full:
    case RecomputeKind::invert:
      return 1;
  }
  return 0;
}

}  // namespace

std::string axes_of(const PlanOptions& options) {
  const Setup& setup = options.setup;
  std::string text = fmt::format("zero {}", setup.stage);
  for (const auto& [axis, ranks] : {std::pair{"tp", setup.parallel.tensor},
                                    {"pp", setup.parallel.pipeline},
                                    {"cp", setup.parallel.context},
                                    {"ep", setup.parallel.expert}}) {
    if (ranks > 1) text += fmt::format(", {} {}", axis, ranks);
  }
  if (setup.parallel.sequence_parallel) text += ", sequence parallel";
  text += fmt::format(", micro-batch {}", options.micro_batch);
  if (setup.accumulation > 1) text += fmt::format(" x {}", setup.accumulation);
  if (options.client.recompute != RecomputeKind::none) {
    text += fmt::format(", recompute {}", recompute_words(options.client.recompute, options.client.recompute_every));
  }
  return text;
}

Evaluator::Evaluator(Model model, Cluster cluster) : model_(std::move(model)), cluster_(std::move(cluster)) {}

Evaluator::Kinds& Evaluator::kinds_of(const PlanOptions& options) {
  const auto [entry, added] = kinds_.try_emplace(axes_key(options.setup));
  if (!added) return entry->second;
  try {
    const std::vector<RankKind> kinds = planned_kinds(options, model_);
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      std::vector<Kind>& known = entry->second.kinds;
      // Neighbours hold the same where their runs differ in numbers alone.
      const auto same = [&](const Kind& kind) {
        const std::vector<UnitRun>& a = kind.catalog.runs;
        const std::vector<UnitRun>& b = kinds[i].catalog.runs;
        return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const UnitRun& x, const UnitRun& y) {
          return x.name == y.name && x.count == y.count && x.tensors == y.tensors;
        });
      };
      if (std::none_of(known.begin(), known.end(), same)) known.push_back({kinds[i].catalog, i});
    }
  } catch (...) {
    kinds_.erase(entry);
    throw;
  }
  return entry->second;
}

const Evaluator::EngineSide& Evaluator::engine(const PlanOptions& options, Kinds& kinds, std::size_t kind) {
  const Setup& setup = options.setup;
  const std::string key = fmt::format("{} {} {} {} {} {}", kind, setup.stage, setup.replicate, setup.accumulation > 1,
                                      setup.prefetch, name(setup.recompute));
  const auto found = kinds.engines.find(key);
  if (found != kinds.engines.end()) return found->second;
  const Sized sized = size_kind(options, kinds.kinds[kind].catalog);
  return kinds.engines.emplace(key, EngineSide{sized.report.ranks.front(), engine_holds(options, sized)}).first->second;
}

const ClientHolds& Evaluator::client(const PlanOptions& options, const Kind& kind) {
  const ClientSetup client = options.whole_client();
  const std::string key =
      fmt::format("{} {} {} {} {} {} {}", axes_key(options.setup), kind.stage, options.setup.accumulation,
                  client.micro_batch, client.sequence, recompute_words(client.recompute, client.recompute_every),
                  loss_words(client.loss, client.loss_chunks));
  const auto found = clients_.find(key);
  if (found != clients_.end()) return found->second;
  const ClientSide side = client_side(options, model_, kind.catalog, kind.stage);
  if (!side.holds) throw ConfigError(options.model, "", "activations are not counted: " + side.unknown_because);
  return clients_.emplace(key, *side.holds).first->second;
}

Bytes Evaluator::states(const PlanOptions& options) {
  Kinds& kinds = kinds_of(options);
  Bytes most;
  for (std::size_t i = 0; i < kinds.kinds.size(); ++i) {
    most = std::max(most, least_device_bytes(engine(options, kinds, i).rank));
  }
  return most;
}

Bytes Evaluator::needed(const PlanOptions& options) {
  Kinds& kinds = kinds_of(options);
  Bytes most;
  for (std::size_t i = 0; i < kinds.kinds.size(); ++i) {
    const EngineSide& side = engine(options, kinds, i);
    RankReport rank = side.rank;
    add_client(rank.device, side.holds, client(options, kinds.kinds[i]));
    most = std::max(most, least_device_bytes(rank));
  }
  return most;
}

StepTime Evaluator::time(const PlanOptions& options) const {
  const Setup& setup = options.setup;
  const ClientSetup client = options.whole_client();
  StepSetup step;
  step.ranks = setup.world_size;
  step.stage = setup.stage;
  step.micro_batches = setup.accumulation;
  step.policy = setup.policy;
  step.optimizer = setup.optimizer;
  step.reduced = setup.policy.wire;
  step.overlapped = setup.prefetch > 0;
  step.recomputed = recomputed_part(client, model_.architecture);
  step.expert_ranks = setup.parallel.expert;
  step.context_ranks = setup.parallel.context;
  step.tensor_ranks = setup.parallel.tensor;
  step.sequence_parallel = setup.parallel.sequence_parallel;
  step.stages = setup.parallel.pipeline;
  step.virtual_stages = setup.parallel.virtual_stages;
  step.schedule = resolved_schedule(setup.parallel);
  step.work = {.tokens = checked_multiply(client.micro_batch, client.sequence) / setup.parallel.context,
               .sequence = client.sequence,
               .compute = setup.policy.compute,
               .gradient = setup.policy.gradient,
               .accumulates = setup.accumulation > 1,
               .expert_ranks = setup.parallel.expert};
  return step_time(model_, step, cluster_);
}

}  // namespace shardplan::memcalc
