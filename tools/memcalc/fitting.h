// fit: the inverse questions. Which set-up of a model fits a GPU's memory, and is fastest? Of several models on the same GPUs
// (together.h): which set-up of them all, where a step is a step of each.
#pragma once

#include <array>
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

// Why a set-up is rejected, as far as it is counted.
enum class Rejection : std::uint8_t {
  contradiction,  // with itself, the model or the engine
  unknown,        // its activations or its time are not known
  states,         // model states alone do not fit
  memory,         // with activations it does not fit
};
inline constexpr std::size_t kRejections = 4;
std::string_view name(Rejection reason);

struct RejectedPlan {
  PlanOptions options;
  std::string why;
  std::uint64_t count = 1;  // of set-ups that are rejected for the same reason, of which this is the first
};

struct Fit {
  FitQuestion question = FitQuestion::best;
  std::vector<Model> models;  // MODEL, and those beside it
  Cluster cluster;
  Capacity gpu;
  // In the words of the question: "micro-batch 12", "zero 3, tp 2, ..."; nothing where nothing fits.
  std::optional<std::string> answer;
  std::vector<FittedPlan> plans;       // best first
  std::vector<RejectedPlan> rejected;  // the first reasons; of `best`, those of the fastest set-ups
  std::uint64_t rejections = 0;
  std::array<std::uint64_t, kRejections> rejections_by_reason{};
  std::uint64_t slower = 0;     // than the plans that are listed: decided without asking whether they fit
  std::uint64_t decided = 0;    // set-ups of which it is known whether they are among the plans
  std::uint64_t evaluated = 0;  // of them, those whose memory was computed; what follows from others was not
  std::uint64_t sequences = 0;  // of a step of each set-up
  double seconds = 0;           // that the search took
  std::vector<std::string> notes;

  const Model& model() const { return models.front(); }
};

// Reads MODEL, those beside it and the cluster and searches. Throws Error; ConfigError without --gpu or --cluster and without --seq.
Fit make_fit(const PlanOptions& options, const FitOptions& fit);

std::string_view name(FitQuestion question);

}  // namespace shardplan::memcalc
