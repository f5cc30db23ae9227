// Families: the model types that can be built from a config.json. A family is a row of data and one function; families
// that are near to each other share a file, and that file's table is all that has to change to add one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/formats/json.h"

namespace shardplan {

class ModelBuilder;
class ModelConfig;

// Another name of an attribute, which the class of this family reads as `attribute` (transformers' attribute_map).
struct Alias {
  std::string_view attribute;
  std::string_view key;
};

// How many features a head puts out. `custom`: the family's function adds the head itself.
enum class HeadOutput : std::uint8_t { none, vocabulary, labels, span, custom };

// What an architecture puts behind the base model: LlamaForCausalLM is "Llama", "ForCausalLM".
struct Head {
  std::string_view suffix;
  std::string_view base;    // where the base model lies in it: "model", or "" for the base model itself
  std::string_view module;  // the head's name
  HeadOutput output = HeadOutput::none;
  bool bias = false;
  // Before it, if anything: the class's where the file has neither classifier_dropout nor hidden_dropout.
  std::optional<double> dropout{};
};

struct Family {
  std::string_view model_type;  // or, for diffusers' models, the _class_name
  std::string_view class_stem;  // "Llama"
  std::span<const Head> heads;  // the first is taken where the file's architecture is not listed
  std::span<const Alias> aliases;
  void (*build)(ModelConfig&, ModelBuilder&);
};

// One function for each file of families.
std::span<const Family> bert_families();
std::span<const Family> clip_families();
std::span<const Family> deberta_families();
std::span<const Family> deepseek_families();
std::span<const Family> diffusion_families();
std::span<const Family> flow_families();
std::span<const Family> flux2_families();
std::span<const Family> gpt2_families();
std::span<const Family> gpt_neox_families();
std::span<const Family> litgpt_families();
std::span<const Family> llama_families();
std::span<const Family> mamba_families();
std::span<const Family> mixtral_families();
std::span<const Family> t5_families();
std::span<const Family> vision_families();
std::span<const Family> vision_language_families();

// The family that an object names by its model_type or, as diffusers' files do, by its _class_name. Throws ConfigError
// that lists near names where it names none that is known.
const Family& require_family(JsonView root);
// Null if there is none.
const Family* find_family(std::string_view model_type);
std::vector<std::string> family_names();

}  // namespace shardplan
