// The model in one or many safetensors files.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "base/error.h"
#include "planner/formats/buffers.h"
#include "planner/formats/file.h"
#include "planner/formats/json.h"
#include "planner/formats/safetensors.h"
#include "planner/formats/tensor_units.h"

namespace shardplan {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kIndexEnding = ".safetensors.index.json";
constexpr std::string_view kFileEnding = ".safetensors";

struct Found {
  std::vector<StoredTensorPlace> tensors;
  std::vector<std::string> notes;
};

void take(Found& found, const std::string& path) {
  SafetensorsHeader header = read_safetensors_header(path);
  for (SafetensorsTensor& tensor : header.tensors) {
    found.tensors.push_back({path, header.data_begin, std::move(tensor)});
  }
}

// One file of an index: `entries` are what the weight_map says is in it.
void take_shard(Found& found, const std::string& index, std::string_view file, const std::vector<JsonView>& entries) {
  const std::string path = (fs::path(index).parent_path() / file).string();
  if (!exists(path)) entries.front().fail(fmt::format("is said to be in '{}', which does not exist", file));
  const std::size_t first = found.tensors.size();
  take(found, path);
  std::map<std::string_view, bool> stored;  // and whether the index has it here
  for (std::size_t i = first; i < found.tensors.size(); ++i) stored.emplace(found.tensors[i].tensor.name, false);
  for (const JsonView entry : entries) {
    const auto tensor = stored.find(entry.key());
    if (tensor == stored.end()) {
      entry.fail(fmt::format("is said to be in '{}', which has no tensor of this name", file));
    }
    tensor->second = true;
  }
  for (const auto& [name, indexed] : stored) {
    if (!indexed) throw ConfigError(path, std::string(name), fmt::format("is not in this file according to {}", index));
  }
}

// Every file that the index names, each tensor where it says, and no others.
Found read_index(const std::string& path) {
  const JsonDocument document(read_text(path), path);
  const JsonView weight_map = document.root()["weight_map"];
  std::map<std::string_view, std::vector<JsonView>> files;
  for (const JsonView entry : weight_map.members()) {
    const std::string_view file = entry.as_string();
    if (file.empty() || fs::path(file).has_parent_path()) entry.fail_expected("the name of a file beside the index");
    files[file].push_back(entry);
  }
  if (files.empty()) weight_map.fail("names no tensor");

  Found found;
  for (const auto& [file, entries] : files) take_shard(found, path, file, entries);

  const JsonView metadata = document.root()["metadata"];
  if (metadata.is_object() && metadata["total_size"].exists()) {
    std::uint64_t bytes = 0;
    for (const auto& [file, begin, tensor] : found.tensors) bytes = checked_add(bytes, tensor.end - tensor.begin);
    const JsonView total = metadata["total_size"];
    if (total.as_count() != bytes) {
      found.notes.push_back(fmt::format("the index says {} bytes, its files hold {}", total.shown(), bytes));
    }
  }
  return found;
}

Found read_folder(const std::string& folder) {
  const std::vector<std::string> indices = paths_ending_in(folder, kIndexEnding);
  if (indices.size() > 1) {
    throw ConfigError(folder, "",
                      fmt::format("has more than one index, '{}' and '{}': name the one that is meant",
                                  last_part(indices[0]), last_part(indices[1])));
  }
  if (indices.size() == 1) return read_index(indices[0]);
  const std::vector<std::string> files = paths_ending_in(folder, kFileEnding);
  if (files.empty()) throw ConfigError(folder, "", "has neither a config.json nor safetensors files");
  Found found;
  for (const std::string& file : files) take(found, file);
  return found;
}

Found read_any(const std::string& path) {
  if (is_folder(path)) return read_folder(path);
  if (path.ends_with(kIndexEnding)) return read_index(path);
  Found found;
  take(found, path);
  return found;
}

Tensor parameter(const SafetensorsTensor& stored) {
  Tensor tensor{.name = stored.name, .shape = stored.shape, .dtype = {}, .tied_to = {}};
  tensor.trainable = is_trainable_dtype(stored.dtype);
  if (!tensor.trainable) tensor.dtype = stored.dtype;
  return tensor;
}

}  // namespace

std::vector<StoredTensorPlace> tensors_in_safetensors(const std::string& path) {
  return read_any(path).tensors;
}

Model model_from_safetensors(const std::string& path) {
  Found found = read_any(path);
  std::sort(found.tensors.begin(), found.tensors.end(),
            [](const auto& a, const auto& b) { return a.tensor.name < b.tensor.name; });
  std::vector<Tensor> tensors;
  tensors.reserve(found.tensors.size());
  std::vector<Tensor> buffers;
  for (const auto& [file, begin, stored] : found.tensors) {
    if (is_saved_buffer(stored.name, stored.shape)) {
      buffers.push_back({.name = stored.name, .shape = stored.shape, .dtype = stored.dtype, .trainable = false});
    } else {
      tensors.push_back(parameter(stored));
    }
  }
  if (tensors.empty()) throw ConfigError(path, "", "has no parameters");

  Model model;
  model.catalog = catalog_from_tensors(path, std::move(tensors));
  model.catalog.notes = std::move(found.notes);
  model.catalog.buffers = std::move(buffers);
  note_buffers(model.catalog);
  model.catalog.notes.emplace_back("units are taken from the names of the tensors; a tied head is not in such files");
  return model;
}

}  // namespace shardplan
