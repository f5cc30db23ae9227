#include <algorithm>
#include <boost/json.hpp>

#include "tools/memcalc/evaluator.h"
#include "tools/memcalc/json_parts.h"
#include "tools/memcalc/output.h"
#include "tools/memcalc/together.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

json::object plan_of(const FittedPlan& plan, const Fit& fit) {
  const PlannedTogether together = make_together(options_of_models(plan.options), fit.models);
  return {{"words", axes_of(plan.options)},
          {"change", plan.change.empty() ? json::value() : json::value(plan.change)},
          {"setup", setup_json(plan.options, together.models.front())},
          {"worst", rank_json(together.ranks[together.worst])},
          {"needed_bytes", plan.needed.count()},
          {"saved_bytes", plan.saved ? json::value(*plan.saved) : json::value()},
          {"step_seconds", plan.time.seconds()},
          {"computing_seconds", plan.time.computing},
          {"communicating_seconds", plan.time.communicating},
          {"bubble_seconds", plan.time.bubble},
          {"updating_seconds", plan.time.updating},
          {"sequences_per_second", plan.sequences_per_second}};
}

// Of a set-up that does not fit there is no plan: the axes that were varied.
json::object axes_json(const PlanOptions& options) {
  const Setup& setup = options.setup;
  return {{"zero_stage", setup.stage},
          {"tensor_parallel", setup.parallel.tensor},
          {"pipeline_parallel", setup.parallel.pipeline},
          {"context_parallel", setup.parallel.context},
          {"expert_parallel", setup.parallel.expert},
          {"virtual_stages", setup.parallel.virtual_stages},
          {"replicate", setup.replicate},
          {"offload", options.offload ? json::value(*options.offload) : json::value()},
          {"world_size", total_ranks(setup)},
          {"micro_batch", options.micro_batch},
          {"grad_accum", setup.accumulation},
          {"sequence", options.sequence.value_or(0)},
          {"recompute", recompute_words(options.client.recompute, options.client.recompute_every)}};
}

std::string_view key(Rejection reason) {
  switch (reason) {
    case Rejection::contradiction:
      return "contradiction";
    case Rejection::unknown:
      return "unknown";
    case Rejection::states:
      return "states";
    case Rejection::memory:
      return "memory";
  }
  return "";
}

}  // namespace

std::string fit_json(const Fit& fit, const FitOptions& options) {
  json::array plans;
  for (std::size_t i = 0; i < std::min<std::size_t>(fit.plans.size(), options.most_plans); ++i) {
    plans.push_back(plan_of(fit.plans[i], fit));
  }
  json::array rejected;
  for (const RejectedPlan& plan : fit.rejected) {
    rejected.push_back({{"setup", axes_json(plan.options)}, {"why", plan.why}, {"count", plan.count}});
  }
  json::array models;
  for (const Model& model : fit.models) models.push_back(model_json(model.catalog));
  json::object reasons;
  for (std::size_t i = 0; i < kRejections; ++i) {
    const std::string_view reason = key(static_cast<Rejection>(i));
    reasons[json::string_view(reason.data(), reason.size())] = fit.rejections_by_reason[i];
  }
  const std::string_view question = name(fit.question);
  return json::serialize(json::object{{"schema", "memcalc.fit/1"},
                                      {"question", json::string(question.data(), question.size())},
                                      {"answer", fit.answer ? json::value(*fit.answer) : json::value()},
                                      {"model", model_json(fit.model().catalog)},
                                      {"models", std::move(models)},
                                      {"gpu", {{"name", fit.gpu.name}, {"capacity_bytes", fit.gpu.bytes.count()}}},
                                      {"cluster", fit.cluster.name},
                                      {"global_batch", fit.sequences},
                                      {"plans", std::move(plans)},
                                      {"fitting", fit.plans.size()},
                                      {"rejected", std::move(rejected)},
                                      {"rejections", fit.rejections},
                                      {"rejections_by_reason", std::move(reasons)},
                                      {"slower", fit.slower},
                                      {"decided", fit.decided},
                                      {"evaluated", fit.evaluated},
                                      {"seconds", fit.seconds},
                                      {"notes", json::array(fit.notes.begin(), fit.notes.end())}}) +
         "\n";
}

}  // namespace shardplan::memcalc
