// An object of ds_config.json, read as DeepSpeed's pydantic models do (runtime/config_utils.py, DeepSpeedConfigModel):
// "auto" is an absent key, integers may be 5e8 or "500000000", flags may be 0, 1 or "true".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/formats/json.h"

namespace shardplan {

class DsSection {
 public:
  // An absent object is an empty one. Throws ConfigError where it is another thing.
  explicit DsSection(JsonView object);

  // Each key that is none of `known` is an error that names the nearest.
  void refuse_unknown(std::span<const std::string_view> known) const;
  // Each key that is none of `known` is a note.
  void note_unknown(std::span<const std::string_view> known, std::vector<std::string>& notes) const;

  // Whether the key is there and not "auto".
  bool says(std::string_view key) const { return view(key).has_value(); }
  bool is_auto(std::string_view key) const;
  // Its value, or a view that does not exist; "auto" is absent.
  JsonView value(std::string_view key) const;
  DsSection section(std::string_view key) const;
  // Path of a member, for errors and for Said::key: "zero_optimization.stage".
  std::string path(std::string_view key) const;

  bool flag(std::string_view key, bool absent) const;
  std::optional<bool> flag_or_null(std::string_view key) const;
  std::uint64_t count(std::string_view key, std::uint64_t absent) const;
  std::int64_t integer(std::string_view key, std::int64_t absent) const;
  double part(std::string_view key, double absent) const;  // 0 to 1
  std::string text(std::string_view key) const;            // empty: absent or null

  [[noreturn]] void fail(std::string_view key, const std::string& problem) const;

 private:
  std::optional<JsonView> view(std::string_view key) const;

  JsonView object_;
  std::string path_;
};

}  // namespace shardplan
