// What a set-up needs and how long it takes, for many set-ups of one model: what they share is computed once.
//
// Shared are: the split of the model, by axes but the data and the context axis; model states, by stage and the rest that
// decides them; activities, by what of a layer a rank computes of how many tokens, whatever its pipeline and its stage of ZeRO;
// and the parts of a step's time.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "planner/activations/client_rank.h"
#include "planner/cost/step_time.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

// Of a set-up whose activations are not known.
class UnknownActivations : public ConfigError {
 public:
  using ConfigError::ConfigError;
};

inline constexpr Bytes kAnyBytes{std::numeric_limits<std::uint64_t>::max()};

class Evaluator {
 public:
  // Whose ranks are looked at: `kinds`: of ranks that hold the same one, which stands for them all; `every_stage`: one of each
  // pipeline stage, for ranks() of models that are cut in different places.
  enum class Ranks : std::uint8_t { kinds, every_stage };
  // Whether a rank's activations are counted.
  enum class Held : std::uint8_t { states, all };

  // All set-ups that are asked of one evaluator differ in the axes, the stage, replicas, offload, prefetch, micro-batch,
  // accumulation, sequence, recomputation and loss, and in nothing else.
  Evaluator(Model model, Cluster cluster, Ranks ranks = Ranks::kinds);
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  // Why the profile cannot compute this model with these axes and this recomputation; empty where it may.
  std::string refused(const PlanOptions& options) const;

  // Never more than `states`, and cheap: the textbook's states of the whole model, shared out evenly over all ranks, without
  // the classes that are offloaded. 0 for engines that may hold less.
  Bytes least_states(const PlanOptions& options);
  // Model states, with what the driver takes, of the rank that holds most: never more than `needed`. Throws ConfigError for a
  // set-up that contradicts itself.
  Bytes states(const PlanOptions& options);
  // The most that a rank allocates, activations included, and what the driver takes. Where that is more than `enough`, it may be
  // that of any rank that has more. Throws the same, and UnknownActivations.
  Bytes needed(const PlanOptions& options, Bytes enough = kAnyBytes);
  // One rank of each, without what the driver takes. Throws the same.
  std::vector<RankReport> ranks(const PlanOptions& options, Held held);

  StepTime time(const PlanOptions& options);

  const Model& model() const { return model_; }

 private:
  // Kinds of ranks that hold the same are one, unless every stage is asked for: the first of them has most micro-batches
  // under way.
  struct Kind {
    Catalog catalog;
    std::uint64_t stage = 0;
  };
  struct EngineSide {
    RankReport rank;
    EngineHolds holds;
    std::optional<Bytes> context;
  };
  using Key = std::array<std::uint64_t, 16>;
  struct Kinds {
    std::uint64_t number = 0;
    std::vector<Kind> kinds;
    std::string refused;                // instead of kinds
    std::map<Key, EngineSide> engines;  // by kind and what else decides model states
  };
  // The whole model's states at stage 0 on one rank, as the textbook has them.
  struct WholeStates {
    Bytes parameters;
    Bytes gradients;
    Bytes optimizer_states;
  };

  // Throws ConfigError where there are none.
  Kinds& kinds_of(const PlanOptions& options);
  void find_kinds(const PlanOptions& options, Kinds& found) const;
  const EngineSide& engine(const PlanOptions& options, Kinds& kinds, std::size_t kind);
  const ClientHolds& client(const PlanOptions& options, const Kinds& kinds, std::size_t kind);
  const ActivityResult& activity(const PlanOptions& options, const ClientSetup& client, const Catalog& chunk);
  const RowsOfModules& rows(const PlanOptions& options);
  std::uint64_t words(const std::string& text);
  void add_whole_states(const PlanOptions& options);
  // Which modules a run of units is of, and how often: equal where only numbers differ.
  std::vector<std::uint64_t> blocks_of(const UnitRun& run) const;
  bool holds_same(const Catalog& a, const Catalog& b) const;

  Model model_;
  Cluster cluster_;
  Ranks ranks_;
  StepTimes times_;
  std::vector<std::size_t> like_;                    // of each run of modules: the first run of the same modules
  std::optional<std::array<WholeStates, 2>> whole_;  // of experts, and of the rest
  std::map<Key, Kinds> kinds_;                       // by axes
  std::map<Key, ClientHolds> clients_;
  std::map<std::vector<std::uint64_t>, ActivityResult> activities_;
  std::map<std::uint64_t, RowsOfModules> rows_;  // by sequence
  std::map<std::string, std::uint64_t> words_;   // texts that are parts of keys
};

// The set-up's own words on the axes that a search varies, for tables: "zero 3, tp 2, micro-batch 4".
std::string axes_of(const PlanOptions& options);

}  // namespace shardplan::memcalc
