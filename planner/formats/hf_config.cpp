#include "planner/formats/hf_config.h"

#include "planner/families/family.h"
#include "planner/families/model.h"
#include "planner/families/model_config.h"
#include "planner/formats/countable.h"

namespace shardplan {
Model model_from_hf_config(JsonView root) {
  const Family& family = require_family(root);
  ModelConfig config(root, family);
  Model model;
  ModelBuilder builder(config, model);
  family.build(config, builder);
  finish_model(model, root.source(), std::string(family.model_type));
  require_countable(model.catalog, root.source());
  model.catalog.active_parameters = active_parameters(model.modules);
  model.catalog.notes = config.notes();
  if (root["quantization_config"].is_object()) {
    model.catalog.notes.emplace_back("quantization_config is not used: every tensor is counted as a trainable one");
  }
  return model;
}

Model model_from_hf_config(std::string_view text, const std::string& source) {
  const JsonDocument document(text, source);
  return model_from_hf_config(document.root());
}

}  // namespace shardplan
