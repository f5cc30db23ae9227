#include "planner/formats/presets.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "base/text.h"
#include "planner/families/family.h"
#include "planner/formats/hf_config.h"
#include "planner/formats/json.h"
#include "planner/formats/near_names.h"

namespace shardplan {
namespace data {
extern const std::string_view kModels;
}

std::vector<Preset> presets() {
  const JsonDocument document(data::kModels, "models.json");
  std::vector<Preset> all;
  for (const JsonView row : document.root()["models"].elements()) {
    all.push_back({std::string(row["name"].as_string()), std::string(row["hf_id"].as_string()),
                   std::string(require_family(row["config"]).model_type), row["parameters"].as_positive(),
                   std::string(row["source"].as_string())});
  }
  return all;
}

std::optional<Model> preset_model(std::string_view name) {
  const JsonDocument document(data::kModels, "models.json");
  for (const JsonView row : document.root()["models"].elements()) {
    if (!equal_in_any_case(row["name"].as_string(), name) && !equal_in_any_case(row["hf_id"].as_string(), name))
      continue;
    Model model = model_from_hf_config(row["config"]);
    model.catalog.name = std::string(row["name"].as_string());
    return model;
  }
  return std::nullopt;
}

Model require_preset_model(std::string_view name) {
  if (auto model = preset_model(name)) return *std::move(model);
  std::vector<std::string> names;
  for (Preset& preset : presets()) names.push_back(std::move(preset.name));
  throw ConfigError(
      std::string(name), "",
      fmt::format("is no preset and no file; the nearest presets are {}", fmt::join(near_names(name, names), ", ")));
}

}  // namespace shardplan
