#include "tests/planner/cost/published_steps.h"

#include "planner/formats/presets.h"
#include "tests/planner/cost/published_models.h"

namespace shardplan::test {
namespace {

constexpr DType kFp8 = DType::f8_e4m3;
constexpr DType kBf16 = DType::bf16;
constexpr PublishedStep kSteps[] = {
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

}  // namespace

std::span<const PublishedStep> published_steps() {
  return kSteps;
}

StepSetup setup_of(const PublishedStep& step) {
  StepSetup setup;
  setup.ranks = step.ranks;
  setup.stage = step.stage;
  setup.micro_batches = step.global_batch / step.micro_batch / step.ranks;
  setup.policy = policy_named("bf16-mixed-fp32grad");
  setup.expert_ranks = step.expert_ranks;
  setup.work = {.tokens = step.micro_batch * step.sequence,
                .sequence = step.sequence,
                .compute = step.compute,
                .gradient = DType::f32,
                .accumulates = true,
                .expert_ranks = step.expert_ranks};
  return setup;
}

Model model_of(const PublishedStep& step) {
  return is_published_model(step.model) ? published_model(step.model) : require_preset_model(step.model);
}

double tokens_of_rank(const StepSetup& setup) {
  return static_cast<double>(setup.micro_batches * setup.work.tokens);
}

}  // namespace shardplan::test
