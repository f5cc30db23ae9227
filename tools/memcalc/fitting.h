// fit: the inverse questions. Which set-up of a model fits a GPU's memory, and is fastest?
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/cost/step_time.h"
#include "tools/memcalc/options.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

struct FittedPlan {
  PlanOptions options;
  Bytes needed;
  StepTime time;                      // of one step
  std::string change;                 // question cheapest: what differs from the set-up as it is given
  std::optional<std::int64_t> saved;  // cheapest: bytes less than that
  double sequences_per_second = 0;
};

struct RejectedPlan {
  PlanOptions options;
  std::string why;
};

struct Fit {
  FitQuestion question = FitQuestion::best;
  Model model;
  Cluster cluster;
  Capacity gpu;
  // In the words of the question: "micro-batch 12", "zero 3, tp 2, ..."; nothing where nothing fits.
  std::optional<std::string> answer;
  std::vector<FittedPlan> plans;       // best first
  std::vector<RejectedPlan> rejected;  // the first of them
  std::uint64_t rejections = 0;
  std::uint64_t decided = 0;    // set-ups of which it is known whether they fit
  std::uint64_t evaluated = 0;  // of them, those that were computed; what follows from others was not
  std::uint64_t sequences = 0;  // of a step of each set-up
  double seconds = 0;           // that the search took
  std::vector<std::string> notes;
};

// Reads MODEL and the cluster and searches. Throws Error; ConfigError without --gpu or --cluster and without --seq.
Fit make_fit(const PlanOptions& options, const FitOptions& fit);

std::string_view name(FitQuestion question);

}  // namespace shardplan::memcalc
