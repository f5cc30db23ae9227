// Pipelines: what diffusers makes of several models, each with a config of its own.
//
// All of them can be members of one object, {"_class_name": "StableDiffusion3Pipeline", "transformer": {...}, ...}; in
// a folder that save_pretrained wrote, each has a config.json in a sub-folder (planner/formats/read_model.h).
#pragma once

#include <span>
#include <string_view>

#include "planner/families/family.h"
#include "planner/families/model.h"

namespace shardplan {

struct PipelineMember {
  std::string_view name;        // its key, its sub-folder, and the prefix of its tensors
  std::string_view model_type;  // or _class_name
  std::string_view head;        // of its class: a suffix of its family's heads
  ModelBuilder::Part part;      // the main one is always there; the others may be left out
};

// Empty for a family that is no pipeline.
std::span<const PipelineMember> pipeline_members(const Family& family);

}  // namespace shardplan
