// Reading YAML that other people wrote: as JSON values (planner/formats/json.h), so that whatever is wrong with one is
// the same error in both.
//
// What is read: one document of maps, lists and scalars, in block or flow style. A plain scalar is null (empty, ~, null),
// true or false, a number, or else text; quoted ones are text. The words are those of YAML 1.2's core schema in any of its
// three cases, and yes, no, on and off, which PyYAML reads as truth values. 1e-4 and 5e8 are numbers, though PyYAML takes
// them for text. Numbers in other bases, with underscores, and integers that begin with 0 are text: readers do not agree
// on them.
//
// What is refused, with line and column: anchors, aliases and merge keys (what they expand to is not what a person sees),
// tags, a second document, a key twice, keys that are no scalars, more than 64 levels, more than 1 MiB.
//
// Only yaml.cpp knows the library (yaml-cpp).
#pragma once

#include <string>
#include <string_view>

#include "planner/formats/json.h"

namespace shardplan {

// `source` names the text in errors. An empty document is null. Throws ConfigError.
JsonDocument json_from_yaml(std::string_view text, std::string source);

// Text whose first character that is no space is { is JSON, any other is YAML.
JsonDocument json_from_json_or_yaml(std::string_view text, std::string source);

// A scalar as YAML that reads back as the same text: quoted where it would be read as something else.
std::string yaml_scalar(std::string_view text);

}  // namespace shardplan
