#include "planner/formats/tensor_units.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "planner/families/model.h"
#include "planner/formats/countable.h"

namespace shardplan {
namespace {

struct NumberedName {
  std::string_view prefix;
  std::uint64_t number = 0;
  std::string_view rest;
};

// Without leading zeros, which the unit's name could not give back; nine digits are more than any model has blocks.
std::optional<std::uint64_t> block_number(std::string_view component) {
  constexpr std::size_t longest = 9;
  if (component.empty() || component.size() > longest || (component.size() > 1 && component[0] == '0')) return {};
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(component.data(), component.data() + component.size(), number);
  if (error != std::errc{} || end != component.data() + component.size()) return {};
  return number;
}

// The outermost split at a number that is accepted.
template <typename Accepts>
std::optional<NumberedName> split(std::string_view name, Accepts accepts) {
  for (std::size_t dot = name.find('.'); dot != std::string_view::npos;) {
    const std::size_t next = name.find('.', dot + 1);
    if (next == std::string_view::npos) break;
    if (const auto number = block_number(name.substr(dot + 1, next - dot - 1)); number && dot > 0) {
      const NumberedName candidate{name.substr(0, dot), *number, name.substr(next + 1)};
      if (!candidate.rest.empty() && accepts(candidate)) return candidate;
    }
    dot = next;
  }
  return std::nullopt;
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool says_embedding(std::string_view name) {
  if (contains(name, "embed_out") || contains(name, "unembed")) return false;
  if (contains(name, "embed")) return true;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    if (part == "wte" || part == "wpe" || part == "shared" || part == "cls_token") return true;
    begin = end + 1;
  }
  return false;
}

// Towers feed what follows them.
std::size_t rank_of(std::string_view prefix) {
  for (const std::string_view tower : {"encoder", "vision", "visual", "audio"}) {
    if (contains(prefix, tower)) return 0;
  }
  return contains(prefix, "decoder") ? 2 : 1;
}

// Where a tensor belongs; compared in this order.
struct Place {
  enum class Part : std::uint8_t { embedding, block, head };
  Part part = Part::head;
  std::size_t rank = 0;   // of the prefix
  std::size_t order = 0;  // of the prefix: first appearance
  std::uint64_t number = 0;
  std::size_t index = 0;  // of the tensor
  std::string_view prefix{};
  std::string_view rest{};

  auto key() const { return std::tuple(part, rank, order, number, index); }
  bool same_unit(const Place& other) const {
    return std::tuple(part, order, number) == std::tuple(other.part, other.order, other.number);
  }
};

std::vector<Place> places_of(const std::vector<Tensor>& tensors) {
  std::unordered_map<std::string_view, std::size_t> prefixes;  // and the order of their first appearance
  for (const Tensor& tensor : tensors) {
    const auto block = split(tensor.name, [](const NumberedName& name) { return contains(name.rest, "."); });
    if (block) prefixes.emplace(block->prefix, prefixes.size());
  }
  std::vector<Place> places;
  places.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    Place& place = places.emplace_back();
    place.index = places.size() - 1;
    const auto block = split(tensor.name, [&](const NumberedName& name) { return prefixes.contains(name.prefix); });
    if (block) {
      place.part = Place::Part::block;
      place.rank = rank_of(block->prefix);
      place.order = prefixes.at(block->prefix);
      place.number = block->number;
      place.prefix = block->prefix;
      place.rest = block->rest;
    } else if (says_embedding(tensor.name)) {
      place.part = Place::Part::embedding;
    }
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.key() < b.key(); });
  return places;
}

}  // namespace

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
  CatalogBuilder builder(source, "tensors");
  const std::vector<Place> places = places_of(tensors);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Place& place = places[i];
    if (i == 0 || !place.same_unit(places[i - 1])) {
      if (place.part == Place::Part::block) {
        builder.begin_unit(std::string(place.prefix), place.number);
      } else {
        builder.begin_unit(place.part == Place::Part::embedding ? kEmbeddingUnit : kHeadUnit);
      }
    }
    // Names are views into `tensors` until the end, so they are copied, not moved.
    Tensor tensor = tensors[place.index];
    if (place.part == Place::Part::block) tensor.name = std::string(place.rest);
    builder.add(std::move(tensor));
  }
  Catalog catalog = builder.finish();
  require_countable(catalog, source);
  return catalog;
}

}  // namespace shardplan
