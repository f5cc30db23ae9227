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

namespace {

constexpr const char* kLayout = "--pipeline-model-parallel-layout";

[[noreturn]] void bad_layout(const std::string& problem) {
  throw ConfigError(kLayout, "", problem);
}

// The number behind '*' at `at`, and where it ends; 1 where there is none.
std::uint64_t take_repeats(std::string_view text, std::size_t& at) {
  constexpr std::uint64_t kMost = 1U << 16;
  if (at >= text.size() || text[at] != '*') return 1;
  std::uint64_t repeats = 0;
  const std::size_t begin = ++at;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at) {
    repeats = repeats * 10 + static_cast<std::uint64_t>(text[at] - '0');
    if (repeats > kMost) bad_layout(fmt::format("more than {} times", kMost));
  }
  if (at == begin) bad_layout("expected a number after '*'");
  return repeats;
}

void append(std::string& unrolled, std::string_view part, std::uint64_t times) {
  constexpr std::size_t kMost = 1U << 20;
  for (; times > 0; --times) unrolled += part;
  if (unrolled.size() > kMost) bad_layout("too long");
}

// Without parentheses and repeats.
std::string unroll(std::string_view text, bool inside) {
  std::string unrolled;
  for (std::size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c == '(' && !inside) {
      const std::size_t end = text.find(')', at);
      if (end == std::string_view::npos) bad_layout("'(' without ')'");
      const std::string part = unroll(text.substr(at + 1, end - at - 1), true);
      at = end + 1;
      append(unrolled, part, take_repeats(text, at));
      continue;
    }
    ++at;
    if (c != ',') append(unrolled, std::string_view(&c, 1), take_repeats(text, at));
  }
  return unrolled;
}

}  // namespace

PipelineLayout parse_pipeline_layout(std::string_view text) {
  const std::string unrolled = unroll(text, false);
  PipelineLayout layout{.decoder_layers = {0}, .multi_token_layers = {0}};
  for (const char c : unrolled) {
    switch (c) {
      case '|':
        layout.decoder_layers.push_back(0);
        layout.multi_token_layers.push_back(0);
        break;
      case 't':
        ++layout.decoder_layers.back();
        break;
      case 'm':
        ++layout.multi_token_layers.back();
        break;
      case 'E':
      case 'L':
        break;
      default:
        bad_layout(fmt::format("'{}' is none of E, t, m, L and |", c));
    }
  }
  if (unrolled.empty() || unrolled.front() != 'E' || unrolled.find('E', 1) != std::string::npos) {
    bad_layout("expected E, the embedding, first and once");
  }
  if (unrolled.back() != 'L' || unrolled.find('L') != unrolled.size() - 1) {
    bad_layout("expected L, the loss, last and once");
  }
  return layout;
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
  const bool otherwise = p.first_stage_layers || p.last_stage_layers || p.embedding_is_a_layer || p.loss_is_a_layer;
  require(p.piece_layers.empty() || (several && !otherwise), kLayout,
          "needs a pipeline and excludes other ways to cut it");
  require(p.piece_layers.empty() || p.piece_layers.size() == p.pipeline * p.virtual_stages, kLayout,
          fmt::format("has {} pieces: expected {} x {}", p.piece_layers.size(), p.pipeline, p.virtual_stages));
}

}  // namespace shardplan
