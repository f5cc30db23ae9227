#include "planner/families/family.h"

namespace shardplan {
namespace {

constexpr std::span<const Family> (*kTables[])() = {gpt2_families, llama_families};

}  // namespace

const Family* find_family(std::string_view model_type) {
  for (const auto table : kTables) {
    for (const Family& family : table()) {
      if (family.model_type == model_type) return &family;
    }
  }
  return nullptr;
}

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const auto table : kTables) {
    for (const Family& family : table()) names.emplace_back(family.model_type);
  }
  return names;
}

}  // namespace shardplan
