// What a set-up needs and how long it takes, for many set-ups of one model: what they share is computed once.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "planner/cost/step_time.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

class Evaluator {
 public:
  // All set-ups that are asked of one evaluator differ in the axes, the stage, replicas, prefetch, micro-batch, accumulation,
  // sequence, recomputation and loss, and in nothing else.
  Evaluator(Model model, Cluster cluster);

  // Model states alone of the rank that holds most: less than what is needed. Throws ConfigError for a set-up that
  // contradicts itself.
  Bytes states(const PlanOptions& options);
  // The most that a rank needs, activations included. Throws the same, and for activations that are not known.
  Bytes needed(const PlanOptions& options);
  StepTime time(const PlanOptions& options) const;

  const Model& model() const { return model_; }

 private:
  // Kinds of ranks that hold the same are one: the first of them has most micro-batches under way.
  struct Kind {
    Catalog catalog;
    std::uint64_t stage = 0;
  };
  struct EngineSide {
    RankReport rank;
    EngineHolds holds;
  };
  struct Kinds {
    std::vector<Kind> kinds;
    std::map<std::string, EngineSide> engines;  // by kind and what else decides model states
  };

  Kinds& kinds_of(const PlanOptions& options);
  const EngineSide& engine(const PlanOptions& options, Kinds& kinds, std::size_t kind);
  const ClientHolds& client(const PlanOptions& options, const Kind& kind);

  Model model_;
  Cluster cluster_;
  std::map<std::string, Kinds> kinds_;  // by axes
  std::map<std::string, ClientHolds> clients_;
};

// The set-up's own words on the axes that a search varies, for tables: "zero 3, tp 2, micro-batch 4".
std::string axes_of(const PlanOptions& options);

}  // namespace shardplan::memcalc
