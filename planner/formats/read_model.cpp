#include "planner/formats/read_model.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "planner/formats/file.h"
#include "planner/formats/hf_config.h"
#include "planner/formats/json.h"
#include "planner/formats/presets.h"
#include "planner/formats/safetensors.h"
#include "planner/formats/tensor_list.h"

namespace shardplan {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConfigFile = "config.json";

// What a config.json is called after: its folder, or itself where that has no name.
std::string name_of_config(const std::string& path) {
  if (last_part(path) != kConfigFile) return fs::path(last_part(path)).stem().string();
  std::error_code error;
  const std::string folder = last_part(fs::absolute(path, error).parent_path().string());
  return folder.empty() ? kConfigFile : folder;
}

Model read_json(const std::string& path) {
  const JsonDocument document(read_text(path), path);
  const JsonView root = document.root();
  if (root["schema"].exists()) {
    Model model = model_from_tensor_list(root);
    if (!root["name"].exists()) model.catalog.name = fs::path(last_part(path)).stem().string();
    return model;
  }
  Model model = model_from_hf_config(root);
  model.catalog.name = name_of_config(path);
  return model;
}

}  // namespace

Model read_model(const std::string& path) {
  const bool folder = is_folder(path);
  const std::string config = (fs::path(path) / kConfigFile).string();
  if (folder && exists(config)) return read_json(config);
  if (!folder && !path.ends_with(".safetensors") && !path.ends_with(".safetensors.index.json")) return read_json(path);
  Model model = model_from_safetensors(path);
  model.catalog.name = last_part(path);
  return model;
}

Model find_model(const std::string& preset_or_path) {
  if (auto model = preset_model(preset_or_path)) return *std::move(model);
  const bool path =
      exists(preset_or_path) || preset_or_path.ends_with(".json") || preset_or_path.ends_with(".safetensors");
  return path ? read_model(preset_or_path) : require_preset_model(preset_or_path);
}

}  // namespace shardplan
