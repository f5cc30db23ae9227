#include "planner/families/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "base/error.h"
#include "planner/families/family.h"
#include "planner/families/model_config.h"
#include "planner/units.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kMostKindsOfLayers = 4'096;
constexpr std::size_t kMostModules = 1'000'000;  // listed; blocks of a run count once

std::string dotted(std::string_view prefix, std::string_view name) {
  return prefix.empty() ? std::string(name) : fmt::format("{}.{}", prefix, name);
}

std::vector<Tensor> tensors_of(const Modules& modules) {
  std::vector<Tensor> tensors;
  for (const Module& module : modules) {
    for (Tensor tensor : module.tensors) {
      tensor.name = name_of_tensor(module, tensor);
      tensors.push_back(std::move(tensor));
    }
  }
  return tensors;
}

// The name by which a loose module finds its unit: its first tensor's, or that of one it might have.
std::string placing_name(const Module& module) {
  return module.tensors.empty() ? module.name + ".weight" : name_of_tensor(module, module.tensors[0]);
}

// Runs as a builder collected them: numbered ones are blocks of a stack, the others hold loose modules.
std::set<std::string, std::less<>> stacks_of(const std::vector<ModuleRun>& runs) {
  std::vector<std::string> names;
  std::set<std::string, std::less<>> stacks;
  for (const ModuleRun& run : runs) {
    if (run.numbered) {
      stacks.insert(run.name);
      continue;
    }
    for (const Module& module : run.modules) {
      for (const Tensor& tensor : module.tensors) names.push_back(name_of_tensor(module, tensor));
    }
  }
  stacks.merge(stacks_in(std::vector<std::string_view>(names.begin(), names.end())));
  return stacks;
}

bool has_tensors(const ModuleRun& run) {
  return std::any_of(run.modules.begin(), run.modules.end(), [](const Module& m) { return !m.tensors.empty(); });
}

// The units in order. What would be a unit without tensors (a last norm that has no weight) is with the unit before it
// that is no block.
std::vector<ModuleRun> with_tensors(std::map<UnitNames::Place, ModuleRun>& sorted) {
  std::vector<ModuleRun> units;
  for (auto& [place, run] : sorted) {
    if (run.numbered || has_tensors(run)) {
      units.push_back(std::move(run));
      continue;
    }
    const auto before =
        std::find_if(units.rbegin(), units.rend(), [](const ModuleRun& unit) { return !unit.numbered; });
    if (before == units.rend()) continue;
    std::move(run.modules.begin(), run.modules.end(), std::back_inserter(before->modules));
  }
  return units;
}

std::vector<ModuleRun> in_units(std::vector<ModuleRun> runs) {
  const UnitNames units(stacks_of(runs));
  std::map<UnitNames::Place, ModuleRun> sorted;
  for (ModuleRun& run : runs) {
    if (run.numbered) {
      const auto place = units.block(run.name, run.first_number);
      sorted.emplace(place, std::move(run));
      continue;
    }
    for (Module& module : run.modules) {
      const std::string name = placing_name(module);
      const std::string_view tie = module.tensors.empty() ? std::string_view() : module.tensors[0].tied_to;
      const auto place = units.place(name, tie);
      ModuleRun& unit = sorted[place];
      if (place.in_block()) {
        const NumberedName split = units.in_stack(name);
        unit.name = split.prefix;
        unit.numbered = true;
        unit.first_number = split.number;
        module.name = module.name.substr(name.size() - split.rest.size());
      } else {
        unit.name = units.name(place);
      }
      unit.modules.push_back(std::move(module));
    }
  }
  return with_tensors(sorted);
}

}  // namespace

const ModuleRun* modules_of(const Model& model, const UnitRun& run) {
  const auto found = std::find_if(model.modules.begin(), model.modules.end(), [&](const ModuleRun& modules) {
    if (modules.name != run.name || modules.numbered != run.numbered) return false;
    return !run.numbered ||
           (run.first_number >= modules.first_number && run.first_number < modules.first_number + modules.count);
  });
  return found == model.modules.end() ? nullptr : &*found;
}

Catalog make_catalog(std::string name, std::string family, const std::vector<ModuleRun>& runs) {
  CatalogBuilder builder(std::move(name), std::move(family));
  for (const ModuleRun& run : runs) {
    std::vector<Tensor> tensors = tensors_of(run.modules);
    if (run.numbered) {
      builder.add_run(run.name, run.first_number, run.count, std::move(tensors));
    } else {
      builder.begin_unit(run.name);
      for (Tensor& tensor : tensors) builder.add(std::move(tensor));
    }
  }
  return builder.finish();
}

std::optional<std::uint64_t> active_parameters(const std::vector<ModuleRun>& runs) {
  std::uint64_t active = 0;
  bool any_routed = false;
  for (const ModuleRun& run : runs) {
    std::uint64_t always = 0;
    std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> routed;  // by (experts, chosen)
    for (const Module& module : run.modules) {
      for (const Tensor& tensor : module.tensors) {
        if (!tensor.tied_to.empty()) continue;
        const std::uint64_t size = elements(tensor.shape);
        if (module.routing) {
          routed[{module.routing->experts, module.routing->chosen}] += size;
        } else {
          always += size;
        }
      }
    }
    for (const auto& [routing, size] : routed) always += size / routing.first * routing.second;
    any_routed = any_routed || !routed.empty();
    active += run.count * always;
  }
  return any_routed ? std::optional(active) : std::nullopt;
}

void finish_model(Model& model, std::string name, std::string family) {
  std::vector<Tensor> buffers = std::move(model.catalog.buffers);
  model.modules = in_units(std::move(model.modules));
  model.catalog = make_catalog(std::move(name), std::move(family), model.modules);
  model.catalog.buffers = std::move(buffers);
}

ModelBuilder::ModelBuilder(ModelConfig& config, Model& model)
    : config_(config), model_(model), listed_(std::make_shared<std::size_t>(0)) {}

ModelBuilder::ModelBuilder(ModelConfig& config, const ModelBuilder& outer, std::string prefix, Part part)
    : config_(config), model_(outer.model_), prefix_(std::move(prefix)), part_(part), listed_(outer.listed_) {}

void ModelBuilder::describe(const Architecture& architecture) {
  architecture_ = architecture;
  architecture_.use_cache = config_.flag("use_cache", architecture.use_cache);
  if (part_ == Part::main) model_.architecture = architecture_;
}

std::string ModelBuilder::whole(const std::string& name) const {
  return dotted(prefix_, dotted(config_.base_prefix(), name));
}

Modules ModelBuilder::placed(std::string_view prefix, Modules modules) const {
  modules = below(prefix, std::move(modules));
  return part_ == Part::frozen_tower ? frozen(std::move(modules)) : modules;
}

void ModelBuilder::add(Modules modules) {
  add_outside(below(config_.base_prefix(), std::move(modules)));
}

void ModelBuilder::add_outside(Modules modules) {
  model_.modules.push_back({.name = {}, .modules = placed(prefix_, std::move(modules))});
}

void ModelBuilder::blocks(const std::string& stack, std::uint64_t count, const Modules& modules) {
  if (count == 0) return;
  ModuleRun run{.name = whole(stack), .numbered = true, .count = count, .modules = placed("", modules)};
  const auto before = std::find_if(model_.modules.rbegin(), model_.modules.rend(), [&](const ModuleRun& earlier) {
    return earlier.numbered && earlier.name == run.name;
  });
  if (before != model_.modules.rend()) run.first_number = before->first_number + before->count;
  *listed_ += run.modules.size();
  if (*listed_ > kMostModules) {
    config_.fail("num_hidden_layers",
                 fmt::format("with its layers the model has more than {} different modules", kMostModules));
  }
  model_.modules.push_back(std::move(run));
}

void ModelBuilder::require_listable(std::uint64_t layers) const {
  if (layers <= kMostKindsOfLayers) return;
  config_.fail("num_hidden_layers",
               fmt::format("expected at most {} layers of several kinds, found {}", kMostKindsOfLayers, layers));
}

void ModelBuilder::head(const std::string& embedding, bool tied_by_default) {
  const Head& head = config_.head();
  if (head.output == HeadOutput::none || head.output == HeadOutput::custom) return;
  const bool language_model = head.output == HeadOutput::vocabulary;
  const std::uint64_t width = language_model                      ? architecture_.vocabulary
                              : head.output == HeadOutput::labels ? config_.labels()
                                                                  : 2;
  Modules last = linear(std::string(head.module), architecture_.hidden, width, head.bias);
  if (language_model && config_.ties_embeddings(tied_by_default)) {
    last = tied(std::move(last), whole(embedding) + ".weight");
  }
  if (head.dropout) {
    double rate = *head.dropout;
    for (const char* attribute : {"hidden_dropout", "classifier_dropout"}) {
      if (config_.has(attribute)) rate = config_.number(attribute, 0);
    }
    add_outside(dropout("dropout", rate));
  }
  add_outside(std::move(last));
}

void ModelBuilder::buffer(const std::string& name, Shape shape) {
  buffer_outside(dotted(config_.base_prefix(), name), std::move(shape));
}

void ModelBuilder::buffer_outside(const std::string& name, Shape shape) {
  model_.catalog.buffers.push_back({.name = dotted(prefix_, name), .shape = std::move(shape), .trainable = false});
}

void ModelBuilder::nested(const std::string& prefix, ModelConfig config, Part part) {
  const Part inner = part_ == Part::main ? part : part_ == Part::frozen_tower ? part_ : Part::tower;
  ModelBuilder builder(config, *this, dotted(prefix_, dotted(config_.base_prefix(), prefix)), inner);
  config.family().build(config, builder);
}

}  // namespace shardplan
