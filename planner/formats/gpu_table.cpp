#include "planner/formats/gpu_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "planner/formats/file.h"
#include "planner/formats/json.h"
#include "planner/formats/near_names.h"

namespace shardplan {
namespace data {
extern const std::string_view kGpus;
}
namespace {

constexpr std::array<std::string_view, 13> kKeys{
    "name",       "aliases",    "vendor",     "memory_bytes",          "capacity_bytes",  "bandwidth_bytes_per_second",
    "bf16_flops", "fp16_flops", "fp32_flops", "link_bytes_per_second", "pcie_generation", "source",
    "note"};

std::optional<std::uint64_t> positive_if_known(JsonView value) {
  if (!value.exists() || value.is_null()) return std::nullopt;
  return value.as_positive();
}

std::string text_if_known(JsonView value) {
  return !value.exists() || value.is_null() ? std::string() : std::string(value.as_string());
}

Gpu read_gpu(JsonView row) {
  for (const JsonView member : row.members()) {
    if (std::find(kKeys.begin(), kKeys.end(), member.key()) != kKeys.end()) continue;
    member.fail(fmt::format("is no key of a GPU: expected one of {}", fmt::join(kKeys, ", ")));
  }
  Gpu gpu;
  gpu.name = std::string(row["name"].as_string());
  if (gpu.name.empty()) row["name"].fail("expected a name, found an empty one");
  if (const JsonView aliases = row["aliases"]; aliases.exists() && !aliases.is_null()) {
    for (const JsonView alias : aliases.elements()) gpu.aliases.emplace_back(alias.as_string());
  }
  gpu.vendor = text_if_known(row["vendor"]);
  gpu.memory = Bytes{row["memory_bytes"].as_positive()};
  if (const auto visible = positive_if_known(row["capacity_bytes"])) gpu.visible_memory = Bytes{*visible};
  gpu.bandwidth_bytes_per_second = positive_if_known(row["bandwidth_bytes_per_second"]);
  gpu.bf16_flops = positive_if_known(row["bf16_flops"]);
  gpu.fp16_flops = positive_if_known(row["fp16_flops"]);
  gpu.fp32_flops = positive_if_known(row["fp32_flops"]);
  gpu.link_bytes_per_second = positive_if_known(row["link_bytes_per_second"]);
  gpu.pcie_generation = positive_if_known(row["pcie_generation"]);
  gpu.source = text_if_known(row["source"]);
  gpu.note = text_if_known(row["note"]);
  return gpu;
}

bool is_called(const Gpu& gpu, std::string_view name) {
  return equal_in_any_case(gpu.name, name) ||
         std::any_of(gpu.aliases.begin(), gpu.aliases.end(),
                     [&](const std::string& alias) { return equal_in_any_case(alias, name); });
}

}  // namespace

std::vector<Gpu> parse_gpu_table(std::string_view text, const std::string& source) {
  const JsonDocument document(text, source);
  const JsonView schema = document.root()["schema"];
  if (schema.as_string() != "shardplan.gpus/1") schema.fail_expected("\"shardplan.gpus/1\"");
  std::vector<Gpu> table;
  for (const JsonView row : document.root()["gpus"].elements()) {
    Gpu gpu = read_gpu(row);
    for (const Gpu& other : table) {
      for (const std::string& name : gpu.aliases) {
        if (is_called(other, name))
          row["aliases"].fail(fmt::format("'{}' is the name of {} already", name, other.name));
      }
      if (is_called(other, gpu.name))
        row["name"].fail(fmt::format("'{}' is the name of {} already", gpu.name, other.name));
    }
    table.push_back(std::move(gpu));
  }
  return table;
}

std::vector<Gpu> gpu_table(const std::vector<std::string>& files) {
  std::vector<Gpu> table = parse_gpu_table(data::kGpus, "gpus.json");
  for (const std::string& file : files) {
    for (Gpu& gpu : parse_gpu_table(read_text(file), file)) {
      std::erase_if(table, [&](const Gpu& known) { return equal_in_any_case(known.name, gpu.name); });
      // The user's names win over the aliases of known rows.
      for (Gpu& known : table) {
        std::erase_if(known.aliases, [&](const std::string& alias) { return is_called(gpu, alias); });
      }
      table.push_back(std::move(gpu));
    }
  }
  return table;
}

const Gpu& find_gpu(const std::vector<Gpu>& table, std::string_view name) {
  // From the end: a user's alias wins over the name of a row before it.
  const auto found = std::find_if(table.rbegin(), table.rend(), [&](const Gpu& gpu) { return is_called(gpu, name); });
  if (found != table.rend()) return *found;
  std::vector<std::string> names;
  for (const Gpu& gpu : table) {
    names.push_back(gpu.name);
    names.insert(names.end(), gpu.aliases.begin(), gpu.aliases.end());
  }
  throw ConfigError("--gpu", "",
                    fmt::format("'{}' is no known GPU: the nearest are {}; a size such as 80GiB works too", name,
                                fmt::join(near_names(name, names), ", ")));
}

}  // namespace shardplan
