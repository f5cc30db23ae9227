#include "planner/formats/json_writer.h"

#include <fmt/format.h>

namespace shardplan {

std::string json_quoted(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      result += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      result += c;
    }
  }
  return result + "\"";
}

void JsonWriter::begin(std::string_view key) {
  text_ += fmt::format("{}\n{}{}: ", empty_ ? "" : ",", std::string(2 * depth_, ' '), json_quoted(key));
  empty_ = false;
}

JsonWriter& JsonWriter::open(std::string_view key) {
  begin(key);
  text_ += "{";
  ++depth_;
  empty_ = true;
  return *this;
}

JsonWriter& JsonWriter::close() {
  --depth_;
  text_ += empty_ ? "}" : fmt::format("\n{}}}", std::string(2 * depth_, ' '));
  empty_ = false;
  return *this;
}

JsonWriter& JsonWriter::add(std::string_view key, std::uint64_t value) {
  begin(key);
  text_ += fmt::format("{}", value);
  return *this;
}

JsonWriter& JsonWriter::add(std::string_view key, std::int64_t value) {
  begin(key);
  text_ += fmt::format("{}", value);
  return *this;
}

JsonWriter& JsonWriter::add(std::string_view key, double value) {
  begin(key);
  const std::string text = fmt::format("{}", value);
  const bool whole = text.find_first_of(".e") == std::string::npos;
  text_ += whole ? text + ".0" : text;
  return *this;
}

JsonWriter& JsonWriter::add(std::string_view key, bool value) {
  begin(key);
  text_ += value ? "true" : "false";
  return *this;
}

JsonWriter& JsonWriter::add(std::string_view key, std::string_view value) {
  begin(key);
  text_ += json_quoted(value);
  return *this;
}

std::string JsonWriter::finish() {
  while (depth_ > 0) close();
  return text_ + "\n";
}

}  // namespace shardplan
