#include "planner/families/family.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "planner/formats/near_names.h"

namespace shardplan {
namespace {

constexpr std::span<const Family> (*kTables[])() = {
    bert_families,    clip_families, deberta_families,  deepseek_families,       diffusion_families, flow_families,
    flux2_families,   gpt2_families, gpt_neox_families, litgpt_families,         llama_families,     mamba_families,
    mixtral_families, t5_families,   vision_families,   vision_language_families};

}  // namespace

const Family* find_family(std::string_view model_type) {
  for (const auto table : kTables) {
    for (const Family& family : table()) {
      if (family.model_type == model_type) return &family;
    }
  }
  return nullptr;
}

const Family& require_family(JsonView root) {
  const JsonView model_type = root["model_type"];
  const JsonView class_name = root["_class_name"];
  const JsonView named = !model_type.exists() && class_name.exists() ? class_name : model_type;
  if (!named.is_string()) named.fail_expected("the name of a family, such as \"llama\"");
  if (const Family* family = find_family(named.as_string())) return *family;
  named.fail(fmt::format(
      "{} is not a known family; the nearest are {}. A model of any family can be given as its safetensors files "
      "(only their headers are read) or as a tensor list",
      named.shown(), fmt::join(near_names(named.as_string(), family_names()), ", ")));
}

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const auto table : kTables) {
    for (const Family& family : table()) names.emplace_back(family.model_type);
  }
  return names;
}

}  // namespace shardplan
