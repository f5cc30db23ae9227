// A config.json with a few keys changed.
#pragma once

#include <fmt/format.h>

#include <map>
#include <string>

namespace shardplan::test_support {

using Keys = std::map<std::string, std::string>;  // key -> JSON text; empty text leaves the key out

inline std::string config_text(Keys keys, const Keys& changes) {
  for (const auto& [key, value] : changes) keys[key] = value;
  std::string text;
  for (const auto& [key, value] : keys) {
    if (!value.empty()) text += fmt::format("{}\"{}\": {}", text.empty() ? "{" : ", ", key, value);
  }
  return text + "}";
}

}  // namespace shardplan::test_support
