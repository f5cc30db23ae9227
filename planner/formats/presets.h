// Models that are known by name: planner/data/models.json, compiled in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/families/model.h"

namespace shardplan {

struct Preset {
  std::string name;        // "llama-2-7b"
  std::string hf_id;       // "meta-llama/Llama-2-7b-hf"
  std::string model_type;  // "llama"
  std::uint64_t parameters = 0;
  std::string source;  // where the figures come from
  bool operator==(const Preset&) const = default;
};

// In the order of the file, by family and size. Builds no model.
std::vector<Preset> presets();

// Builds one, by its name or its hf_id, in either case. Nothing if there is none of that name.
std::optional<Model> preset_model(std::string_view name);

// Throws ConfigError that lists near names where there is none.
Model require_preset_model(std::string_view name);

}  // namespace shardplan
