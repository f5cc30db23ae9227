#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>

#include "base/text.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/presets.h"
#include "tools/memcalc/output.h"

namespace shardplan::memcalc {

namespace json = boost::json;

namespace {

template <typename T>
json::value number(const std::optional<T>& value) {
  return value ? json::value(*value) : json::value();
}

// "3.35 TB/s", "989 TFLOP/s"; nothing where it is not known.
std::string in_tera(const std::optional<std::uint64_t>& value, int places) {
  return value ? fmt::format("{:.{}f}", static_cast<double>(*value) / 1e12, places) : "";
}

json::object gpu_json(const Gpu& gpu) {
  return {{"name", gpu.name},
          {"aliases", json::array(gpu.aliases.begin(), gpu.aliases.end())},
          {"vendor", gpu.vendor},
          {"memory_bytes", gpu.memory.count()},
          {"capacity_bytes", gpu.capacity().count()},
          {"capacity_is_visible_memory", gpu.visible_memory.has_value()},
          {"bandwidth_bytes_per_second", number(gpu.bandwidth_bytes_per_second)},
          {"bf16_flops", number(gpu.bf16_flops)},
          {"fp16_flops", number(gpu.fp16_flops)},
          {"fp32_flops", number(gpu.fp32_flops)},
          {"link_bytes_per_second", number(gpu.link_bytes_per_second)},
          {"pcie_generation", number(gpu.pcie_generation)},
          {"source", gpu.source},
          {"note", gpu.note}};
}

}  // namespace

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
  std::size_t family_width = 6;
  for (const Preset& preset : all) {
    width = std::max(width, preset.name.size());
    family_width = std::max(family_width, preset.model_type.size());
  }
  text = fmt::format("{:<{}}  {:<{}}{:>20}  {}\n", "name", width, "family", family_width, "parameters", "figures from");
  for (const Preset& preset : all) {
    text += fmt::format("{:<{}}  {:<{}}{:>20}  {}\n", preset.name, width, preset.model_type, family_width,
                        with_commas(preset.parameters), preset.source);
  }
  return text;
}

std::string gpus_text(const ListOptions& options) {
  const std::vector<Gpu> table = gpu_table(options.gpu_files);
  std::string text;
  if (options.names) {
    for (const Gpu& gpu : table) text += gpu.name + "\n";
    return text;
  }
  if (options.json) {
    json::array rows;
    for (const Gpu& gpu : table) rows.push_back(gpu_json(gpu));
    return json::serialize(json::object{{"schema", "memcalc.gpus/1"}, {"gpus", std::move(rows)}}) + "\n";
  }
  std::size_t width = 4;
  for (const Gpu& gpu : table) width = std::max(width, gpu.name.size());
  text = fmt::format("{:<{}}  {:<7}{:>11}{:>12}{:>8}{:>14}  {}\n", "name", width, "vendor", "memory", "", "TB/s",
                     "bf16 TFLOP/s", "also called");
  for (const Gpu& gpu : table) {
    text += fmt::format("{:<{}}  {:<7}{:>11}{:>12}{:>8}{:>14}  {}\n", gpu.name, width, gpu.vendor,
                        in_gb(gpu.capacity()), in_gib(gpu.capacity()), in_tera(gpu.bandwidth_bytes_per_second, 2),
                        in_tera(gpu.bf16_flops, 0), fmt::join(gpu.aliases, ", "));
  }
  return text +
         "\nMemory is what the driver shows where that is known, else what is sold. --json has more, with sources.\n";
}

}  // namespace shardplan::memcalc
