// MODEL: whatever a person writes to say which model is meant.
#pragma once

#include <string>

#include "planner/families/model.h"

namespace shardplan {

// Reads a model from a path:
//   a folder               of a diffusers pipeline (it has a model_index.json), the pipeline; else its config.json if
//                          it has one, else its safetensors files
//   model_index.json       the pipeline of its folder
//   *.safetensors          that file
//   *.safetensors.index.json
//   any other file         JSON: a tensor list if it has a "schema", else a config.json
// A pipeline is made of the config.json files in the sub-folders that its model_index.json names; what is wrong with one
// of them is an error of that file. Tokenizers, schedulers and the like have no tensors; a model that the pipeline's
// family (planner/families/pipeline.h) does not know is left out, and a note says so.
//
// The catalog is named after the file, or after the folder of a config.json or model_index.json. Throws ConfigError and
// IoError.
Model read_model(const std::string& path);

// The preset of that name, else the model at that path. Throws ConfigError that lists near presets where it is neither.
Model find_model(const std::string& preset_or_path);

}  // namespace shardplan
