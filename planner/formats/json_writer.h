// Writing JSON that people read: one member a line, two spaces a level, in the order in which it is added.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace shardplan {

// A string as it stands in JSON, quotes and all: RFC 8259, section 7. Bytes above 0x7f are UTF-8 as they come.
std::string json_quoted(std::string_view text);

class JsonWriter {
 public:
  JsonWriter& open(std::string_view key);  // an object
  JsonWriter& close();
  JsonWriter& add(std::string_view key, std::uint64_t value);
  JsonWriter& add(std::string_view key, std::int64_t value);
  JsonWriter& add(std::string_view key, double value);  // finite; 1 as 1.0
  JsonWriter& add(std::string_view key, bool value);
  JsonWriter& add(std::string_view key, std::string_view value);
  JsonWriter& add(std::string_view key, const char* value) { return add(key, std::string_view(value)); }
  template <typename T>
  JsonWriter& add(std::string_view key, T value) = delete;  // a conversion would choose silently

  // The document, which ends in a newline. Objects that are open are closed.
  std::string finish();

 private:
  void begin(std::string_view key);

  std::string text_ = "{";
  std::size_t depth_ = 1;
  bool empty_ = true;  // the object that is open
};

}  // namespace shardplan
