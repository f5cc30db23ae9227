#include "shard/parameter_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/glob.h"

namespace shardplan {
namespace {

std::uint32_t group_of(const std::string& tensor, std::uint64_t ordinal, const ZeroOptions& options) {
  if (!options.group_of_tensor.empty()) {
    const std::uint32_t group = options.group_of_tensor[ordinal];
    if (group < options.groups.size()) return group;
    throw ConfigError("parameter groups", tensor, fmt::format("is of group {} of {}", group, options.groups.size()));
  }
  for (std::size_t i = 0; i < options.groups.size(); ++i) {
    if (glob_matches(options.groups[i].match, tensor)) return static_cast<std::uint32_t>(i);
  }
  throw ConfigError("parameter groups", tensor,
                    "belongs to no group: expected one whose glob matches it, as \"*\" does");
}

}  // namespace

ParameterIndex::ParameterIndex(const Catalog& catalog, const StepPlan& plan, const ZeroOptions& options) {
  const std::size_t tensors = tensor_count(catalog);
  if (!options.group_of_tensor.empty() && options.group_of_tensor.size() != tensors) {
    throw ConfigError("parameter groups", "",
                      fmt::format("{} tensors have one: expected {}", options.group_of_tensor.size(), tensors));
  }
  std::unordered_map<std::string, std::size_t> by_name;
  is_owner_.assign(plan.layout.units, false);
  places_.reserve(tensors);
  first_.reserve(plan.layout.units + 1);
  std::uint64_t unit = 0;
  for (std::size_t r = 0; r < catalog.runs.size(); ++r) {
    const UnitRun& run = catalog.runs[r];
    for (std::uint64_t i = 0; i < run.count; ++i, ++unit) {
      first_.push_back(places_.size());
      places_.resize(places_.size() + run.tensors.size());
      const std::span<TensorPlace> unit_places = std::span(places_).subspan(first_.back());
      const std::vector<BufferLayout>& buffers = plan.layout.runs[r].unit.buffers;
      for (std::size_t b = 0; b < buffers.size(); ++b) {
        for (const TensorSlot& slot : buffers[b].tensors) {
          unit_places[slot.tensor] = {.unit = unit, .buffer = static_cast<std::uint32_t>(b), .range = slot.range};
        }
      }
      for (std::size_t t = 0; t < run.tensors.size(); ++t) {
        const Tensor& tensor = run.tensors[t];
        const std::string name = tensor_name(run, i, tensor);
        if (tensor.tied_to.empty()) {
          by_name.emplace(name, first_.back() + t);
          unit_places[t].ordinal = first_.back() + t;
          unit_places[t].group = group_of(name, first_.back() + t, options);
        } else {
          unit_places[t] = places_[by_name.at(tensor.tied_to)];  // it comes earlier: unit_ties has checked it
          unit_places[t].tied = true;
          if (unit_places[t].unit != unit) is_owner_[unit_places[t].unit] = true;
        }
      }
    }
  }
  first_.push_back(places_.size());
}

std::span<const TensorPlace> ParameterIndex::tensors(std::uint64_t unit) const {
  return std::span(places_).subspan(first_[unit], first_[unit + 1] - first_[unit]);
}

std::size_t ParameterIndex::most_tensors() const {
  std::size_t most = 0;
  for (std::size_t unit = 0; unit + 1 < first_.size(); ++unit) most = std::max(most, first_[unit + 1] - first_[unit]);
  return most;
}

}  // namespace shardplan
