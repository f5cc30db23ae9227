// MODEL: whatever a person writes to say which model is meant.
#pragma once

#include <string>

#include "planner/families/model.h"

namespace shardplan {

// Reads a model from a path:
//   a folder               its config.json if it has one, else its safetensors files
//   *.safetensors          that file
//   *.safetensors.index.json
//   any other file         JSON: a tensor list if it has a "schema", else a config.json
// The catalog is named after the file, or after the folder of a config.json. Throws ConfigError and IoError.
Model read_model(const std::string& path);

// The preset of that name, else the model at that path. Throws ConfigError that lists near presets where it is neither.
Model find_model(const std::string& preset_or_path);

}  // namespace shardplan
