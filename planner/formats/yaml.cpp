#include "planner/formats/yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <utility>
#include <vector>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr std::size_t kMostBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxDepth = 64;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// Whether JSON has this number: an optional minus, an integer without leading zeros, a fraction, an exponent.
bool is_json_number(std::string_view text) {
  std::size_t i = 0;
  const auto digits = [&] {
    const std::size_t begin = i;
    while (i < text.size() && is_digit(text[i])) ++i;
    return i - begin;
  };
  if (i < text.size() && text[i] == '-') ++i;
  const bool zero = i < text.size() && text[i] == '0';
  const std::size_t whole = digits();
  if (whole == 0 || (zero && whole > 1)) return false;
  if (i < text.size() && text[i] == '.') {
    ++i;
    if (digits() == 0) return false;
  }
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    if (digits() == 0) return false;
  }
  return i == text.size();
}

// YAML's other ways to write a number that JSON has: +1, .5, 1. ; empty where it is no number.
std::string as_json_number(std::string_view text) {
  if (std::none_of(text.begin(), text.end(), is_digit)) return {};
  std::string number(text);
  if (number.starts_with('+')) number.erase(0, 1);
  const std::size_t sign = number.starts_with('-') ? 1 : 0;
  if (number.size() > sign && number[sign] == '.') number.insert(sign, "0");
  const std::size_t point = number.find('.');
  if (point != std::string::npos && (point + 1 == number.size() || !is_digit(number[point + 1])) && point > 0 &&
      is_digit(number[point - 1])) {
    number.insert(point + 1, "0");
  }
  return is_json_number(number) ? number : std::string();
}

template <std::size_t N>
bool is_one_of(const std::array<std::string_view, N>& words, std::string_view text) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

// A plain scalar as JSON; empty where it is text.
std::string json_of_plain(std::string_view text) {
  static constexpr std::array<std::string_view, 5> nulls{"", "~", "null", "Null", "NULL"};
  static constexpr std::array<std::string_view, 9> trues{"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"};
  static constexpr std::array<std::string_view, 9> falses{"false", "False", "FALSE", "no", "No",
                                                          "NO",    "off",   "Off",   "OFF"};
  static constexpr std::array<std::string_view, 6> infinities{".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"};
  static constexpr std::array<std::string_view, 3> negative{"-.inf", "-.Inf", "-.INF"};
  static constexpr std::array<std::string_view, 3> nans{".nan", ".NaN", ".NAN"};
  if (is_one_of(nulls, text)) return "null";
  if (is_one_of(trues, text)) return "true";
  if (is_one_of(falses, text)) return "false";
  if (is_one_of(infinities, text)) return "Infinity";
  if (is_one_of(negative, text)) return "-Infinity";
  if (is_one_of(nans, text)) return "NaN";
  return as_json_number(text);
}

std::string json_string(std::string_view text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      json += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      json += c;
    }
  }
  return json + '"';
}

// Writes the parser's events as JSON.
class EventWriter : public YAML::EventHandler {
 public:
  explicit EventWriter(const std::string& source) : source_(source) {}
  std::string take() { return std::move(json_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  // NOLINTNEXTLINE(readability-named-parameter)
  void OnAnchor(const YAML::Mark& mark, const std::string&) override { refuse_anchor(mark); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark); }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (anchor != YAML::NullAnchor) refuse_anchor(mark);
    scalar(mark, "", true);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (anchor != YAML::NullAnchor) refuse_anchor(mark);
    // The library says "?" for a plain scalar and "!" for a quoted one.
    const bool plain = tag.empty() || tag == "?";
    if (!plain && tag != "!") refuse_tag(mark);
    scalar(mark, value, plain);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, false);
  }
  void OnSequenceEnd() override { close(']'); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, true);
  }
  void OnMapEnd() override { close('}'); }

 private:
  struct Open {
    bool map = false;
    bool expects_key = false;
    bool empty = true;
  };

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& problem) const {
    throw ConfigError(source_, "", fmt::format("line {}, column {}: {}", mark.line + 1, mark.column + 1, problem));
  }
  [[noreturn]] void refuse_anchor(const YAML::Mark& mark) const {
    refuse(mark, "anchors (&name) and aliases (*name) are not read: expected the value itself");
  }
  [[noreturn]] void refuse_tag(const YAML::Mark& mark) const {
    refuse(mark, "tags (!name) are not read: expected a plain value");
  }
  bool expects_key() const { return !open_.empty() && open_.back().expects_key; }

  // Before a key or an element.
  void separate() {
    if (open_.empty() || (open_.back().map && !open_.back().expects_key)) return;
    if (!open_.back().empty) json_ += ',';
    open_.back().empty = false;
  }
  // Behind a key or a value.
  void turn() {
    if (!open_.empty() && open_.back().map) open_.back().expects_key = !open_.back().expects_key;
  }
  void scalar(const YAML::Mark& mark, const std::string& value, bool plain) {
    separate();
    if (expects_key()) {
      if (plain && value == "<<") refuse(mark, "merge keys (<<) are not read: expected the keys themselves");
      json_ += json_string(value) + ':';
    } else {
      const std::string json = plain ? json_of_plain(value) : std::string();
      json_ += json.empty() ? json_string(value) : json;
    }
    turn();
  }
  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, bool map) {
    if (anchor != YAML::NullAnchor) refuse_anchor(mark);
    if (!tag.empty() && tag != "?" && tag != "!") refuse_tag(mark);
    if (expects_key()) refuse(mark, "a list or a map is no key: expected a scalar");
    if (open_.size() == kMaxDepth) refuse(mark, fmt::format("nested deeper than {} levels", kMaxDepth));
    separate();
    json_ += map ? '{' : '[';
    open_.push_back({.map = map, .expects_key = map, .empty = true});
  }
  void close(char bracket) {
    json_ += bracket;
    open_.pop_back();
    turn();
  }

  const std::string& source_;
  std::string json_;
  std::vector<Open> open_;
};

std::string json_text(std::string_view text, const std::string& source) {
  if (text.size() > kMostBytes) throw ConfigError(source, "", "is more than 1 MiB of YAML");
  std::istringstream stream{std::string(text)};
  EventWriter writer(source);
  try {
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(writer)) return "null";
    std::string json = writer.take();
    EventWriter second(source);
    if (parser.HandleNextDocument(second)) throw ConfigError(source, "", "holds a second document: expected one");
    return json.empty() ? "null" : json;
  } catch (const YAML::Exception& error) {
    throw ConfigError(source, "",
                      fmt::format("line {}, column {}: {}", error.mark.line + 1, error.mark.column + 1, error.msg));
  }
}

}  // namespace

JsonDocument json_from_yaml(std::string_view text, std::string source) {
  const std::string json = json_text(text, source);
  return {json, std::move(source)};
}

JsonDocument json_from_json_or_yaml(std::string_view text, std::string source) {
  const std::size_t first = text.find_first_not_of(" \t\r\n\xEF\xBB\xBF");
  if (first != std::string_view::npos && text[first] == '{') return {text, std::move(source)};
  return json_from_yaml(text, std::move(source));
}

std::string yaml_scalar(std::string_view text) {
  const auto plain = [](char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.' || c == '/' ||
           c == '-';
  };
  const bool safe = !text.empty() && text[0] != '-' && std::all_of(text.begin(), text.end(), plain) &&
                    json_of_plain(text).empty() && !is_digit(text[0]) && text[0] != '.';
  return safe ? std::string(text) : json_string(text);
}

}  // namespace shardplan
