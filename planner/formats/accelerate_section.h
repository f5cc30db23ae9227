// A map of accelerate's YAML, whose keys may have the map's prefix ("fsdp_") or lack it; numbers and truth values may be
// text, as accelerate itself writes some of them. Null is absent.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/formats/json.h"
#include "planner/formats/training_config.h"

namespace shardplan {

class AccelerateSection {
 public:
  static constexpr std::uint64_t kMostRanks = 1'000'000;

  // An absent map, or null, is an empty one. Throws ConfigError where it is another thing.
  AccelerateSection(JsonView value, std::string_view prefix);

  // Each key that is none of `known` is a note that names the nearest.
  void note_unknown(std::span<const std::string_view> known, std::vector<std::string>& notes) const;

  std::optional<JsonView> find(std::string_view key) const;
  // All throw ConfigError, with file and key, for a value of another type.
  Saying<std::uint64_t> count(std::string_view key, std::uint64_t least = 1) const;
  Saying<bool> flag(std::string_view key) const;
  bool is_set(std::string_view key) const;
  // One of the words, in any case; in small letters.
  Saying<std::string> word(std::string_view key, std::initializer_list<std::string_view> words) const;
  Saying<std::string> text(std::string_view key) const;
  // Of a member, for errors and for Said::key.
  std::string path(std::string_view key) const;

 private:
  bool names(std::string_view found, std::string_view key) const;

  JsonView value_;
  std::string prefix_;
};

std::string nearest_name(std::string_view key, std::span<const std::string_view> known);

}  // namespace shardplan
