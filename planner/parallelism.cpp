#include "planner/parallelism.h"

#include <fmt/format.h>

#include <string>

#include "base/error.h"

namespace shardplan {

std::string_view name(PipelineSchedule schedule) {
  switch (schedule) {
    case PipelineSchedule::one_f_one_b:
      return "1f1b";
    case PipelineSchedule::interleaved:
      return "interleaved";
    case PipelineSchedule::zero_bubble:
      return "zero-bubble";
    case PipelineSchedule::dualpipe:
      return "dualpipe";
  }
  SHARDPLAN_CHECK(false, "an unknown pipeline schedule");
  return {};
}

PipelineSchedule resolved_schedule(const Parallelism& parallelism) {
  const bool turns = parallelism.virtual_stages > 1;
  return parallelism.schedule.value_or(turns ? PipelineSchedule::interleaved : PipelineSchedule::one_f_one_b);
}

std::uint64_t resolved_expert_tensor(const Parallelism& parallelism) {
  return parallelism.expert_tensor.value_or(parallelism.tensor);
}

bool experts_apart(const Parallelism& parallelism) {
  return parallelism.expert > 1 || resolved_expert_tensor(parallelism) != parallelism.tensor;
}

void validate(const Parallelism& p) {
  constexpr std::uint64_t kMost = 1U << 20;
  const auto require = [](bool condition, const char* flag, const std::string& problem) {
    if (!condition) throw ConfigError(flag, "", problem);
  };
  for (const auto& [flag, ranks] : {std::pair{"--tp", p.tensor},
                                    {"--pp", p.pipeline},
                                    {"--cp", p.context},
                                    {"--ep", p.expert},
                                    {"--etp", resolved_expert_tensor(p)},
                                    {"--virtual-stages", p.virtual_stages},
                                    {"--vocabulary-multiple", p.vocabulary_multiple}}) {
    require(ranks > 0 && ranks <= kMost, flag, fmt::format("expected 1 to {}, found {}", kMost, ranks));
  }
  const bool several = p.pipeline > 1;
  const PipelineSchedule schedule = resolved_schedule(p);
  require(several || p.virtual_stages == 1, "--virtual-stages", "needs a pipeline: expected --pp of 2 or more");
  require(several || !p.schedule, "--schedule", "needs a pipeline: expected --pp of 2 or more");
  require(schedule != PipelineSchedule::interleaved || p.virtual_stages > 1, "--schedule",
          "interleaved needs --virtual-stages of 2 or more");
  require(schedule == PipelineSchedule::interleaved || p.virtual_stages == 1, "--schedule",
          fmt::format("{} has no virtual stages: expected interleaved", name(schedule)));
  require(schedule != PipelineSchedule::dualpipe || p.pipeline % 2 == 0, "--schedule",
          fmt::format("dualpipe pairs stages from both ends: expected an even --pp, found {}", p.pipeline));
  require(!p.sequence_parallel || p.tensor > 1, "--sequence-parallel", "splits along --tp: expected 2 or more of it");
  const bool set = p.first_stage_layers || p.last_stage_layers;
  require(several || !(set || p.embedding_is_a_layer || p.loss_is_a_layer), "--first-stage-layers",
          "an uneven pipeline needs --pp of 2 or more");
  require(!set || !(p.embedding_is_a_layer || p.loss_is_a_layer), "--first-stage-layers",
          "layers of the first and last stage, and an embedding or a loss that stands for a layer, exclude each other");
}

}  // namespace shardplan
