#include "planner/formats/read_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "planner/families/family.h"
#include "planner/families/model_config.h"
#include "planner/families/pipeline.h"
#include "planner/formats/countable.h"
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
constexpr const char* kIndexFile = "model_index.json";

// What a config.json or a model_index.json is called after: its folder, or itself where that has no name.
std::string name_of_config(const std::string& path) {
  const std::string file = last_part(path);
  if (file != kConfigFile && file != kIndexFile) return fs::path(file).stem().string();
  std::error_code error;
  const std::string folder = last_part(fs::absolute(path, error).parent_path().string());
  return folder.empty() ? file : folder;
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

// The class in a member of an index, ["transformers", "T5EncoderModel"]; empty where there is none, [null, null].
std::string_view class_in_index(JsonView member) {
  std::string_view name;
  if (!member.exists() || member.is_null()) return name;
  if (member.size() != 2) member.fail_expected("a library and a class");
  for (const JsonView part : member.elements()) name = part.is_null() ? std::string_view() : part.as_string();
  return name;
}

// Adds what the sub-folder's config.json describes to the pipeline. Returns the catalog that it has by itself.
Catalog add_member(const PipelineMember& member, const std::string& path, ModelBuilder& builder) {
  const JsonDocument document(read_text(path), path);
  const JsonView root = document.root();
  Model alone = model_from_hf_config(root);  // says what is wrong with it
  const Family& family = require_family(root);
  if (family.model_type != member.model_type) {
    const JsonView model_type = root["model_type"];
    (model_type.exists() ? model_type : root["_class_name"]).fail_expected(fmt::format("\"{}\"", member.model_type));
  }
  ModelConfig config(root, family);
  if (config.head().suffix != member.head) {
    root["architectures"].fail_expected(fmt::format("[\"{}{}\"]", family.class_stem, member.head));
  }
  builder.nested(std::string(member.name), std::move(config), member.part);
  return std::move(alone.catalog);
}

// A model that is left out: it has a config.json; tokenizers, schedulers and processors have files of other names.
bool is_unknown_model(std::span<const PipelineMember> members, JsonView entry, const fs::path& folder) {
  const bool known = std::any_of(members.begin(), members.end(), [&](const auto& m) { return m.name == entry.key(); });
  return !known && exists((folder / entry.key() / kConfigFile).string()) && !class_in_index(entry).empty();
}

Model read_pipeline(const std::string& path) {
  const JsonDocument index(read_text(path), path);
  const JsonView root = index.root();
  const Family& family = require_family(root);
  const std::span<const PipelineMember> members = pipeline_members(family);
  if (members.empty()) root["_class_name"].fail_expected("a pipeline, such as \"StableDiffusion3Pipeline\"");
  const fs::path folder = fs::path(path).parent_path();

  Model model;
  ModelConfig config(root, family);
  ModelBuilder builder(config, model);
  std::vector<std::string> notes;
  std::optional<DType> stored_dtype;
  for (const PipelineMember& member : members) {
    const JsonView entry = root[member.name];
    const bool trained = member.part == ModelBuilder::Part::main;
    if (class_in_index(entry).empty()) {
      if (trained) entry.fail_expected("the model that is trained");
      continue;
    }
    const Catalog alone = add_member(member, (folder / member.name / kConfigFile).string(), builder);
    for (const std::string& note : alone.notes) notes.push_back(fmt::format("{}: {}", member.name, note));
    if (trained) stored_dtype = alone.stored_dtype;
  }
  for (const JsonView entry : root.members()) {
    if (!is_unknown_model(members, entry, folder)) continue;
    notes.push_back(fmt::format("{} ({}) is left out", entry.key(), class_in_index(entry)));
  }
  finish_model(model, name_of_config(path), std::string(family.model_type));
  require_countable(model.catalog, path);
  model.catalog.stored_dtype = stored_dtype;
  model.catalog.notes = std::move(notes);
  return model;
}

}  // namespace

Model read_model(const std::string& path) {
  if (last_part(path) == kIndexFile) return read_pipeline(path);
  const bool folder = is_folder(path);
  const std::string index = (fs::path(path) / kIndexFile).string();
  if (folder && exists(index)) return read_pipeline(index);
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
