#include "planner/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr std::uint32_t kEmbeddings = 0;
constexpr std::uint32_t kRest = 2;
constexpr std::uint32_t kSharedTower = 0;  // before every tower with a name

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

std::vector<std::string_view> components(std::string_view name) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    parts.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool has_component(std::string_view name, std::string_view wanted) {
  const auto parts = components(name);
  return std::find(parts.begin(), parts.end(), wanted) != parts.end();
}

// `below_tower` is the name without the tower's.
bool says_embedding(std::string_view name, std::string_view below_tower) {
  if (contains(name, "embed_out") || contains(name, "unembed")) return false;
  if (contains(name, "embed")) return true;
  for (const std::string_view part : components(name)) {
    for (const std::string_view word :
         {"wte", "wpe", "shared", "cls_token", "project_in", "conv_in", "pre_layrnorm", "layernorm_pre"}) {
      if (part == word) return true;
    }
  }
  // The convolutions that turn sound into tokens (Whisper).
  if (below_tower.starts_with("encoder.")) below_tower.remove_prefix(8);
  return below_tower.starts_with("conv1.") || below_tower.starts_with("conv2.");
}

bool says_projector(std::string_view name) {
  return contains(name, "projector") || contains(name, "connector");
}

// Towers feed what follows them.
std::size_t rank_of(std::string_view prefix) {
  for (const std::string_view tower : {"vision", "visual", "audio", "vae"}) {
    if (contains(prefix, tower)) return 0;
  }
  if (contains(prefix, "encoder")) return 1;
  return contains(prefix, "decoder") ? 3 : 2;
}

// "model.vision_tower" of "model.vision_tower.encoder.layers" beside "model.language_model.layers".
std::string tower_beside(std::string_view prefix, std::string_view main) {
  const auto parts = components(prefix);
  const auto other = components(main);
  std::size_t common = 0;
  while (common < parts.size() && common < other.size() && parts[common] == other[common]) ++common;
  std::string tower;
  for (std::size_t i = 0; i <= std::min(common, parts.size() - 1); ++i) {
    tower += fmt::format("{}{}", i == 0 ? "" : ".", parts[i]);
  }
  return tower;
}

bool is_below(std::string_view name, std::string_view tower) {
  return name.starts_with(tower) && name.size() > tower.size() && name[tower.size()] == '.';
}

}  // namespace

std::set<std::string, std::less<>> stacks_in(const std::vector<std::string_view>& names) {
  std::set<std::string, std::less<>> stacks;
  for (const std::string_view name : names) {
    const auto block = split(name, [](const NumberedName& candidate) { return contains(candidate.rest, "."); });
    if (block) stacks.emplace(block->prefix);
  }
  return stacks;
}

UnitNames::UnitNames(const std::set<std::string, std::less<>>& stacks) : stacks_(stacks.begin(), stacks.end()) {
  std::stable_sort(stacks_.begin(), stacks_.end(),
                   [](const std::string& a, const std::string& b) { return rank_of(a) < rank_of(b); });
  towers_.emplace_back(kSharedUnit);
  for (std::size_t i = 0; i + 1 < stacks_.size(); ++i) {
    std::string tower = tower_beside(stacks_[i], stacks_.back());
    const auto known = std::find(towers_.begin() + 1, towers_.end(), tower);
    tower_of_stack_.push_back(static_cast<std::uint32_t>(known - towers_.begin()));
    if (known == towers_.end()) towers_.push_back(std::move(tower));
  }
  towers_.emplace_back();
  tower_of_stack_.push_back(static_cast<std::uint32_t>(towers_.size() - 1));
}

std::uint32_t UnitNames::tower_of(std::string_view name) const {
  for (std::size_t i = 1; i + 1 < towers_.size(); ++i) {
    if (is_below(name, towers_[i])) return static_cast<std::uint32_t>(i);
  }
  return static_cast<std::uint32_t>(towers_.size() - 1);
}

NumberedName UnitNames::in_stack(std::string_view name) const {
  const auto block = split(name, [&](const NumberedName& candidate) {
    return std::find(stacks_.begin(), stacks_.end(), candidate.prefix) != stacks_.end();
  });
  SHARDPLAN_CHECK(block.has_value(), "a name outside all stacks");
  return *block;
}

UnitNames::Place UnitNames::block(std::string_view stack, std::uint64_t number) const {
  const auto found = std::find(stacks_.begin(), stacks_.end(), stack);
  SHARDPLAN_CHECK(found != stacks_.end(), "an unknown stack");
  const auto index = static_cast<std::uint32_t>(found - stacks_.begin());
  return {.tower = tower_of_stack_[index], .section = Place::kBlocks, .stack = index, .number = number};
}

UnitNames::Place UnitNames::place(std::string_view name, std::string_view tied_to) const {
  const auto numbered = split(name, [&](const NumberedName& candidate) {
    return std::find(stacks_.begin(), stacks_.end(), candidate.prefix) != stacks_.end();
  });
  if (numbered) return block(numbered->prefix, numbered->number);

  const auto main = static_cast<std::uint32_t>(towers_.size() - 1);
  const bool has_towers = main > 1;
  const std::uint32_t tower = tower_of(name);
  const std::string_view below = tower == main ? name : name.substr(towers_[tower].size() + 1);
  if (!says_embedding(name, below)) {
    return {.tower = has_towers && tower == main && says_projector(name) ? main - 1 : tower, .section = kRest};
  }
  if (!tied_to.empty()) return place(tied_to);
  const bool shared = has_towers && tower == main && has_component(name, "shared");
  return {.tower = shared ? kSharedTower : tower, .section = kEmbeddings};
}

std::string UnitNames::name(const Place& place) const {
  const std::string& tower = towers_[place.tower];
  const char* section = place.section == kEmbeddings ? kEmbeddingUnit : kHeadUnit;
  if (place.tower == kSharedTower) return kSharedUnit;
  return tower.empty() ? section : fmt::format("{}.{}", tower, section);
}

}  // namespace shardplan
