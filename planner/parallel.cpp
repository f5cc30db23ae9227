#include "planner/parallel.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "planner/tensor_split.h"

namespace shardplan {
namespace {

// Consecutive layers [begin, end) of the main stack.
struct Layers {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct Stage {
  bool first = false;
  bool last = false;
  std::vector<Layers> pieces;  // in order
};

std::uint64_t count_layers(const Catalog& catalog, const std::string& stack) {
  std::uint64_t layers = 0;
  for (const UnitRun& run : catalog.runs) {
    if (run.numbered && run.name == stack) layers += run.count;
  }
  return layers;
}

[[noreturn]] void fail(const char* flag, const std::string& problem) {
  throw ConfigError(flag, "", problem);
}

// Layers of each pipeline rank, before they are cut into virtual stages.
std::vector<std::uint64_t> layers_of_ranks(std::uint64_t layers, const Parallelism& p) {
  std::vector<std::uint64_t> counts(p.pipeline, layers / p.pipeline);
  if (!p.first_stage_layers && !p.last_stage_layers) {
    for (std::uint64_t i = 0; i < layers % p.pipeline; ++i) ++counts[i];
    return counts;
  }
  const std::uint64_t set = p.first_stage_layers.value_or(0) + p.last_stage_layers.value_or(0);
  const std::uint64_t others = p.pipeline - (p.first_stage_layers ? 1U : 0U) - (p.last_stage_layers ? 1U : 0U);
  const std::uint64_t rest = layers - std::min(set, layers);
  if (set > layers || (others == 0 ? rest != 0 : rest % others != 0 || rest == 0)) {
    fail("--first-stage-layers", fmt::format("the first and last stage take {} of {} layers: {} other stages cannot "
                                             "share out the rest evenly",
                                             set, layers, others));
  }
  if (others > 0) std::fill(counts.begin(), counts.end(), rest / others);
  if (p.first_stage_layers) counts.front() = *p.first_stage_layers;
  if (p.last_stage_layers) counts.back() = *p.last_stage_layers;
  return counts;
}

std::vector<Stage> stages_of(std::uint64_t layers, const Parallelism& p) {
  const std::vector<std::uint64_t> counts = layers_of_pieces(layers, p);
  std::vector<Layers> pieces;
  for (std::uint64_t begin = 0; const std::uint64_t count : counts) {
    pieces.push_back({begin, begin + count});
    begin += count;
  }
  std::vector<Stage> stages(p.pipeline);
  for (std::uint64_t r = 0; r < p.pipeline; ++r) {
    Stage& stage = stages[r];
    stage.first = r == 0;
    stage.last = r + 1 == p.pipeline;
    for (std::uint64_t v = 0; v < p.virtual_stages; ++v) stage.pieces.push_back(pieces[v * p.pipeline + r]);
    if (resolved_schedule(p) != PipelineSchedule::dualpipe) continue;
    stage.first = stage.last = stage.first || stage.last;
    stage.pieces.push_back(pieces[p.pipeline - 1 - r]);
    if (stage.pieces[1].begin < stage.pieces[0].begin) std::swap(stage.pieces[0], stage.pieces[1]);
  }
  return stages;
}

// The runs of a stage, whole tensors still.
std::vector<UnitRun> runs_of_stage(const Catalog& catalog, const std::string& stack, const Stage& stage) {
  std::vector<UnitRun> runs;
  bool before = true;
  std::uint64_t layer = 0;
  for (const UnitRun& run : catalog.runs) {
    if (!run.numbered || run.name != stack) {
      if (before ? stage.first : stage.last) runs.push_back(run);
      continue;
    }
    before = false;
    for (const Layers& piece : stage.pieces) {
      const std::uint64_t begin = std::max(piece.begin, layer);
      const std::uint64_t end = std::min(piece.end, layer + run.count);
      if (begin >= end) continue;
      UnitRun part = run;
      part.first_number += begin - layer;
      part.count = end - begin;
      runs.push_back(std::move(part));
    }
    layer += run.count;
  }
  return runs;
}

// What is tied to a tensor of another stage owns elements here; a second one is tied to the first.
void own_tied(Catalog& catalog) {
  std::map<std::string, std::string> owners;
  for (UnitRun& run : catalog.runs) {
    for (Tensor& tensor : run.tensors) {
      if (tensor.tied_to.empty() || has_tensor(catalog, tensor.tied_to)) continue;
      const auto [owner, is_new] = owners.try_emplace(tensor.tied_to, tensor_name(run, 0, tensor));
      tensor.tied_to = is_new ? std::string() : owner->second;
    }
  }
}

void require_divisible_modules(const Model& model, const Parallelism& p) {
  for (const ModuleRun& run : model.modules) {
    for (const Module& module : run.modules) {
      if (module.routing && module.routing->experts % p.expert != 0) {
        fail("--ep", fmt::format("{} ranks cannot share out the {} experts of {}", p.expert, module.routing->experts,
                                 model.catalog.name));
      }
      if (!module.attention) continue;
      const AttentionSizes& sizes = *module.attention;
      if (sizes.heads % p.tensor != 0) {
        fail("--tp", fmt::format("{} ranks cannot share out the {} attention heads of {}", p.tensor, sizes.heads,
                                 model.catalog.name));
      }
      if (sizes.kv_heads % p.tensor != 0 && p.tensor % sizes.kv_heads != 0) {
        fail("--tp", fmt::format("expected a multiple or a divisor of the {} heads of keys and values of {}, found {}",
                                 sizes.kv_heads, model.catalog.name, p.tensor));
      }
    }
  }
}

bool has_experts(const Catalog& catalog) {
  return std::any_of(catalog.runs.begin(), catalog.runs.end(), [](const UnitRun& run) {
    return std::any_of(run.tensors.begin(), run.tensors.end(), [](const Tensor& t) { return names_expert(t.name); });
  });
}

// Which stages have more layers than the others.
std::string more_layers_words(std::uint64_t stages, bool behind_first) {
  if (behind_first)
    return stages == 1 ? "the one behind the first has" : fmt::format("the {} behind the first have", stages);
  return stages == 1 ? "the first has" : fmt::format("the first {} have", stages);
}

void add_pipeline_notes(const Catalog& model, const std::string& stack, std::uint64_t layers, const Parallelism& p,
                        std::vector<std::string>& notes) {
  const bool even = p.piece_layers.empty() && !p.first_stage_layers && !p.last_stage_layers &&
                    !p.embedding_is_a_layer && !p.loss_is_a_layer;
  const std::uint64_t stages = p.more_layers_behind_first ? p.pipeline * p.virtual_stages : p.pipeline;
  if (even && layers % stages != 0) {
    notes.push_back(fmt::format("{} layers do not divide into {} stages: {} one more", layers, stages,
                                more_layers_words(layers % stages, p.more_layers_behind_first)));
  }
  if (std::any_of(model.runs.begin(), model.runs.end(),
                  [&](const UnitRun& run) { return run.numbered && run.name != stack && run.name != "mtp.layers"; })) {
    notes.push_back(
        fmt::format("only the blocks of {} are split into stages: the other towers are on the first one", stack));
  }
}

void require_splittable(const Catalog& catalog, const Parallelism& p) {
  const bool split = p.tensor * p.pipeline * p.expert > 1 || resolved_expert_tensor(p) > 1;
  if (split && catalog.count_only) {
    fail(p.tensor > 1     ? "--tp"
         : p.pipeline > 1 ? "--pp"
                          : "--ep",
         "needs a model: a count of parameters has no tensors to split");
  }
  if (experts_apart(p) && !has_experts(catalog)) fail("--ep", fmt::format("{} has no experts", catalog.name));
}

}  // namespace

std::vector<std::uint64_t> layers_of_pieces(std::uint64_t layers, const Parallelism& p) {
  if (!p.piece_layers.empty()) {
    const std::uint64_t all = std::accumulate(p.piece_layers.begin(), p.piece_layers.end(), std::uint64_t{0});
    if (all != layers) {
      fail("--pipeline-model-parallel-layout", fmt::format("has {} layers of the model's {}", all, layers));
    }
    return p.piece_layers;
  }
  const std::uint64_t pieces = checked_multiply(p.pipeline, p.virtual_stages);
  // A stage may hold nothing but the embedding or the loss that stands for its layer.
  const std::uint64_t stand_ins = (p.embedding_is_a_layer ? 1U : 0U) + (p.loss_is_a_layer ? 1U : 0U);
  if (layers + stand_ins < pieces) {
    fail(p.virtual_stages > 1 ? "--virtual-stages" : "--pp",
         fmt::format("{} layers are fewer than the {} stages of the pipeline", layers, pieces));
  }
  if (p.embedding_is_a_layer || p.loss_is_a_layer) {
    const std::uint64_t counted = layers + stand_ins;
    if (counted % pieces != 0) {
      fail("--pp", fmt::format("{} layers, with the embedding or the loss counted as one, do not divide into {} stages",
                               counted, pieces));
    }
    std::vector<std::uint64_t> counts(pieces, counted / pieces);
    if (p.embedding_is_a_layer) --counts.front();
    if (p.loss_is_a_layer) --counts.back();
    return counts;
  }
  if (p.more_layers_behind_first && !p.first_stage_layers && !p.last_stage_layers) {
    std::vector<std::uint64_t> counts(pieces, layers / pieces);
    std::for_each_n(counts.begin() + 1, layers % pieces, [](std::uint64_t& count) { ++count; });
    return counts;
  }
  const std::vector<std::uint64_t> of_ranks = layers_of_ranks(layers, p);
  std::vector<std::uint64_t> counts;
  for (std::uint64_t v = 0; v < p.virtual_stages; ++v) {
    for (const std::uint64_t count : of_ranks) {
      if (count % p.virtual_stages != 0) {
        fail("--virtual-stages", fmt::format("{} layers on one of {} ranks do not divide into {} virtual stages", count,
                                             p.pipeline, p.virtual_stages));
      }
      counts.push_back(count / p.virtual_stages);
    }
  }
  return counts;
}

std::string main_stack(const Catalog& catalog) {
  std::string stack;
  for (const UnitRun& run : catalog.runs) {
    if (run.numbered && run.name != "mtp.layers") stack = run.name;
  }
  return stack;
}

std::vector<RankKind> kinds_of_ranks(const Model& model, const Setup& setup) {
  const Parallelism& p = setup.parallel;
  require_splittable(model.catalog, p);
  const std::uint64_t ranks = checked_multiply(setup.world_size, p.tensor);
  if (p == Parallelism{.context = p.context}) return {{.role = "all", .count = ranks, .catalog = model.catalog}};
  require_divisible_modules(model, p);
  const TensorSplit split(model.catalog, p);
  const std::string stack = main_stack(model.catalog);
  const std::uint64_t layers = count_layers(model.catalog, stack);
  std::vector<std::string> notes = model.catalog.notes;
  for (std::string& note : split.notes(model.catalog)) notes.push_back(std::move(note));
  if (p.pipeline > 1) add_pipeline_notes(model.catalog, stack, layers, p, notes);

  Catalog part;  // what one rank holds of the whole pipeline
  part.name = model.catalog.name;
  part.family = model.catalog.family;
  part.stored_dtype = model.catalog.stored_dtype;
  for (const UnitRun& run : model.catalog.runs) {
    part.runs.push_back(run);
    part.runs.back().tensors = split.part_of(run);
  }
  std::vector<RankKind> kinds;
  const std::vector<Stage> stages =
      p.pipeline > 1 ? stages_of(layers, p) : std::vector<Stage>{{true, true, {{0, layers}}}};
  for (std::size_t s = 0; s < stages.size(); ++s) {
    RankKind kind{.role = p.pipeline > 1 ? fmt::format("pipeline {}", s) : "all", .count = ranks, .catalog = {}};
    kind.catalog.name = part.name;
    kind.catalog.family = part.family;
    kind.catalog.stored_dtype = part.stored_dtype;
    kind.catalog.notes = notes;
    kind.catalog.runs = runs_of_stage(part, stack, stages[s]);
    own_tied(kind.catalog);
    kinds.push_back(std::move(kind));
  }
  return kinds;
}

DataAxes split_by_data_axis(const Catalog& catalog) {
  DataAxes axes{.others = catalog, .experts = catalog};
  for (auto& [part, expert] : {std::pair{&axes.others, false}, {&axes.experts, true}}) {
    for (UnitRun& run : part->runs) {
      std::erase_if(run.tensors, [want = expert](const Tensor& tensor) { return tensor.expert != want; });
    }
    std::erase_if(part->runs, [](const UnitRun& run) { return run.tensors.empty(); });
  }
  return axes;
}

}  // namespace shardplan
