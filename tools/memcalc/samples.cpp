#include "tools/memcalc/samples.h"

#include <fmt/format.h>

#include <algorithm>

namespace shardplan::memcalc {

// Diffusion transformers are conditioned by texts, which another model encodes.
Samples samples_of(const Model& model) {
  if (model.architecture.vocabulary > 0 || model.modules.empty()) return Samples::texts;
  if (model.catalog.family == "cnf") return Samples::points;
  const bool conditioned = std::any_of(model.modules.begin(), model.modules.end(), [](const ModuleRun& run) {
    return std::any_of(run.modules.begin(), run.modules.end(),
                       [](const Module& module) { return module.name.ends_with("context_embedder"); });
  });
  return conditioned ? Samples::images_with_texts : Samples::images;
}

void add_notes_of_samples(const PlanOptions& options, Samples samples, const std::string& family,
                          std::vector<std::string>& notes) {
  if (samples == Samples::texts) return;
  if (options.sequence && samples != Samples::images_with_texts) {
    notes.push_back(fmt::format("--seq is not used: {} reads no text", family));
  }
  if (options.client.images != 1) {
    notes.push_back(fmt::format("--images is not used: how many samples {} reads at once is --micro-batch", family));
  }
}

}  // namespace shardplan::memcalc
