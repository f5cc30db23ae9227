#include "planner/families/model.h"

#include <fmt/format.h>

#include <utility>

#include "planner/families/model_config.h"

namespace shardplan {
namespace {

std::vector<Tensor> tensors_of(const Modules& modules) {
  std::vector<Tensor> tensors;
  for (const Module& module : modules) {
    for (Tensor tensor : module.tensors) {
      tensor.name = fmt::format("{}.{}", module.name, tensor.name);
      tensors.push_back(std::move(tensor));
    }
  }
  return tensors;
}

}  // namespace

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

ModelBuilder::ModelBuilder(ModelConfig& config, const Architecture& architecture) : config_(config) {
  model_.architecture = architecture;
}

std::string ModelBuilder::whole(const std::string& name) const {
  const std::string& prefix = config_.base_prefix();
  return prefix.empty() ? name : fmt::format("{}.{}", prefix, name);
}

void ModelBuilder::embeddings(std::initializer_list<Modules> parts) {
  model_.modules.push_back({.name = kEmbeddingUnit, .modules = below(config_.base_prefix(), join(parts))});
}

void ModelBuilder::blocks(const std::string& name, std::uint64_t count, std::initializer_list<Modules> parts) {
  ModuleRun run{.name = whole(name), .numbered = true, .count = count, .modules = join(parts)};
  for (const ModuleRun& before : model_.modules) {
    if (before.numbered && before.name == run.name) run.first_number = before.first_number + before.count;
  }
  if (count > 0) model_.modules.push_back(std::move(run));
}

void ModelBuilder::head(std::initializer_list<Modules> parts, const std::string& embedding, bool tied_by_default) {
  Modules modules = below(config_.base_prefix(), join(parts));
  const Head& head = config_.head();
  if (head.output != HeadOutput::none) {
    const bool language_model = head.output == HeadOutput::vocabulary;
    const std::uint64_t width = language_model                      ? model_.architecture.vocabulary
                                : head.output == HeadOutput::labels ? config_.labels()
                                                                    : 2;
    Modules last = linear(std::string(head.module), model_.architecture.hidden, width, head.bias);
    if (language_model && config_.ties_embeddings(tied_by_default)) {
      last = tied(std::move(last), whole(embedding) + ".weight");
    }
    modules.insert(modules.end(), last.begin(), last.end());
  }
  model_.modules.push_back({.name = kHeadUnit, .modules = std::move(modules)});
}

Model ModelBuilder::finish() {
  model_.catalog = make_catalog(config_.source(), std::string(config_.family().model_type), model_.modules);
  return std::move(model_);
}

}  // namespace shardplan
