// The same as Evaluator of all MODELs on the same GPUs (together.h): one, or several that take turns.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "planner/cost/step_time.h"
#include "tools/memcalc/evaluator.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

class JointEvaluator {
 public:
  // `options`: of each model, as options_of_models has them.
  JointEvaluator(const std::vector<Model>& models, std::vector<PlanOptions> options, const Cluster& cluster);

  // These are asked about MODEL's set-up, and take from it what Evaluator's set-ups differ in; see Evaluator.
  std::string refused(const PlanOptions& options) const;
  Bytes least_states(const PlanOptions& options);
  Bytes states(const PlanOptions& options);
  Bytes needed(const PlanOptions& options, Bytes enough = kAnyBytes);
  // What plan says that the worst rank needs: with what the allocator reserves besides. Never less than `needed`.
  Bytes planned(const PlanOptions& options) const;
  // Of a step of each, one after the other.
  StepTime time(const PlanOptions& options);

 private:
  struct Part {
    Part(const Model& model, PlanOptions own, const Cluster& cluster, Evaluator::Ranks ranks)
        : evaluator(model, cluster, ranks), options(std::move(own)) {}
    Evaluator evaluator;
    PlanOptions options;
  };

  bool alone() const { return parts_.size() == 1; }
  // By pipeline stage, one rank of each model.
  std::vector<std::vector<RankReport>> ranks(const PlanOptions& options, Evaluator::Held held);

  std::vector<std::unique_ptr<Part>> parts_;
  std::vector<std::string> names_;
};

}  // namespace shardplan::memcalc
