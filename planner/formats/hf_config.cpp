#include "planner/formats/hf_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "planner/families/family.h"
#include "planner/families/model_config.h"
#include "planner/formats/countable.h"
#include "planner/formats/near_names.h"

namespace shardplan {
namespace {

const Family& family_of(JsonView root) {
  const JsonView model_type = root["model_type"];
  if (!model_type.is_string()) model_type.fail_expected("the name of a family, such as \"llama\"");
  if (const Family* family = find_family(model_type.as_string())) return *family;
  model_type.fail(fmt::format(
      "{} is not a known family; the nearest are {}. A model of any family can be given as its safetensors files "
      "(only their headers are read) or as a tensor list",
      model_type.shown(), fmt::join(near_names(model_type.as_string(), family_names()), ", ")));
}

}  // namespace

Model model_from_hf_config(JsonView root) {
  const Family& family = family_of(root);
  ModelConfig config(root, family);
  Model model = family.build(config);
  require_countable(model.catalog, root.source());
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
