#include "planner/formats/accelerate_section.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/text.h"
#include "planner/formats/near_names.h"

namespace shardplan {

std::string nearest_name(std::string_view key, std::span<const std::string_view> known) {
  return near_names(key, std::vector<std::string>(known.begin(), known.end()), 1).front();
}

AccelerateSection::AccelerateSection(JsonView value, std::string_view prefix) : value_(value), prefix_(prefix) {
  if (value.exists() && !value.is_null() && !value.is_object()) value.fail_expected("a map");
}

bool AccelerateSection::names(std::string_view found, std::string_view key) const {
  if (found == key) return true;
  return (found.starts_with(prefix_) && found.substr(prefix_.size()) == key) ||
         (key.starts_with(prefix_) && key.substr(prefix_.size()) == found);
}

void AccelerateSection::note_unknown(std::span<const std::string_view> known, std::vector<std::string>& notes) const {
  if (!value_.is_object()) return;
  for (const JsonView member : value_.members()) {
    const std::string_view key = member.key();
    if (std::any_of(known.begin(), known.end(), [&](std::string_view name) { return names(key, name); })) continue;
    notes.push_back(
        fmt::format("{} is not known and not used: the nearest is {}", member.path(), nearest_name(key, known)));
  }
}

std::optional<JsonView> AccelerateSection::find(std::string_view key) const {
  if (!value_.is_object()) return std::nullopt;
  for (const JsonView member : value_.members()) {
    if (names(member.key(), key) && !member.is_null()) return member;
  }
  return std::nullopt;
}

Saying<std::uint64_t> AccelerateSection::count(std::string_view key, std::uint64_t least) const {
  const auto value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_string()) {
    return said(least > 0 ? value->as_positive(kMostRanks) : value->as_count(kMostRanks), value->path());
  }
  const std::string_view text = value->as_string();
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size() || number < least || number > kMostRanks) {
    value->fail_expected(fmt::format("an integer from {} to {}", least, kMostRanks));
  }
  return said(number, value->path());
}

Saying<bool> AccelerateSection::flag(std::string_view key) const {
  const auto value = find(key);
  if (!value) return std::nullopt;
  if (value->is_string()) {
    if (equal_in_any_case(value->as_string(), "true")) return said(true, value->path());
    if (equal_in_any_case(value->as_string(), "false")) return said(false, value->path());
  }
  return said(value->as_bool(), value->path());
}

bool AccelerateSection::is_set(std::string_view key) const {
  const Saying<bool> value = flag(key);
  return value && value->value;
}

Saying<std::string> AccelerateSection::word(std::string_view key, std::initializer_list<std::string_view> words) const {
  const auto value = find(key);
  if (!value) return std::nullopt;
  if (value->is_string()) {
    for (const std::string_view word : words) {
      if (!equal_in_any_case(word, value->as_string())) continue;
      std::string small(word);
      for (char& c : small) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
      return said(small, value->path());
    }
  }
  value->fail_expected(fmt::format("one of {}", fmt::join(words, ", ")));
}

Saying<std::string> AccelerateSection::text(std::string_view key) const {
  const auto value = find(key);
  if (!value) return std::nullopt;
  return said(std::string(value->as_string()), value->path());
}

std::string AccelerateSection::path(std::string_view key) const {
  return value_.exists() ? fmt::format("{}.{}", value_.path(), key) : std::string(key);
}

}  // namespace shardplan
