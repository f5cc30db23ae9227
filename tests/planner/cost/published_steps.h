// Step times that NVIDIA publishes: Megatron Bridge, docs/performance-summary.md, 25.11 NeMo container. The rows without
// tensor, pipeline and context parallelism: DDP with a distributed optimizer, or fully sharded.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "planner/cost/step_time.h"

namespace shardplan::test {

struct PublishedStep {
  std::string_view cluster;
  std::string_view model;
  std::uint64_t ranks;
  DType compute;
  std::uint64_t global_batch;
  std::uint64_t micro_batch;
  std::uint64_t sequence;
  int stage;
  std::uint64_t expert_ranks;
  double tokens_per_second;  // and GPU
};

std::span<const PublishedStep> published_steps();
StepSetup setup_of(const PublishedStep& step);
Model model_of(const PublishedStep& step);
double tokens_of_rank(const StepSetup& setup);  // in a step

}  // namespace shardplan::test
