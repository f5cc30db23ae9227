#include "planner/formats/tensor_list.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "planner/formats/countable.h"
#include "planner/formats/decimal.h"
#include "planner/formats/tensor_units.h"

namespace shardplan {
namespace {

struct Listed {
  Tensor tensor;
  std::string unit;  // empty if not given
};

void require_known_keys(JsonView object, std::initializer_list<std::string_view> known) {
  for (const JsonView member : object.members()) {
    if (std::find(known.begin(), known.end(), member.key()) == known.end()) {
      member.fail(fmt::format("is not a key of {}; here it has {}", kTensorListSchema, fmt::join(known, ", ")));
    }
  }
}

std::string nonempty_string(JsonView value) {
  const std::string_view text = value.as_string();
  if (text.empty()) value.fail("expected a string that is not empty");
  return std::string(text);
}

Listed parse_tensor(JsonView entry) {
  require_known_keys(entry, {"name", "shape", "dtype", "trainable", "tied_to", "unit"});
  Listed listed;
  listed.tensor.name = nonempty_string(entry["name"]);
  for (const JsonView dim : entry["shape"].elements()) listed.tensor.shape.push_back(dim.as_count());
  if (const JsonView dtype = entry["dtype"]; dtype.exists()) {
    listed.tensor.dtype = parse_dtype(dtype.as_string());
    if (!listed.tensor.dtype) dtype.fail_expected(R"(a dtype, such as "bf16" or "u8")");
  }
  const bool has_gradients = !listed.tensor.dtype || is_trainable_dtype(*listed.tensor.dtype);
  const JsonView trainable = entry["trainable"];
  listed.tensor.trainable = trainable.as_bool_or(has_gradients);
  if (listed.tensor.trainable && !has_gradients) {
    trainable.fail(fmt::format("expected false: {} has no gradients", name(*listed.tensor.dtype)));
  }
  if (entry["tied_to"].exists()) listed.tensor.tied_to = nonempty_string(entry["tied_to"]);
  if (entry["unit"].exists()) listed.unit = nonempty_string(entry["unit"]);
  return listed;
}

// Of "<prefix>.<number>".
struct BlockName {
  std::string prefix;
  std::uint64_t number = 0;
};

std::optional<BlockName> block_name(const std::string& unit) {
  const std::size_t dot = unit.rfind('.');
  if (dot == std::string::npos || dot == 0) return std::nullopt;
  const std::string_view digits = std::string_view(unit).substr(dot + 1);
  const bool plain = digits.size() <= 9 && digits.find_first_not_of("0123456789") == std::string_view::npos &&
                     (digits == "0" || !digits.starts_with('0'));
  const auto number = plain ? exact_integer(digits) : std::nullopt;
  return number ? std::optional(BlockName{unit.substr(0, dot), *number}) : std::nullopt;
}

// The units as the list gives them.
Catalog catalog_in_units(const std::string& source, std::vector<Listed> listed) {
  CatalogBuilder builder(source, "tensors");
  std::set<std::string> units;
  for (std::size_t first = 0, last = 0; first < listed.size(); first = last) {
    const std::string unit = listed[first].unit;
    while (last < listed.size() && listed[last].unit == unit) ++last;
    if (!units.insert(unit).second) {
      throw ConfigError(source, listed[first].tensor.name,
                        fmt::format("unit '{}' was left before: the tensors of a unit follow each other", unit));
    }
    const std::string below = unit + ".";
    const bool inside = std::all_of(
        listed.begin() + static_cast<std::ptrdiff_t>(first), listed.begin() + static_cast<std::ptrdiff_t>(last),
        [&](const Listed& l) { return l.tensor.name.starts_with(below) && l.tensor.name != below; });
    const auto block = inside ? block_name(unit) : std::nullopt;
    if (block) {
      builder.begin_unit(block->prefix, block->number);
    } else {
      builder.begin_unit(unit);
    }
    for (std::size_t i = first; i < last; ++i) {
      if (block) listed[i].tensor.name.erase(0, below.size());
      builder.add(std::move(listed[i].tensor));
    }
  }
  return builder.finish();
}

}  // namespace

Model model_from_tensor_list(JsonView root) {
  require_known_keys(root, {"schema", "name", "tensors"});
  const JsonView schema = root["schema"];
  if (!schema.is_string() || schema.as_string() != kTensorListSchema) {
    schema.fail_expected(fmt::format(R"("{}")", kTensorListSchema));
  }
  std::vector<Listed> listed;
  for (const JsonView entry : root["tensors"].elements()) listed.push_back(parse_tensor(entry));
  if (listed.empty()) root["tensors"].fail("expected at least one tensor");

  const std::string& source = root.source();
  std::vector<Tensor> tensors;
  std::size_t with_unit = 0;
  for (const Listed& one : listed) {
    tensors.push_back(one.tensor);
    if (!one.unit.empty()) ++with_unit;
  }
  require_distinct_names(source, tensors);
  if (with_unit != 0 && with_unit != listed.size()) {
    const auto without = std::find_if(listed.begin(), listed.end(), [](const Listed& one) { return one.unit.empty(); });
    throw ConfigError(source, without->tensor.name, "has no unit, but others have: give all tensors one, or none");
  }

  Model model;
  model.catalog =
      with_unit > 0 ? catalog_in_units(source, std::move(listed)) : catalog_from_tensors(source, std::move(tensors));
  require_countable(model.catalog, source);
  unit_ties(model.catalog);  // throws for ties that cannot be
  if (root["name"].exists()) model.catalog.name = nonempty_string(root["name"]);
  return model;
}

Model model_from_tensor_list(std::string_view text, const std::string& source) {
  const JsonDocument document(text, source);
  return model_from_tensor_list(document.root());
}

}  // namespace shardplan
