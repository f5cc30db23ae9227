#include "planner/formats/ds_config_section.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/text.h"
#include "planner/formats/decimal.h"
#include "planner/formats/near_names.h"

namespace shardplan {
namespace {

bool is_known(std::string_view key, std::span<const std::string_view> known) {
  return std::find(known.begin(), known.end(), key) != known.end();
}

std::string nearest(std::string_view key, std::span<const std::string_view> known) {
  return near_names(key, {known.begin(), known.end()}, 1).front();
}

bool as_flag(JsonView value) {
  if (value.is_string()) {
    for (const char* word : {"true", "yes", "on", "1"}) {
      if (equal_in_any_case(value.as_string(), word)) return true;
    }
    for (const char* word : {"false", "no", "off", "0"}) {
      if (equal_in_any_case(value.as_string(), word)) return false;
    }
  }
  if (value.is_number()) {
    if (value.as_number() == 0) return false;
    if (value.as_number() == 1) return true;
  }
  return value.as_bool();
}

std::uint64_t as_count(JsonView value) {
  if (value.is_string()) {
    const bool digits = value.as_string().find_first_not_of("0123456789") == std::string_view::npos;
    const auto count = exact_integer(value.as_string());
    if (digits && count) return *count;
    value.fail_expected("a non-negative integer");
  }
  return value.as_count();
}

}  // namespace

DsSection::DsSection(JsonView object) : object_(object), path_(object.path()) {
  if (object.exists() && !object.is_object()) object.fail_expected("an object");
}

void DsSection::refuse_unknown(std::span<const std::string_view> known) const {
  if (!object_.exists()) return;
  for (const JsonView member : object_.members()) {
    if (is_known(member.key(), known)) continue;
    member.fail(fmt::format("is not a key that DeepSpeed knows here: did you mean {}?", nearest(member.key(), known)));
  }
}

void DsSection::note_unknown(std::span<const std::string_view> known, std::vector<std::string>& notes) const {
  if (!object_.exists()) return;
  for (const JsonView member : object_.members()) {
    if (is_known(member.key(), known)) continue;
    const std::string near = nearest(member.key(), known);
    // Two slips at most: further away it is somebody else's key.
    const std::string hint = edit_distance(member.key(), near) <= 2 ? fmt::format("; did you mean {}?", near) : "";
    notes.push_back(fmt::format("{}: {} is not a key that DeepSpeed knows{}", object_.source(), member.path(), hint));
  }
}

std::optional<JsonView> DsSection::view(std::string_view key) const {
  if (!object_.exists()) return std::nullopt;
  const JsonView member = object_[key];
  if (!member.exists() || (member.is_string() && member.as_string() == "auto")) return std::nullopt;
  return member;
}

bool DsSection::is_auto(std::string_view key) const {
  return object_.exists() && object_[key].exists() && !says(key);
}

JsonView DsSection::value(std::string_view key) const {
  const auto member = view(key);
  if (member) return *member;
  return object_.exists() && object_[key].exists() ? object_[key].absent() : object_.exists() ? object_[key] : object_;
}

DsSection DsSection::section(std::string_view key) const {
  const JsonView member = value(key);
  return DsSection(member.is_null() ? member.absent() : member);
}

std::string DsSection::path(std::string_view key) const {
  return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

bool DsSection::flag(std::string_view key, bool absent) const {
  const auto member = view(key);
  return member ? as_flag(*member) : absent;
}

std::optional<bool> DsSection::flag_or_null(std::string_view key) const {
  const auto member = view(key);
  if (!member || member->is_null()) return std::nullopt;
  return as_flag(*member);
}

std::uint64_t DsSection::count(std::string_view key, std::uint64_t absent) const {
  const auto member = view(key);
  return member ? as_count(*member) : absent;
}

std::int64_t DsSection::integer(std::string_view key, std::int64_t absent) const {
  const auto member = view(key);
  if (!member) return absent;
  if (member->is_minus_one()) return -1;
  constexpr std::uint64_t kLargest = std::numeric_limits<std::int64_t>::max();
  return static_cast<std::int64_t>(member->as_count(kLargest));
}

double DsSection::part(std::string_view key, double absent) const {
  const auto member = view(key);
  if (!member) return absent;
  const double value = member->as_number();
  if (!(value >= 0 && value <= 1)) member->fail_expected("a number from 0 to 1");
  return value;
}

std::string DsSection::text(std::string_view key) const {
  const auto member = view(key);
  return member && !member->is_null() ? std::string(member->as_string()) : std::string();
}

void DsSection::fail(std::string_view key, const std::string& problem) const {
  throw ConfigError(object_.source(), path(key), problem);
}

}  // namespace shardplan
