#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "base/text.h"
#include "planner/formats/presets.h"
#include "tools/memcalc/output.h"

namespace shardplan::memcalc {

namespace json = boost::json;

std::string models_text(const ListOptions& options) {
  const std::vector<Preset> all = presets();
  std::string text;
  if (options.names) {
    for (const Preset& preset : all) text += preset.name + "\n";
    return text;
  }
  if (options.json) {
    json::array rows;
    for (const Preset& preset : all) {
      rows.push_back({{"name", preset.name},
                      {"family", preset.model_type},
                      {"parameters", preset.parameters},
                      {"hf_id", preset.hf_id},
                      {"source", preset.source}});
    }
    return json::serialize(json::object{{"schema", "memcalc.models/1"}, {"models", std::move(rows)}}) + "\n";
  }
  std::size_t width = 4;
  for (const Preset& preset : all) width = std::max(width, preset.name.size());
  text = fmt::format("{:<{}}  {:<10}{:>20}  {}\n", "name", width, "family", "parameters", "figures from");
  for (const Preset& preset : all) {
    text += fmt::format("{:<{}}  {:<10}{:>20}  {}\n", preset.name, width, preset.model_type,
                        with_commas(preset.parameters), preset.source);
  }
  return text;
}

std::string gpus_text(const ListOptions&) { return {}; }

}  // namespace shardplan::memcalc
