#include "planner/formats/tensor_units.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "planner/formats/countable.h"
#include "planner/units.h"

namespace shardplan {

void require_distinct_names(const std::string& source, const std::vector<Tensor>& tensors) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const Tensor& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  if (!names.empty() && names.front().empty()) throw ConfigError(source, "", "a tensor has an empty name");
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) throw ConfigError(source, std::string(*twice), "a tensor of this name comes twice");
}

Catalog catalog_from_tensors(const std::string& source, std::vector<Tensor> tensors) {
  require_distinct_names(source, tensors);
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const Tensor& tensor : tensors) names.push_back(tensor.name);
  const UnitNames units(stacks_in(names));

  std::vector<std::pair<UnitNames::Place, std::size_t>> order;
  order.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) order.emplace_back(units.place(names[i], tensors[i].tied_to), i);
  std::sort(order.begin(), order.end());

  CatalogBuilder builder(source, "tensors");
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto& [place, index] = order[i];
    Tensor& tensor = tensors[index];
    const bool first = i == 0 || place != order[i - 1].first;
    if (place.in_block()) {
      const NumberedName name = units.in_stack(tensor.name);
      if (first) builder.begin_unit(std::string(name.prefix), name.number);
      tensor.name = std::string(name.rest);
    } else if (first) {
      builder.begin_unit(units.name(place));
    }
    builder.add(std::move(tensor));
  }
  Catalog catalog = builder.finish();
  require_countable(catalog, source);
  return catalog;
}

}  // namespace shardplan
