#include "tools/memcalc/joint_evaluator.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "tools/memcalc/together.h"

namespace shardplan::memcalc {
namespace {

// `own` in the set-up that MODEL has in `options`.
const PlanOptions& set(PlanOptions& own, const PlanOptions& options) {
  own.setup = options.setup;
  own.offload = options.offload;
  own.micro_batch = options.micro_batch;
  own.sequence = options.sequence;
  own.client = options.client;
  settle_frozen(own);
  return own;
}

}  // namespace

JointEvaluator::JointEvaluator(const std::vector<Model>& models, std::vector<PlanOptions> options,
                               const Cluster& cluster) {
  SHARDPLAN_CHECK(models.size() == options.size() && !models.empty(), "each model has a set-up");
  const Evaluator::Ranks ranks = models.size() == 1 ? Evaluator::Ranks::kinds : Evaluator::Ranks::every_stage;
  for (std::size_t i = 0; i < models.size(); ++i) {
    names_.push_back(models[i].catalog.name);
    parts_.push_back(std::make_unique<Part>(models[i], std::move(options[i]), cluster, ranks));
  }
}

std::string JointEvaluator::refused(const PlanOptions& options) const {
  if (alone()) return parts_.front()->evaluator.refused(options);
  for (const auto& part : parts_) {
    PlanOptions own = part->options;
    if (std::string why = part->evaluator.refused(set(own, options)); !why.empty()) return why;
  }
  return {};
}

Bytes JointEvaluator::least_states(const PlanOptions& options) {
  if (alone()) return parts_.front()->evaluator.least_states(options);
  Bytes least;
  for (const auto& part : parts_) least += part->evaluator.least_states(set(part->options, options));
  return least;
}

std::vector<RankReport> JointEvaluator::ranks_together(const PlanOptions& options, Evaluator::Held held) {
  std::vector<std::vector<RankReport>> of_models;
  for (const auto& part : parts_) of_models.push_back(part->evaluator.ranks(set(part->options, options), held));
  std::vector<RankReport> together;
  for (std::size_t stage = 0; stage < of_models.front().size(); ++stage) {
    std::vector<const RankReport*> ranks;
    for (const std::vector<RankReport>& of_model : of_models) ranks.push_back(&of_model[stage]);
    together.push_back(rank_together(ranks, names_, shared_libraries(options)));
  }
  return together;
}

namespace {

Bytes most_of(const std::vector<RankReport>& ranks) {
  Bytes most;
  for (const RankReport& rank : ranks) most = std::max(most, least_device_bytes(rank));
  return most;
}

}  // namespace

Bytes JointEvaluator::states(const PlanOptions& options) {
  if (alone()) return parts_.front()->evaluator.states(options);
  return most_of(ranks_together(options, Evaluator::Held::states)) + context_of(options).value_or(Bytes{});
}

Bytes JointEvaluator::needed(const PlanOptions& options, Bytes enough) {
  if (alone()) return parts_.front()->evaluator.needed(options, enough);
  return most_of(ranks_together(options, Evaluator::Held::all)) + context_of(options).value_or(Bytes{});
}

Bytes JointEvaluator::planned(const PlanOptions& options) const {
  if (alone()) return least_device_bytes(make_planned(options, parts_.front()->evaluator.model()).worst());
  std::vector<PlanOptions> of_models;
  std::vector<Model> models;
  for (const auto& part : parts_) {
    of_models.push_back(part->options);
    set(of_models.back(), options);
    models.push_back(part->evaluator.model());
  }
  return most_of(make_together(std::move(of_models), models).ranks);
}

StepTime JointEvaluator::time(const PlanOptions& options) {
  if (alone()) return parts_.front()->evaluator.time(options);
  StepTime time;
  for (const auto& part : parts_) time += part->evaluator.time(set(part->options, options));
  return time;
}

}  // namespace shardplan::memcalc
