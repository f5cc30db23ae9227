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
    names_.push_back(name_beside_others(models[i].catalog));
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

std::vector<std::vector<RankReport>> JointEvaluator::ranks(const PlanOptions& options, Evaluator::Held held) {
  std::vector<std::vector<RankReport>> by_stage;
  for (const auto& part : parts_) {
    std::vector<RankReport> of_model = part->evaluator.ranks(set(part->options, options), held);
    if (by_stage.empty()) by_stage.resize(of_model.size());
    SHARDPLAN_CHECK(by_stage.size() == of_model.size(), "as many kinds of ranks as stages");
    for (std::size_t stage = 0; stage < of_model.size(); ++stage) by_stage[stage].push_back(std::move(of_model[stage]));
  }
  return by_stage;
}

// What the engines hold of all models between steps, and of one of them besides while it computes.
Bytes JointEvaluator::states(const PlanOptions& options) {
  if (alone()) return parts_.front()->evaluator.states(options);
  Bytes most;
  for (const std::vector<RankReport>& of_models : ranks(options, Evaluator::Held::states)) {
    Bytes stays;
    Bytes most_besides;
    for (const RankReport& rank : of_models) {
      const Bytes held = least_device_bytes(rank);
      const Bytes resident = std::min(held, resident_bytes(rank, {}).value_or(Bytes{}));
      stays += resident;
      most_besides = std::max(most_besides, held - resident);
    }
    most = std::max(most, stays + most_besides);
  }
  return most + context_of(options).value_or(Bytes{});
}

Bytes JointEvaluator::needed(const PlanOptions& options, Bytes enough) {
  if (alone()) return parts_.front()->evaluator.needed(options, enough);
  Bytes most;
  for (const std::vector<RankReport>& of_models : ranks(options, Evaluator::Held::all)) {
    std::vector<const RankReport*> each;
    for (const RankReport& rank : of_models) each.push_back(&rank);
    most = std::max(most, least_together_bytes(rank_together(each, names_, shared_libraries(options))));
  }
  return most + context_of(options).value_or(Bytes{});
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
  const PlannedTogether together = make_together(std::move(of_models), models);
  return least_together_bytes(together.ranks[together.worst]);
}

StepTime JointEvaluator::time(const PlanOptions& options) {
  if (alone()) return parts_.front()->evaluator.time(options);
  StepTime time;
  for (const auto& part : parts_) time += part->evaluator.time(set(part->options, options));
  return time;
}

}  // namespace shardplan::memcalc
