// Against step times that NVIDIA publishes: Megatron Bridge, docs/performance-summary.md, 25.11 NeMo container. The rows
// without tensor, pipeline and context parallelism: DDP with a distributed optimizer, or fully sharded.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/presets.h"
#include "tests/planner/cost/published_models.h"
#include "tests/planner/cost/step_model.h"

namespace shardplan::test {
namespace {

struct Row {
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

constexpr DType kFp8 = DType::f8_e4m3;
constexpr DType kBf16 = DType::bf16;
const Row kRows[] = {
    {"gb300", "llama-3-8b", 8, kFp8, 128, 2, 8192, 1, 1, 37556},
    {"gb300", "llama-3-70b", 64, kFp8, 256, 2, 8192, 3, 1, 4520},
    {"gb300", "GPT OSS 120B", 64, kBf16, 1280, 2, 8192, 1, 64, 18347},
    {"gb300", "Qwen3_30B_a3B", 8, kFp8, 512, 4, 4096, 1, 8, 28934},
    {"gb200", "llama-3-8b", 8, kFp8, 128, 2, 8192, 1, 1, 31508},
    {"gb200", "llama-3-70b", 64, kFp8, 256, 2, 8192, 3, 1, 4312},
    {"gb200", "GPT OSS 120B", 64, kBf16, 1280, 1, 8192, 1, 64, 15876},
    {"gb200", "Qwen3_30B_a3B", 8, kFp8, 512, 4, 4096, 1, 8, 23766},
    {"b200", "llama-3-8b", 8, kFp8, 128, 2, 8192, 1, 1, 30624},
    {"b200", "GPT OSS 120B", 64, kBf16, 512, 4, 4096, 1, 8, 8213},
    {"b200", "Qwen3_30B_a3B", 8, kFp8, 512, 1, 4096, 1, 8, 9299},
    {"h100", "llama-3-8b", 8, kFp8, 128, 1, 8192, 3, 1, 14451},
};

double predicted_tokens_per_second(const Row& row) {
  StepSetup setup;
  setup.ranks = row.ranks;
  setup.stage = row.stage;
  setup.micro_batches = row.global_batch / row.micro_batch / row.ranks;
  setup.policy = policy_named("bf16-mixed-fp32grad");
  setup.expert_ranks = row.expert_ranks;
  setup.work = {.tokens = row.micro_batch * row.sequence,
                .sequence = row.sequence,
                .compute = row.compute,
                .gradient = DType::f32,
                .accumulates = true,
                .expert_ranks = row.expert_ranks};
  const Model model = is_published_model(row.model) ? published_model(row.model) : require_preset_model(row.model);
  const Cluster cluster = require_cluster(std::string(row.cluster), gpu_table());
  return static_cast<double>(setup.micro_batches * setup.work.tokens) / step_seconds(model, setup, cluster);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Mixtures of experts are printed, not held to: small experts spend much of the step in what is neither arithmetic nor
// traffic (launches, synchronisation with the host), of which the model has one constant.
TEST(PublishedStepTimes, OfDenseModelsAreNear) {
  std::vector<double> dense;
  for (const Row& row : kRows) {
    const double predicted = predicted_tokens_per_second(row);
    const double error = row.tokens_per_second / predicted - 1;  // of the time
    fmt::print("{:<6} {:<14} {:>3} GPUs  measured {:>7.0f} tokens/s  predicted {:>7.0f}  time {:+.1f} %\n", row.cluster,
               row.model, row.ranks, row.tokens_per_second, predicted, 100 * error);
    if (row.expert_ranks == 1) dense.push_back(std::abs(error));
  }
  EXPECT_LE(median(dense), 0.15);
}

}  // namespace
}  // namespace shardplan::test
