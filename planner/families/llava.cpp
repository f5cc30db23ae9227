// LLaVA (modeling_llava.py): CLIP, a projector of two layers, and a language model that the file names.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

#include "base/error.h"
#include "planner/families/vision.h"
#include "planner/families/vision_language.h"

namespace shardplan {
namespace {

using Part = ModelBuilder::Part;

// The object under `key` as a part with this head, of the family that it names: the first of those known where it names none.
ModelConfig part_of(const ModelConfig& config, std::string_view key, std::span<const std::string_view> known,
                    std::string_view head) {
  const Family* first = find_family(known.front());
  SHARDPLAN_CHECK(first != nullptr, "a family that is part of another one");
  const ModelConfig named = config.nested(key, *first, head);
  const std::string type = named.text("model_type", known.front());
  if (std::find(known.begin(), known.end(), type) == known.end())
    named.fail("model_type", fmt::format("expected one of {}, found {}", fmt::join(known, ", "), type));
  return config.nested(key, *find_family(type), head);
}

// Which of the tower's states the projector reads: 0 is what its first block reads, `layers` what its last one says.
std::uint64_t state_read(const ModelConfig& config, std::uint64_t layers) {
  const std::int64_t index = config.index("vision_feature_layer", -2);
  const auto states = static_cast<std::int64_t>(layers) + 1;
  if (index < -states || index >= states)
    config.fail("vision_feature_layer", fmt::format("expected {} to {}, of a tower of {} layers, found {}", -states,
                                                    states - 1, layers, index));
  return static_cast<std::uint64_t>(index < 0 ? index + states : index);
}

// What the projector reads, as a module without tensors: its input is the number of the state, its function the strategy.
Modules state_of_tower(std::uint64_t state, const std::string& strategy) {
  Modules read = residual(strategy);
  read[0].name = "vision_feature";
  read[0].input = state;
  return read;
}

}  // namespace

std::string feature_strategy(const ModelConfig& config) {
  std::string strategy = config.text("vision_feature_select_strategy", "default");
  if (strategy != "default" && strategy != "full")
    config.fail("vision_feature_select_strategy", fmt::format("expected default or full, found {}", strategy));
  return strategy;
}

void llava(ModelConfig& config, ModelBuilder& model) {
  static constexpr std::array<std::string_view, 1> towers{"clip_vision_model"};
  static constexpr std::array<std::string_view, 3> texts{"llama", "mistral", "qwen2"};
  // The class's defaults for a tower that the file leaves out are not those of the tower's own class.
  if (!config.has("vision_config")) config.fail("vision_config", "expected the tower's config");
  const ModelConfig vision = part_of(config, "vision_config", towers, "VisionModel");
  const ModelConfig text = part_of(config, "text_config", texts, "ForCausalLM");
  const std::uint64_t seen = width_of(vision, 768);
  const std::uint64_t width = width_of(text, 4096);
  const bool bias = config.flag("multimodal_projector_bias", true);
  const std::uint64_t state = state_read(config, vision.optional_size("num_hidden_layers").value_or(12));

  model.nested("vision_tower", vision, Part::tower);
  model.add(below("multi_modal_projector",
                  join({state_of_tower(state, feature_strategy(config)), linear("linear_1", seen, width, bias),
                        activation("act", config.text("projector_hidden_act", "gelu"), width),
                        linear("linear_2", width, width, bias)})));
  model.nested("language_model", text, Part::main);
}

}  // namespace shardplan
